"""The prompt: from inputs of any kind to token ids and patches, without torch and transformers.

1. **Order** (``content_plume``): chat messages are checked, user text is neutralised.
2. **See** (``vision_plume``, ``pixels_plume``): images and videos become frames, frames become patches and grids.
3. **Write**: the chat template is rendered, placeholders are repeated once per visual token.
4. **Fit**: an over-long prefix loses the end of the user's text, nothing else.
5. **Pad**: on the left, so that ``<slt>`` is the last column of every row.

What differs between backbones is data in ``processor_config.json`` (``start.py`` has a table of it).
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any, Literal, NamedTuple

import numpy as np

from .content_plume import MEDIA_KINDS, canonical_messages, check_text, to_conversation
from .fields_plume import Colour, Count, Floats, Index, Rate, Switch, Text
from .options_plume import check_settings, clip_rates, flatten_media, length_limit, split_options, warn_once
from .pixels_plume import CLIP_MEAN, CLIP_STD, Grid, patchify
from .vision_plume import WHITE, Clip, describe, load_clip, load_image

# A text is read in pieces of this many characters per token that may stay, until it is known to be too long.
_CHARACTERS_PER_TOKEN = 8
_VISION_START, _VISION_END = "<|vision_start|>", "<|vision_end|>"
_TOKENS = ("anchor_token", "latent_start_token", "latent_end_token", "latent_token", "embedding_token")


class Item(NamedTuple):
    """One image or clip as the model sees it."""

    patches: np.ndarray  # (t * h * w, values)
    grid: Grid  # (t, h, w) in patches
    times: Sequence[float] = ()  # of each of the t parts of a clip, in seconds, where they are written as text
    seconds_per_grid: float = 1.0  # between two of the t parts; 1 where unknown


Media = dict[str, list[Item]]  # of one input, by kind


@dataclass(eq=False, repr=False)
class PromptBuilder:
    """Turns texts, images, videos and their mixtures into model inputs, as arrays of numpy.

    The tokenizer is a Qwen2 tokenizer that knows the five PLUME tokens, which ``plume.start.build_processor`` adds: of
    transformers, or one that can be called as theirs. All fields after the template are saved.

    Raises:
        ValueError: If a setting is out of range, contradicts another one, or is no token of the tokenizer.
    """

    tokenizer: Any
    chat_template: str  # Jinja
    anchor_token: Text  # string of <anchor>
    latent_start_token: Text  # string of <slt>
    latent_end_token: Text  # string of <elt>
    latent_token: Text  # string of <ct>
    embedding_token: Text  # string of <gen>
    suffix: Text  # between the latent block and the embedding, <elt> ... <gen>
    query_prompt: Text = ""  # instruction of queries
    document_prompt: Text = ""  # instruction of documents
    min_pixels: Count = 56 * 56  # smallest area of an image after resizing
    max_pixels: Count = 1280 * 28 * 28  # largest area of an image after resizing
    video_min_pixels: Count = 128 * 28 * 28  # the smallest for videos
    video_max_pixels: Count = 768 * 28 * 28  # the largest for videos
    num_frames: Count = 8  # most frames taken from a video, evenly spaced
    blank_image_size: Index = 0  # edge in pixels of a white image before inputs without media, as in released training
    patch_size: Count = 14  # pixels per patch along an edge
    merge_size: Count = 2  # patches per token along an edge
    temporal_patch_size: Count = 2  # frames per patch
    image_mean: Floats = field(default_factory=CLIP_MEAN.copy)  # of each colour, for values in [0, 1]
    image_std: Floats = field(default_factory=CLIP_STD.copy)  # standard deviation of each colour
    background_color: Colour = field(default_factory=WHITE.copy)  # RGB that shows through transparency
    resize: Literal["once", "released"] = "once"  # "released": twice, ignoring EXIF, as that checkpoint was evaluated
    video_limits: Literal["frame", "clip"] = "frame"  # what the pixel limits of videos hold for
    fps: Rate = None  # frames taken per second of a video, up to num_frames; num_frames of any video if None
    min_frames: Count = 1  # with fps, fewest frames taken from a video that has them
    timestamps: Switch = False  # whether the time of each temporal patch is written into the prompt
    time_positions: Switch = False  # whether the model is given second_per_grid_ts

    def __post_init__(self) -> None:
        check_settings(SETTINGS, vars(self))
        self.row_sources: dict[int, int] = {}
        unknown = [vars(self)[name] for name in _TOKENS if not is_token(vars(self)[name], self.tokenizer)]
        if unknown or not self.suffix.endswith(self.embedding_token):
            cause = (
                f"The tokenizer does not know {unknown or 'the end of the suffix'}. No model could read its prompts:"
            )
            raise ValueError(f"{cause} start with plume.from_backbone, or give its own strings.")

    def token_fields(self) -> dict[str, Any]:
        """Fields of [`PlumeConfig`] that hold the ids of this processor's tokens and suffix."""
        fields: dict[str, Any] = {f"{name}_id": self._ids(vars(self)[name])[0] for name in _TOKENS}
        return fields | {"suffix_token_ids": self._ids(self.suffix)}

    @property
    def control_tokens(self) -> list[str]:
        """Strings that act as tokens of their own, which user text must not contain."""
        return list(self.tokenizer.get_added_vocab())

    def process_queries(self, queries: Sequence[Any], prompt: str | None = None, **kwargs: Any) -> Any:
        """Model inputs of queries (as in :func:`~plume.content_plume.to_conversation`), with the query instruction.

        ``prompt`` replaces it, and is none if empty; the options are those of :meth:`apply_chat_template`.
        """
        return self._process(queries, self.query_prompt if prompt is None else prompt, **kwargs)

    def process_documents(self, documents: Sequence[Any], prompt: str | None = None, **kwargs: Any) -> Any:
        """As :meth:`process_queries`, for documents and their instruction."""
        return self._process(documents, self.document_prompt if prompt is None else prompt, **kwargs)

    def _process(self, items: Sequence[Any], prompt: str, **kwargs: Any) -> Any:
        if isinstance(items, str) or not isinstance(items, Sequence):
            raise ValueError(f"Pass a list of inputs, not a single {type(items).__name__}: [input].")
        options = {"tokenize": True, "return_dict": True, "return_tensors": "pt", **kwargs}
        return self.apply_chat_template(_each(lambda item: to_conversation(item, prompt), items), **options)

    def apply_chat_template(
        self,
        conversation: Sequence[Any],
        chat_template: str | None = None,
        add_generation_prompt: bool = True,
        tokenize: bool = False,
        return_dict: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Render chat messages and, with ``tokenize``, turn them into model inputs.

        Args:
            conversation: Messages of one input, or a list of those.
            chat_template: Template instead of the checkpoint's.
            add_generation_prompt: Whether the prompt ends with ``<slt>``, as an embedding needs.
            tokenize: Whether to return model inputs instead of text.
            return_dict: With ``tokenize``, return all inputs instead of ``input_ids`` alone.
            **kwargs: ``return_tensors``, ``padding``, ``truncation`` (False refuses what is too long),
                ``max_length`` in tokens, ``min_pixels``, ``max_pixels``, ``num_frames``, the groups
                ``text_kwargs``, ``images_kwargs`` and ``videos_kwargs``, and variables of the template.

        Raises:
            ValueError: If the batch is empty, an input is unusable, or its media alone exceed ``max_length``.
        """
        if len(conversation) == 0:
            raise ValueError("The batch is empty: pass at least one input.")
        is_batch, rules = not isinstance(conversation[0], dict), (self.control_tokens, self.blank_image_size)
        given = conversation if is_batch else [conversation]
        conversations = _each(lambda messages: canonical_messages(messages, *rules), given)
        # A template of the caller may have variables of its own.
        options, variables = split_options(kwargs, {"latent"} if chat_template is None else None)
        template = {"chat_template": chat_template or self.chat_template, "tokenize": False, **variables}
        template["add_generation_prompt"] = add_generation_prompt
        if not tokenize:
            prompts = [self.tokenizer.apply_chat_template(messages, **template) for messages in conversations]
            return prompts if is_batch else prompts[0]
        parts = [[part for message in messages for part in message["content"]] for messages in conversations]
        sources = {kind: [[p[kind] for p in row if p["type"] == kind] for row in parts] for kind in MEDIA_KINDS}
        media = self._see_all(sources, options)
        limit = length_limit(options["text"], self.tokenizer.model_max_length)
        rows = _each(lambda row: self._fit(conversations[row], media[row], template, *limit), range(len(media)))
        outputs = self._collate(rows, media, options["text"])
        return outputs if return_dict else outputs["input_ids"]

    def __call__(
        self, text: str | list[str] | None = None, images: Any = None, videos: Any = None, **kwargs: Any
    ) -> Any:
        """Encode prompts that are rendered already, as transformers' Qwen2-VL processor does.

        Args:
            text: Rendered prompts, one placeholder (``<|image_pad|>``, ``<|video_pad|>``) per media item.
            images: Images of all prompts in order, flat or one list per prompt.
            videos: Videos of all prompts in order, flat or one list per prompt.
            **kwargs: As in :meth:`apply_chat_template`.

        Raises:
            ValueError: If placeholders and media differ in number, or a prompt exceeds ``max_length``.
        """
        prompts = [text] if isinstance(text, str) else list(text or [])
        if not prompts:
            raise ValueError("The batch is empty: pass rendered prompts, or raw inputs to process_documents.")
        options, _ = split_options(kwargs, set())
        sources = {}
        for kind, given in (("image", images), ("video", videos)):
            placeholder, flat = MEDIA_KINDS[kind].placeholder, flatten_media(given, kind)
            counts = [prompt.count(placeholder) for prompt in prompts]
            if sum(counts) != len(flat):
                cause = f"The prompts hold {sum(counts)} placeholders {placeholder} but {len(flat)} {kind}s are given."
                raise ValueError(f"{cause} Give one {kind} per placeholder, so that they match.")
            remaining = iter(flat)
            sources[kind] = [[next(remaining) for _ in range(count)] for count in counts]
        media = self._see_all(sources, options)
        max_length, _ = length_limit(options["text"], self.tokenizer.model_max_length)
        rows = _each(lambda row: self._ids(self._expand(prompts[row], media[row])), range(len(prompts)))
        longest = max(map(len, rows))
        if longest > max_length:
            cause = f"A rendered prompt has {longest} tokens, more than max_length={max_length}. Lower max_pixels, or"
            raise ValueError(f"{cause} pass messages to apply_chat_template, which cuts text alone.")
        return self._collate(rows, media, options["text"])

    def _see_all(self, sources: dict[str, list[list[Any]]], options: dict[str, dict]) -> list[Media]:
        """The media of each input, from their sources per kind and input."""
        rates = iter(clip_rates(options["video"], sum(map(len, sources["video"]))))

        def see(row: int) -> Media:
            images = [self._see("image", source, options["image"]) for source in sources["image"][row]]
            videos = [self._see("video", source, options["video"], next(rates)) for source in sources["video"][row]]
            return {"image": images, "video": videos}

        return _each(see, range(len(sources["image"])))

    def _see(self, kind: str, source: Any, chosen: dict[str, Any], rate: float | None = None) -> Item:
        prefix, step = MEDIA_KINDS[kind].prefix, self.temporal_patch_size
        if kind == "image":
            clip = Clip([load_image(source, self.background_color, upright=self.resize == "once")])
        else:
            clip = self.read_clip(source, chosen.get("num_frames"), rate)
        limits = [chosen.get(name, vars(self)[prefix + name]) for name in ("min_pixels", "max_pixels")]
        with _naming(describe(kind, source)):
            patches, grid = patchify(clip.frames, vars(self), *limits, kind == "video" and self.video_limits == "clip")
        times = clip.times or []
        last = len(times) - 1
        middles = [(times[first] + times[min(first + step - 1, last)]) / 2 for first in range(0, len(times), step)]
        return Item(patches, grid, middles if self.timestamps else (), step / clip.fps if clip.fps else 1.0)

    def read_clip(self, source: Any, num_frames: int | None = None, rate: float | None = None) -> Clip:
        """The frames of a clip that the model would see, with their times; stands for the clip in an input.

        Arguments are those of :func:`~plume.vision_plume.load_clip`; ``num_frames`` defaults to the setting.
        """
        sampling = (num_frames or self.num_frames, self.fps, self.min_frames, rate)
        return load_clip(source, *sampling, self.background_color, upright=self.resize == "once")

    def _expand(self, prompt: str, media: Media) -> str:
        """Repeat each placeholder once per visual token of its item, in parts with their times where those are text."""
        remaining = {MEDIA_KINDS[kind].placeholder: iter(items) for kind, items in media.items()}

        def write(found: re.Match) -> str:
            start, pad, end = found.groups(default="")
            item = next(remaining[pad])
            tokens = int(np.prod(item.grid)) // self.merge_size**2
            if not item.times:
                return start + pad * tokens + end
            part = _VISION_START + pad * (tokens // len(item.times)) + _VISION_END
            return "".join(f"<{seconds:.1f} seconds>{part}" for seconds in item.times)

        start, pads, end = re.escape(_VISION_START), "|".join(map(re.escape, remaining)), re.escape(_VISION_END)
        return re.sub(f"({start})?({pads})({end})?", write, prompt)

    def _ids(self, text: str) -> list[int]:
        check_text(text)
        # Without the tokenizer's warning of the length, which is checked here.
        return self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    def _fit(self, messages: list[dict], media: Media, template: dict, max_length: int, truncate: bool) -> list[int]:
        """Ids of an input within ``max_length`` tokens, visual ones included: the end of the user's text goes."""
        texts = [p for m in messages if m["role"] == "user" for p in m["content"] if p["type"] == "text" and p["text"]]

        def encode() -> list[int]:
            return self._ids(self._expand(self.tokenizer.apply_chat_template(messages, **template), media))

        given = [part["text"] for part in texts]
        for part in texts:
            part["text"] = self._beginning(part["text"], max_length)
        ids = encode()
        if len(ids) <= max_length and [part["text"] for part in texts] == given:
            return ids
        if not truncate:
            cause = f"An input has {len(ids)} tokens or more, over max_length={max_length}, and truncation is off."
            raise ValueError(f"{cause} Shorten its text, raise max_length, or allow truncation.")
        while len(ids) > max_length:
            if not texts:
                cause = f"An input needs {len(ids)} tokens without any of its text, more than max_length={max_length}."
                raise ValueError(f"{cause} Shorten its instruction, lower max_pixels or num_frames, or raise it.")
            offsets = self._offsets(texts[-1]["text"])
            texts[-1]["text"] = _cut(texts[-1]["text"], offsets, len(offsets) - (len(ids) - max_length))
            if not texts[-1]["text"]:
                texts.pop()
            ids = encode()
        what = "An input was longer than max_length: the end of its text is not part of the embedding."
        warn_once(f"{what} Pass a larger max_length, or raise processor.tokenizer.model_max_length, to keep more.")
        return ids

    def _beginning(self, text: str, max_tokens: int) -> str:
        """The text, or its first ``max_tokens`` tokens where it has more, found without reading all of a long one."""
        size = _CHARACTERS_PER_TOKEN * max_tokens
        while size < len(text):
            # Where the piece ends, inside a word, its last tokens may differ from the text's: they are not used.
            offsets = self._offsets(text[:size])
            if len(offsets) > max_tokens + _CHARACTERS_PER_TOKEN:
                return _cut(text, offsets, max_tokens)
            size *= 2
        return text

    def _offsets(self, text: str) -> list[tuple[int, int]]:
        read = self.tokenizer(text, add_special_tokens=False, verbose=False, return_offsets_mapping=True)
        return read["offset_mapping"]

    def _collate(self, rows: list[list[int]], media: list[Media], text_options: dict[str, Any]) -> Any:
        text_options = {"padding": True, "padding_side": "left", **text_options}
        # `pad` is plain Python. Asking the Rust tokenizer to pad would change its state, and fail between threads.
        padded = self.tokenizer.pad({"input_ids": rows}, **text_options)
        outputs = {"input_ids": padded["input_ids"], "attention_mask": padded["attention_mask"]}
        for kind, names in MEDIA_KINDS.items():
            items = [item for row in media for item in row[kind]]
            if items:
                outputs[names.pixels] = np.concatenate([item.patches for item in items])
                outputs[names.grid] = np.array([item.grid for item in items])
                if kind == "video" and self.time_positions:
                    outputs["second_per_grid_ts"] = np.array([item.seconds_per_grid for item in items], np.float32)
        return outputs


@contextmanager
def _naming(what: str) -> Iterator[None]:
    """Put ``what`` before the message of a ValueError, so that it says which input is meant."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from error


def _cut(text: str, offsets: list[tuple[int, int]], kept: int) -> str:
    # Up to the start of the first token that must go, as tokens of one character share its offsets: always shorter.
    return text[: offsets[kept][0]].rstrip() if kept > 0 else ""


def is_token(text: str, tokenizer: Any) -> bool:
    """Whether a tokenizer reads a text as exactly one id: a control token, or a word of its vocabulary."""
    return len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]) == 1


def _each(function: Callable[[Any], Any], inputs: Iterable[Any]) -> list[Any]:
    """Apply a function to every input; an error says to which it belongs."""
    results = []
    for index, given in enumerate(inputs):
        with _naming(f"Input {index}"):
            results.append(function(given))
    return results


# What is saved in processor_config.json, by name.
SETTINGS = {setting.name: setting.type for setting in fields(PromptBuilder)[2:]}

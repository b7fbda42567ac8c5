"""PLUME processor: owns every string and every pixel of the prompt.

1. **Order** (``content_plume``): chat messages are checked, user text is neutralised.
2. **See** (``vision_plume``): images and videos become patches and grids.
3. **Write** (``prompt_plume``): the chat template is rendered, placeholders are repeated once per visual token.
4. **Fit** (``truncation_plume``): an over-long prefix loses the end of the user's text, nothing else.
5. **Pad**: on the left, so that ``<slt>`` is the last column of every row.
"""

import os
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from huggingface_hub import CommitInfo
from transformers import AutoTokenizer, BatchFeature, PreTrainedTokenizerBase, ProcessorMixin
from transformers.tokenization_utils_base import AddedToken

from .content_plume import canonical_messages, to_conversation, with_blank_image
from .hub_files_plume import HUB_OPTIONS, push_saved, write_hub_files
from .options_plume import check_positive, flatten_media, length_limit, split_options
from .prompt_plume import (
    PAPER_LAYOUT,
    TEMPLATE_VARIABLES,
    PromptLayout,
    build_chat_template,
)
from .truncation_plume import fit
from .vision_plume import load_image, load_video, patchify

# Placeholder token and output names per kind of media.
_MEDIA = {
    "image": ("<|image_pad|>", "pixel_values", "image_grid_thw"),
    "video": ("<|video_pad|>", "pixel_values_videos", "video_grid_thw"),
}
_LIMITS = ("min_pixels", "max_pixels")

Media = list[tuple[np.ndarray, tuple[int, int, int]]]


class PlumeProcessor(ProcessorMixin):
    """Turns texts, images, videos and their mixtures into the inputs of [`PlumeForEmbedding`].

    Args:
        tokenizer: Qwen2 tokenizer that knows the five PLUME tokens, see :meth:`from_backbone`.
        chat_template: Jinja template of the prompt; built from the token strings where omitted.
        anchor_token: String of ``<anchor>``.
        latent_start_token: String of ``<slt>``.
        latent_end_token: String of ``<elt>``.
        latent_token: String of ``<ct>``.
        embedding_token: String of ``<gen>``.
        suffix: Text between the latent block and the embedding, ``<elt> ... <gen>``.
        query_prompt: Instruction in front of queries.
        document_prompt: Instruction in front of documents.
        min_pixels: Smallest area of an image after resizing, in pixels.
        max_pixels: Largest area of an image after resizing, in pixels.
        video_min_pixels: Smallest area of a video frame after resizing, in pixels.
        video_max_pixels: Largest area of a video frame after resizing, in pixels.
        num_frames: Frames taken from a video, evenly spaced.
        blank_image_size: Edge in pixels of a white image put in front of inputs without media; 0 for none. The
            released checkpoint was trained and scored with one.
        patch_size: Edge of a patch, in pixels.
        merge_size: Patches per token along an edge.
        temporal_patch_size: Frames per patch.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        chat_template: str | None = None,
        anchor_token: str = PAPER_LAYOUT.anchor,
        latent_start_token: str = PAPER_LAYOUT.latent_start,
        latent_end_token: str = PAPER_LAYOUT.latent_end,
        latent_token: str = PAPER_LAYOUT.latent,
        embedding_token: str = PAPER_LAYOUT.embedding,
        suffix: str = PAPER_LAYOUT.suffix,
        query_prompt: str = "Find the item that matches the given query.",
        document_prompt: str = "",
        min_pixels: int = 56 * 56,
        max_pixels: int = 1280 * 28 * 28,
        video_min_pixels: int = 128 * 28 * 28,
        video_max_pixels: int = 768 * 28 * 28,
        num_frames: int = 8,
        blank_image_size: int = 0,
        patch_size: int = 14,
        merge_size: int = 2,
        temporal_patch_size: int = 2,
    ) -> None:
        self.anchor_token, self.latent_token, self.embedding_token = anchor_token, latent_token, embedding_token
        self.latent_start_token, self.latent_end_token = latent_start_token, latent_end_token
        self.suffix = suffix
        self.query_prompt, self.document_prompt = query_prompt, document_prompt
        self.min_pixels, self.max_pixels = min_pixels, max_pixels
        self.video_min_pixels, self.video_max_pixels = video_min_pixels, video_max_pixels
        self.num_frames, self.blank_image_size = num_frames, blank_image_size
        self.patch_size, self.merge_size, self.temporal_patch_size = patch_size, merge_size, temporal_patch_size
        self.row_sources: dict[int, int] = {}
        layout = PromptLayout(anchor=anchor_token, latent_start=latent_start_token)
        super().__init__(tokenizer, chat_template=chat_template or build_chat_template(layout))
        self._check_settings()

    def _check_settings(self) -> None:
        counts = {
            "min_pixels": self.min_pixels,
            "max_pixels": self.max_pixels,
            "video_min_pixels": self.video_min_pixels,
            "video_max_pixels": self.video_max_pixels,
            "num_frames": self.num_frames,
        }
        for name, value in counts.items():
            check_positive(name, value)
        tokens = (self.anchor_token, self.latent_start_token, self.latent_end_token, self.latent_token)
        vocabulary = self.tokenizer.get_vocab()
        unknown = [token for token in (*tokens, self.embedding_token) if token not in vocabulary]
        if unknown or not self.suffix.endswith(self.embedding_token):
            raise ValueError(
                f"The tokenizer does not know {unknown or 'the end of the suffix'}, so no model could read its "
                "prompts. Start from a backbone with PlumeProcessor.from_backbone, or give the token strings and the "
                "suffix of this tokenizer."
            )

    @classmethod
    def from_backbone(
        cls, pretrained_model_name_or_path: str | os.PathLike, layout: PromptLayout = PAPER_LAYOUT, **kwargs: Any
    ) -> "PlumeProcessor":
        """Start from the tokenizer of a Qwen2-VL or UME-R1 checkpoint, adding the tokens that it lacks.

        The new tokens and the rows they start from are in :attr:`row_sources`, for
        ``PlumeForEmbedding.from_backbone``. The order of the additions is the released checkpoint's, so that
        Qwen2-VL gives the ids 151657 to 151661.

        Args:
            pretrained_model_name_or_path: Folder or Hub id.
            layout: Token strings and prompt.
            **kwargs: Arguments of the constructor, and ``revision``, ``subfolder``, ``token``, ``cache_dir`` and
                ``local_files_only`` of the hub.
        """
        hub = {name: kwargs.pop(name) for name in HUB_OPTIONS if name in kwargs}
        tokenizer = AutoTokenizer.from_pretrained(pretrained_model_name_or_path, padding_side="left", **hub)
        sources = layout.row_sources()
        added = [token for token in sources if token not in tokenizer.get_vocab()]
        tokenizer.add_tokens([AddedToken(token, normalized=False) for token in added])
        processor = cls(
            tokenizer,
            build_chat_template(layout),
            anchor_token=layout.anchor,
            latent_start_token=layout.latent_start,
            latent_end_token=layout.latent_end,
            latent_token=layout.latent,
            embedding_token=layout.embedding,
            suffix=layout.suffix,
            **kwargs,
        )
        to_id: Any = tokenizer.convert_tokens_to_ids
        processor.row_sources = {to_id(token): to_id(sources[token]) for token in added}
        return processor

    def token_fields(self) -> dict[str, Any]:
        """Fields of [`PlumeConfig`] that hold the ids of this processor's tokens and suffix."""
        to_id = self.tokenizer.convert_tokens_to_ids
        return {
            "anchor_token_id": to_id(self.anchor_token),
            "latent_start_token_id": to_id(self.latent_start_token),
            "latent_end_token_id": to_id(self.latent_end_token),
            "latent_token_id": to_id(self.latent_token),
            "embedding_token_id": to_id(self.embedding_token),
            "suffix_token_ids": self.tokenizer(self.suffix, add_special_tokens=False)["input_ids"],
        }

    @property
    def control_tokens(self) -> list[str]:
        """Strings that act as tokens of their own, which user text must not contain."""
        return list(self.tokenizer.get_added_vocab())

    @property
    def model_input_names(self) -> list[str]:
        """Names of the outputs."""
        return ["input_ids", "attention_mask", *(name for _, *names in _MEDIA.values() for name in names)]

    def process_queries(self, queries: Sequence[Any], prompt: str | None = None, **kwargs: Any) -> BatchFeature:
        """Model inputs of queries, with the query instruction.

        Args:
            queries: Inputs as in :func:`~plume.prompt_plume.to_conversation`.
            prompt: Instruction; :attr:`query_prompt` where omitted, none where empty.
            **kwargs: Options of :meth:`apply_chat_template`.

        Raises:
            ValueError: If the batch is empty or an input is unusable.
        """
        return self._process(queries, self.query_prompt if prompt is None else prompt, **kwargs)

    def process_documents(self, documents: Sequence[Any], prompt: str | None = None, **kwargs: Any) -> BatchFeature:
        """Model inputs of documents, with the document instruction; arguments as in :meth:`process_queries`."""
        return self._process(documents, self.document_prompt if prompt is None else prompt, **kwargs)

    def _process(self, items: Sequence[Any], prompt: str, **kwargs: Any) -> BatchFeature:
        if isinstance(items, str) or not isinstance(items, Sequence):
            raise ValueError(f"Pass a list of inputs, not a single {type(items).__name__}: [input].")
        conversations = [to_conversation(item, prompt) for item in items]
        return self.apply_chat_template(
            conversations, tokenize=True, return_dict=True, **{"return_tensors": "pt", **kwargs}
        )

    def apply_chat_template(  # type: ignore[override]
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
        is_batch = not isinstance(conversation[0], dict)
        conversations = [
            canonical_messages(messages, self.control_tokens)
            for messages in (conversation if is_batch else [conversation])
        ]
        if self.blank_image_size:
            conversations = [with_blank_image(messages, self.blank_image_size) for messages in conversations]
        options, variables = split_options(kwargs)
        unknown = sorted(variables.keys() - TEMPLATE_VARIABLES)
        if unknown and chat_template is None:  # a template of the caller may have variables of its own
            raise ValueError(f"Unknown options {unknown}: they would have no effect. Remove them, or mend their names.")
        template = {
            "chat_template": chat_template or self.chat_template,
            "add_generation_prompt": add_generation_prompt,
            **variables,
        }
        if not tokenize:
            prompts = [self._render(messages, template) for messages in conversations]
            return prompts if is_batch else prompts[0]
        media = {kind: self._load(conversations, kind, options) for kind in _MEDIA}
        max_length, truncate = length_limit(options["text"], self.tokenizer.model_max_length)
        rows = [
            self._fit(messages, {kind: media[kind][row] for kind in media}, template, max_length, truncate)
            for row, messages in enumerate(conversations)
        ]
        outputs = self._collate(rows, media, options)
        return outputs if return_dict else outputs["input_ids"]

    def __call__(
        self,
        text: str | list[str] | None = None,
        images: Any = None,
        videos: Any = None,
        **kwargs: Any,
    ) -> BatchFeature:
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
            raise ValueError(
                "The batch is empty: pass rendered prompts as text, or raw inputs to process_queries and "
                "process_documents."
            )
        options, unknown = split_options(kwargs)
        if unknown:
            raise ValueError(f"Unknown options {sorted(unknown)}: they would have no effect. Remove them.")
        sources = {"image": flatten_media(images, "image"), "video": flatten_media(videos, "video")}
        media: dict[str, list[Media]] = {}
        for kind, (placeholder, *_) in _MEDIA.items():
            counts = [prompt.count(placeholder) for prompt in prompts]
            if sum(counts) != len(sources[kind]):
                raise ValueError(
                    f"The prompts hold {sum(counts)} placeholders {placeholder} but {len(sources[kind])} {kind}s are "
                    f"given, so they cannot be matched. Give one {kind} per placeholder."
                )
            remaining = iter([self._see(kind, source, options) for source in sources[kind]])
            media[kind] = [[next(remaining) for _ in range(count)] for count in counts]
        max_length, _ = length_limit(options["text"], self.tokenizer.model_max_length)
        rows = [
            self._ids(self._expand(prompt, {kind: media[kind][row] for kind in media}))
            for row, prompt in enumerate(prompts)
        ]
        longest = max(map(len, rows))
        if longest > max_length:
            raise ValueError(
                f"A rendered prompt has {longest} tokens, more than max_length={max_length}; cutting it would lose its "
                "end. Pass messages to apply_chat_template, which shortens the user's text only, or lower max_pixels."
            )
        return self._collate(rows, media, options)

    def save_pretrained(
        self, save_directory: str | os.PathLike, push_to_hub: bool = False, repo_id: str | None = None, **kwargs: Any
    ) -> list[str]:
        """Save tokenizer, template and settings, and the prompts for sentence-transformers."""
        saved = super().save_pretrained(save_directory)
        write_hub_files(save_directory, {"query": self.query_prompt, "document": self.document_prompt})
        if push_to_hub:
            self.push_to_hub(repo_id or os.path.basename(os.path.normpath(save_directory)), **kwargs)
        return saved

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> CommitInfo:
        """Upload all that :meth:`save_pretrained` writes; options of :func:`~plume.hub_files_plume.push_saved`."""
        return push_saved(self.save_pretrained, repo_id, **kwargs)

    # 2. See

    def _load(self, conversations: list[list[dict]], kind: str, options: dict[str, dict]) -> list[Media]:
        return [
            [
                self._see(kind, part[kind], options)
                for message in messages
                for part in message["content"]
                if part["type"] == kind
            ]
            for messages in conversations
        ]

    def _see(self, kind: str, source: Any, options: dict[str, dict]) -> tuple[np.ndarray, tuple[int, int, int]]:
        chosen = options[kind]
        if kind == "image":
            frames, limits = [load_image(source)], (self.min_pixels, self.max_pixels)
        else:
            frames = load_video(source, chosen.get("num_frames", self.num_frames))
            limits = (self.video_min_pixels, self.video_max_pixels)
        min_pixels, max_pixels = (chosen.get(name, limit) for name, limit in zip(_LIMITS, limits, strict=True))
        if min_pixels > max_pixels:
            raise ValueError(
                f"min_pixels={min_pixels} exceeds max_pixels={max_pixels}, so no size fits. Change one of them."
            )
        return patchify(
            frames,
            min_pixels=min_pixels,
            max_pixels=max_pixels,
            patch_size=self.patch_size,
            merge_size=self.merge_size,
            temporal_patch_size=self.temporal_patch_size,
        )

    # 3. Write

    def _render(self, messages: list[dict], template: dict[str, Any]) -> str:
        return self.tokenizer.apply_chat_template(messages, tokenize=False, **template)

    def _expand(self, prompt: str, media: dict[str, Media]) -> str:
        """Repeat each placeholder once per visual token of its item."""
        for kind, (placeholder, *_) in _MEDIA.items():
            counts = iter([np.prod(grid) // self.merge_size**2 for _, grid in media[kind]])
            prompt = re.sub(re.escape(placeholder), lambda found: found[0] * next(counts), prompt)  # noqa: B023
        return prompt

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    # 4. Fit

    def _fit(
        self, messages: list[dict], media: dict[str, Media], template: dict[str, Any], max_length: int, truncate: bool
    ) -> list[int]:
        texts = [p for m in messages if m["role"] == "user" for p in m["content"] if p["type"] == "text" and p["text"]]
        return fit(
            lambda: self._ids(self._expand(self._render(messages, template), media)),
            texts,
            self.tokenizer,
            max_length,
            truncate,
        )

    # 5. Pad

    def _collate(self, rows: list[list[int]], media: dict[str, list[Media]], options: dict[str, dict]) -> BatchFeature:
        text_options = {"padding": True, "padding_side": "left", **options["text"]}
        return_tensors = text_options.pop("return_tensors", None)
        # `pad` is plain Python. Asking the Rust tokenizer to pad would change its state, and fail between threads.
        padded = self.tokenizer.pad({"input_ids": rows}, **text_options)
        outputs = {"input_ids": padded["input_ids"], "attention_mask": padded["attention_mask"]}
        for kind, (_, pixels_name, grid_name) in _MEDIA.items():
            items = [item for row in media[kind] for item in row]
            if items:
                outputs[pixels_name] = np.concatenate([patches for patches, _ in items])
                outputs[grid_name] = np.array([grid for _, grid in items])
        return BatchFeature(outputs, tensor_type=return_tensors)


PlumeProcessor.register_for_auto_class("AutoProcessor")

__all__ = ["PlumeProcessor"]

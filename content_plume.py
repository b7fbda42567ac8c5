"""User content: from any input to checked chat messages in the order of the prompt, free of control tokens."""

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from PIL import Image

from .options_plume import warn_once
from .vision_plume import Clip, is_array


class MediaKind(NamedTuple):
    """One kind of media: its token in the prompt, and the names of its pixel limits and of its model inputs.

    Attributes:
        placeholder: Token that represents it in the prompt.
        limits: Settings of its smallest and largest area.
        pixels: Patches of all items, one after the other.
        per_item: Inputs with one row per item, the grid first; the others are optional.
    """

    placeholder: str
    limits: tuple[str, str]
    pixels: str
    per_item: tuple[str, ...]

    @property
    def grid(self) -> str:
        """Name of the grids (time, height, width)."""
        return self.per_item[0]


MEDIA_KINDS = {
    "image": MediaKind("<|image_pad|>", ("min_pixels", "max_pixels"), "pixel_values", ("image_grid_thw",)),
    "video": MediaKind(
        "<|video_pad|>",
        ("video_min_pixels", "video_max_pixels"),
        "pixel_values_videos",
        ("video_grid_thw", "second_per_grid_ts"),
    ),
}
MODALITIES = ("text", *MEDIA_KINDS)
ROLES = ("system", "user", "assistant")
_VIDEO_ENDINGS = (".mp4", ".m4v", ".mkv", ".webm", ".mov", ".avi", ".mpg", ".mpeg", ".wmv", ".flv", ".ogv", ".gif")
_FILE_ENDINGS = (*_VIDEO_ENDINGS, ".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".pdf")


def neutralize(text: str, control_tokens: Sequence[str]) -> str:
    """Break up control tokens inside user text, so that text can never act as one: ``<gen>`` -> ``< gen>``."""
    if not control_tokens:
        return text
    pattern = "|".join(re.escape(token) for token in control_tokens)
    return re.sub(pattern, lambda found: f"{found[0][0]} {found[0][1:]}", text)


def to_conversation(item: Any, prompt: str = "") -> list[dict[str, Any]]:
    """Express one input as chat messages.

    Args:
        item: A text, a PIL image, an array (3-D image, 4-D video), a path object (a video by its ending, else an
            image), a dict of ``text``, ``image`` and ``video`` (each one value or a list of values; a list of frames
            is one video, a list of video files or of lists of frames is several), or chat messages.
        prompt: Instruction before the text; none if empty.

    Raises:
        ValueError: If the input is of an unknown kind or names an unknown modality.
    """
    if isinstance(item, list) and item and isinstance(item[0], Mapping) and "role" in item[0]:
        messages = list(item)
    else:
        parts = [{"type": kind, kind: value} for kind, values in _as_parts(item).items() for value in values]
        messages = [{"role": "user", "content": parts}]
    return [{"role": "system", "content": [{"type": "text", "text": prompt}]}, *messages] if prompt else messages


def _as_parts(item: Any) -> dict[str, list[Any]]:
    if isinstance(item, str):
        return {"text": [item]}
    if isinstance(item, Image.Image):
        return {"image": [item]}
    if isinstance(item, os.PathLike):
        return {"video" if _is_whole_video(item) else "image": [item]}
    if is_array(item):
        return {"video" if item.ndim == 4 else "image": [item]}
    if not isinstance(item, Mapping):
        raise ValueError(
            f"An input is given as {type(item).__name__}, which has no known modality. Pass a text, an image, an "
            f"array, a dict with keys from {', '.join(MODALITIES)}, or chat messages."
        )
    unknown = sorted(set(item) - set(MODALITIES), key=str)
    if unknown:
        raise ValueError(
            f"An input names the unknown modality {unknown[0]!r}, which this model cannot embed. Use keys from "
            f"{', '.join(MODALITIES)}."
        )
    return {kind: _as_several(kind, value) for kind, value in item.items() if value is not None}


def _as_several(kind: str, value: Any) -> list[Any]:
    """The media in ``value``: a list of texts or images is several; a list of clips too, but one of frames is one."""
    if not isinstance(value, (list, tuple)):
        return [value]
    if kind != "video":
        return list(value)
    whole = [_is_whole_video(entry) for entry in value]
    if any(whole) and not all(whole):
        raise ValueError(
            "A list of videos mixes whole videos and single frames. Give video files or lists of frames for several "
            "videos, and frames alone for one."
        )
    return list(value) if value and all(whole) else [value]


def _is_whole_video(entry: Any) -> bool:
    if is_array(entry):
        return entry.ndim == 4
    if isinstance(entry, (list, tuple, Clip)):
        return True
    name = os.fspath(entry).lower() if isinstance(entry, (str, os.PathLike)) else ""
    return name.startswith("data:video/") or name.split("?")[0].endswith(_VIDEO_ENDINGS)


def canonical_messages(
    conversation: Sequence[Mapping[str, Any]], control_tokens: Sequence[str]
) -> list[dict[str, Any]]:
    """Check chat messages and bring them into the order of the prompt.

    A single text goes after its media, whatever the order it was given in; several texts keep their places
    between the media, and become one, line by line, where nothing stands between them. Blank texts are left out. Texts
    are neutralised, media stay as they are.

    Raises:
        ValueError: If a message is malformed, or the user gives neither text nor media.
    """
    messages = [_canonical_message(message, control_tokens) for message in conversation]
    if not any(message["role"] == "user" and message["content"] for message in messages):
        raise ValueError(
            "An input is empty: no text and no media, so there is nothing to embed. Drop it, or give it a text, an "
            "image or a video."
        )
    if messages[-1]["role"] == "system":
        raise ValueError("A system message comes after the user's, so it instructs nothing. Put it first.")
    return messages


def with_blank_image(messages: list[dict[str, Any]], size: int) -> list[dict[str, Any]]:
    """Checked messages with a white image of ``size`` pixels in front where the input has no media."""
    if any(part["type"] != "text" for message in messages for part in message["content"]):
        return messages
    blank = {"type": "image", "image": Image.new("RGB", (size, size), "white")}
    first = next(place for place, message in enumerate(messages) if message["role"] == "user")
    changed = {**messages[first], "content": [blank, *messages[first]["content"]]}
    return [*messages[:first], changed, *messages[first + 1 :]]


def _canonical_message(message: Mapping[str, Any], control_tokens: Sequence[str]) -> dict[str, Any]:
    if not isinstance(message, Mapping) or message.get("content") is None or "role" not in message:
        raise ValueError(f"A chat message needs 'role' and 'content', got {_shorten(message)}.")
    role, content = message["role"], message["content"]
    if role not in ROLES:
        raise ValueError(
            f"A chat message has the role {role!r}; PLUME knows {', '.join(ROLES)}. A pair of inputs is not "
            "one input: embed its two sides separately."
        )
    given = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(given, (list, tuple)) or not all(isinstance(part, Mapping) for part in given):
        raise ValueError(f"The content of a chat message is a text or a list of parts, got {_shorten(content)}.")
    parts = [part for entry in given for part in _canonical_parts(entry)]
    if role != "user" and any(part["type"] != "text" for part in parts):
        raise ValueError(f"A {role} message holds media, which the prompt has no place for. Put them in the user's.")
    texts = [part for part in parts if part["type"] == "text"]
    if len(texts) == 1:
        parts = [part for part in parts if part["type"] != "text"] + texts
    if role == "user" and parts == texts:
        _warn_of_file_names(texts)
    return {"role": role, "content": _merge_texts(parts, control_tokens)}


def _merge_texts(parts: list[dict[str, Any]], control_tokens: Sequence[str]) -> list[dict[str, Any]]:
    """Neutralise texts and join neighbours by a line break: glued together, two halves could be a control token."""
    merged: list[dict[str, Any]] = []
    for part in parts:
        if part["type"] != "text":
            merged.append(part)
        elif merged and merged[-1]["type"] == "text":
            merged[-1]["text"] += "\n" + neutralize(part["text"], control_tokens)
        else:
            merged.append({"type": "text", "text": neutralize(part["text"], control_tokens)})
    return merged


def _canonical_parts(part: Mapping[str, Any]) -> list[dict[str, Any]]:
    kind = part.get("type")
    if kind not in MODALITIES:
        raise ValueError(
            f"A message part has the unknown type {kind!r}, which this model cannot embed. Use {', '.join(MODALITIES)}."
        )
    sources = (kind,) if kind == "text" else (kind, "url", "path")
    unknown = [key for key, value in part.items() if key not in ("type", *sources) and value is not None]
    if unknown:
        raise ValueError(
            f"A message part of type {kind!r} has the unknown keys {unknown}: they would have no effect. Pass limits "
            "such as max_pixels and num_frames to the processor's call."
        )
    value = next((part[key] for key in sources if part.get(key) is not None), None)
    if value is None:
        raise ValueError(
            f"A message part of type {kind!r} holds no {kind}: add the key {' or '.join(map(repr, sources))}."
        )
    values = _as_several(kind, value)
    if kind == "text":
        if not all(isinstance(text, str) for text in values):
            raise ValueError(f"A text is given as {type(values[0]).__name__}. Pass a string.")
        for text in values:
            check_text(text)
        values = [text for text in values if text.strip()]
    return [{"type": kind, kind: entry} for entry in values]


def check_text(text: str) -> None:
    """Refuse a text with half of a surrogate pair, which no tokenizer can read."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"A text holds the lone surrogate {text[error.start]!r} at position {error.start}, which is no character. "
            "Read its source in the right encoding, or drop it: text.encode(errors='ignore').decode()."
        ) from error


def _warn_of_file_names(texts: list[dict[str, Any]]) -> None:
    name = texts[0]["text"].strip().lower() if len(texts) == 1 else ""
    if "\n" not in name and name.split("?")[0].endswith(_FILE_ENDINGS):
        warn_once(
            "A text that ends like the name of a media file is embedded as a text, not as the file. Pass "
            '{"image": path} or {"video": path} to embed the file.'
        )


def _shorten(value: Any) -> str:
    return repr(value)[:100]

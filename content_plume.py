"""User content: from any input to checked chat messages in the order of the prompt, free of control tokens."""

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from PIL import Image

from .options_plume import warn_once
from .vision_plume import Clip, is_array


class MediaKind(NamedTuple):
    """One kind of media: its token in the prompt, the prefix of its settings, and the names of its model inputs."""

    placeholder: str
    prefix: str  # before min_pixels and max_pixels, the settings of its smallest and largest area
    pixels: str  # patches of all items, one after the other
    grid: str  # grids (time, height, width), one row per item
    others: tuple[str, ...] = ()  # more inputs with one row per item, which may be absent


MEDIA_KINDS = {
    "image": MediaKind("<|image_pad|>", "", "pixel_values", "image_grid_thw"),
    "video": MediaKind("<|video_pad|>", "video_", "pixel_values_videos", "video_grid_thw", ("second_per_grid_ts",)),
}
MODALITIES = ("text", *MEDIA_KINDS)
ROLES = ("system", "user", "assistant")
_VIDEO_ENDINGS = (".mp4", ".m4v", ".mkv", ".webm", ".mov", ".avi", ".mpg", ".mpeg", ".wmv", ".flv", ".ogv", ".gif")
_FILE_ENDINGS = (*_VIDEO_ENDINGS, ".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".pdf")


def neutralize(text: str, control_tokens: Sequence[str]) -> str:
    """Break up control tokens inside user text, so that text can never act as one: ``<gen>`` -> ``< gen>``."""
    if not control_tokens:
        return text
    return re.sub("|".join(map(re.escape, control_tokens)), lambda found: f"{found[0][0]} {found[0][1:]}", text)


def to_conversation(item: Any, prompt: str = "") -> list[dict[str, Any]]:
    """Express one input as chat messages, unchecked.

    Args:
        item: A text, a PIL image, an array (3-D image, 4-D video), a path object (a video by its ending, else an
            image), a dict of ``text``, ``image`` and ``video`` (each one value or a list of values; a list of frames
            is one video, a list of video files or of lists of frames is several), or chat messages.
        prompt: Instruction before the text; none if empty.

    Raises:
        ValueError: If the input is of an unknown kind.
    """
    if isinstance(item, list) and item and isinstance(item[0], Mapping) and "role" in item[0]:
        messages = list(item)
    else:
        given = item if isinstance(item, Mapping) else {_modality(item): item}
        content = [{"type": kind, kind: value} for kind, value in given.items() if value is not None]
        messages = [{"role": "user", "content": content}]
    return [{"role": "system", "content": [{"type": "text", "text": prompt}]}, *messages] if prompt else messages


def _modality(item: Any) -> str:
    if isinstance(item, str):
        return "text"
    if isinstance(item, Image.Image):
        return "image"
    if isinstance(item, os.PathLike) or is_array(item):
        return "video" if _is_whole_video(item) else "image"
    cause = f"An input is given as {type(item).__name__}, which has no known modality."
    raise ValueError(f"{cause} Pass a text, an image, an array, a dict of {', '.join(MODALITIES)}, or chat messages.")


def _is_whole_video(entry: Any) -> bool:
    if is_array(entry):
        return entry.ndim == 4
    if isinstance(entry, (list, tuple, Clip)):
        return True
    name = os.fspath(entry).lower() if isinstance(entry, (str, os.PathLike)) else ""
    return name.startswith("data:video/") or name.split("?")[0].endswith(_VIDEO_ENDINGS)


def canonical_messages(conversation: Sequence[Any], control_tokens: Sequence[str], blank: int = 0) -> list[dict]:
    """Check chat messages and bring them into the order of the prompt.

    A single text goes after its media, whatever the order it was given in; several texts keep their places between the
    media, and become one, line by line, where nothing stands between them. Blank texts are left out. Texts are
    neutralised, media stay as they are. A white image of ``blank`` pixels, if any, stands for missing media.

    Raises:
        ValueError: If a message is malformed, names an unknown modality, or the user gives neither text nor media.
    """
    messages = [_canonical_message(message, control_tokens) for message in conversation]
    if not any(message["role"] == "user" and message["content"] for message in messages):
        raise ValueError("An input is empty, so there is nothing to embed. Drop it, or give it a text, image or video.")
    if messages[-1]["role"] == "system":
        raise ValueError("A system message comes after the user's, so it instructs nothing. Put it first.")
    if blank and all(part["type"] == "text" for message in messages for part in message["content"]):
        user = next(message for message in messages if message["role"] == "user")
        user["content"].insert(0, {"type": "image", "image": Image.new("RGB", (blank, blank), "white")})
    return messages


def _canonical_message(message: Mapping[str, Any], control_tokens: Sequence[str]) -> dict[str, Any]:
    if not isinstance(message, Mapping) or message.get("content") is None or "role" not in message:
        raise ValueError(f"A chat message needs 'role' and 'content', got {message!r:.100}.")
    role, content = message["role"], message["content"]
    if role not in ROLES:
        raise ValueError(f"The role {role!r} is none of {', '.join(ROLES)}. Of a pair, embed its two sides separately.")
    given = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(given, (list, tuple)) or not all(isinstance(part, Mapping) for part in given):
        raise ValueError(f"The content of a chat message is a text or a list of parts, got {content!r:.100}.")
    parts = [part for entry in given for part in _canonical_parts(entry, control_tokens)]
    texts = [part for part in parts if part["type"] == "text"]
    if role != "user" and parts != texts:
        raise ValueError(f"A {role} message holds media, which the prompt has no place for. Put them in the user's.")
    if len(texts) == 1:
        parts = [part for part in parts if part["type"] != "text"] + texts
        if role == "user" and parts == texts:
            _warn_of_file_name(texts[0]["text"].strip().lower())
    merged: list[dict[str, Any]] = []
    for part in parts:
        if merged and part["type"] == merged[-1]["type"] == "text":
            # With a line break: glued together, two halves could be a control token.
            merged[-1]["text"] += "\n" + part["text"]
        else:
            merged.append(part)
    return {"role": role, "content": merged}


def _canonical_parts(part: Mapping[str, Any], control_tokens: Sequence[str]) -> list[dict[str, Any]]:
    kind = part.get("type")
    if kind not in MODALITIES:
        raise ValueError(f"An input has the unknown modality {kind!r}: only {', '.join(MODALITIES)} can be embedded.")
    sources = (kind,) if kind == "text" else (kind, "url", "path")
    unknown = [key for key, value in part.items() if key not in ("type", *sources) and value is not None]
    if unknown:
        cause = f"A message part of type {kind!r} has the unknown keys {unknown}: they would have no effect."
        raise ValueError(f"{cause} Pass limits such as max_pixels and num_frames to the processor's call.")
    value = next((part[key] for key in sources if part.get(key) is not None), None)
    if value is None:
        raise ValueError(f"A message part of type {kind!r} holds no {kind}: add the key {' or '.join(sources)}.")
    values = _as_several(kind, value)
    if kind == "text":
        for text in values:
            check_text(text)
        values = [neutralize(text, control_tokens) for text in values if text.strip()]
    return [{"type": kind, kind: entry} for entry in values]


def _as_several(kind: str, value: Any) -> list[Any]:
    """The media in ``value``: a list of texts or images is several; a list of clips too, but one of frames is one."""
    if not isinstance(value, (list, tuple)):
        return [value]
    whole = [kind != "video" or _is_whole_video(entry) for entry in value]
    if any(whole) and not all(whole):
        raise ValueError("A list of videos mixes whole videos and single frames. Give videos only, or one's frames.")
    return list(value) if all(whole) and (value or kind != "video") else [value]


def check_text(text: Any) -> None:
    """Refuse what is no text, and half of a surrogate pair, which no tokenizer can read."""
    if not isinstance(text, str):
        raise ValueError(f"A text is given as {type(text).__name__}. Pass a string.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        cause = f"A text holds the lone surrogate {text[error.start]!r} at position {error.start}: no character."
        raise ValueError(f"{cause} Decode its source rightly, or text.encode(errors='ignore').decode().") from error


def _warn_of_file_name(text: str) -> None:
    if "\n" not in text and text.split("?")[0].endswith(_FILE_ENDINGS):
        what = "A text that ends like the name of a media file is embedded as a text, not as the file."
        warn_once(f'{what} Pass {{"image": path}} or {{"video": path}} to embed the file.')

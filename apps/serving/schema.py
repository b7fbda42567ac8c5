"""What a request may say, and how it becomes inputs of the processor. Nothing a client names is fetched or opened.

1. **Types** are checked strictly (:class:`EmbeddingRequest`); unknown fields are refused: they would do nothing.
2. **Pictures** come as data URIs, or as names below a folder that the operator has allowed; their headers are checked
   against the limits here, their pixels are decoded later, batch by batch.
"""

import base64
import binascii
import re
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from plume.apps.shared.limits import Limits, MediaError, open_picture

_DATA_URI = re.compile(r"data:image/[a-z0-9.+-]+;base64,", re.IGNORECASE)
_MAX_PARTS = 32


class Strict(BaseModel):
    """No conversion of types, no unknown fields."""

    model_config = ConfigDict(strict=True, extra="forbid")


class ImageUrl(Strict):
    """Where a picture is; ``detail`` is OpenAI's and means nothing here."""

    url: str
    detail: Literal["auto", "low", "high"] | None = None


class TextPart(Strict):
    """A text in a message."""

    type: Literal["text"]
    text: str


class ImagePart(Strict):
    """A picture in a message."""

    type: Literal["image_url"]
    image_url: ImageUrl


class Message(Strict):
    """A chat message; ``system`` holds the instruction."""

    role: Literal["system", "user"]
    content: str | list[TextPart | ImagePart]


class Item(Strict):
    """A text, a picture (as in :class:`ImageUrl`), or both."""

    text: str | None = None
    image: str | None = None


class EmbeddingRequest(Strict):
    """The body of ``POST /v1/embeddings``.

    Attributes:
        model: Name that the server goes by.
        input: Texts and items; or
        messages: one input as a chat.
        encoding_format: Numbers, or base64 of fp32 little-endian, which OpenAI's client asks for.
        dimensions: Keep only this many, and scale to unit length again.
        user: OpenAI's; means nothing here.
        role: Which instruction of the checkpoint to use. Ours.
        num_latent_steps: K; the checkpoint's where omitted. Ours.
    """

    model: str
    input: str | Item | list[str | Item] | None = None
    messages: list[Message] | None = None
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(default=None, ge=1)
    user: str | None = None
    role: Literal["query", "document"] = "document"
    num_latent_steps: int | None = Field(default=None, ge=0)


def read_inputs(request: EmbeddingRequest, limits: Limits, media_root: Path | None) -> list[Any]:
    """The inputs of a request, for the processor; pictures are opened, not decoded.

    Raises:
        MediaError: If there is none, or one is empty, too large or not allowed.
    """
    if (request.input is None) == (request.messages is None):
        raise MediaError("Give either input or messages: one of them, not both.")
    if request.messages is not None:
        return [_read_messages(request, limits, media_root)]
    given = request.input if isinstance(request.input, list) else [request.input]
    if not given:
        raise MediaError("The input is an empty list, so there is nothing to embed.")
    return [_read_item(item, limits, media_root) for item in given]


def _read_item(item: Any, limits: Limits, media_root: Path | None) -> dict[str, Any]:
    text, image = (item, None) if isinstance(item, str) else (item.text, item.image)
    content: dict[str, Any] = {}
    if image is not None:
        content["image"] = _read_picture(image, limits, media_root)
    if text is not None and text.strip():
        content["text"] = _check_text(text, limits)
    if not content:
        raise MediaError("An input is empty: no text and no picture, so there is nothing to embed.")
    return content


def _read_messages(request: EmbeddingRequest, limits: Limits, media_root: Path | None) -> list[dict[str, Any]]:
    messages = request.messages or []
    if request.role == "query" and any(message.role == "system" for message in messages):
        raise MediaError("A system message is the instruction, and role 'query' is another one. Leave one of them out.")
    chat = []
    for message in messages:
        given = [TextPart(type="text", text=message.content)] if isinstance(message.content, str) else message.content
        parts: list[dict[str, Any]] = []
        for part in given:
            if isinstance(part, TextPart):
                parts.append({"type": "text", "text": _check_text(part.text, limits)})
            else:
                parts.append({"type": "image", "image": _read_picture(part.image_url.url, limits, media_root)})
        chat.append({"role": message.role, "content": parts})
    if not chat:
        raise MediaError("messages is an empty list, so there is nothing to embed.")
    _check_whole(chat, limits)
    return chat


def _check_whole(chat: list[dict[str, Any]], limits: Limits) -> None:
    """A chat is one input: together, its parts keep to what one picture and one text may have."""
    count = sum(len(message["content"]) for message in chat)
    if count > _MAX_PARTS:
        raise MediaError(f"The messages have {count} parts, more than the {_MAX_PARTS} allowed. Leave some out.")
    pixels = decoded_pixels(chat)
    if pixels > limits.max_pixels:
        raise MediaError(
            f"The pictures of the messages have {pixels:,} pixels together, more than the {limits.max_pixels:,} "
            "allowed. Send smaller ones."
        )
    _check_text("".join(texts(chat)), limits)


def _check_text(text: str, limits: Limits) -> str:
    if len(text) > limits.max_characters:
        raise MediaError(
            f"A text has {len(text)} characters, more than the {limits.max_characters} allowed. Cut it into passages."
        )
    return text


def _read_picture(url: str, limits: Limits, media_root: Path | None) -> Image.Image:
    if head := _DATA_URI.match(url):
        try:
            return open_picture(base64.b64decode(url[head.end() :], validate=True), limits)
        except binascii.Error as error:
            raise MediaError(f"A data URI is no valid base64 ({error}). Encode the file again.") from error
    if url.startswith("file:") and media_root is not None:
        return open_picture(_find(url, media_root), limits)
    raise MediaError(
        "A picture is not a data URI (data:image/png;base64,...). This server fetches no addresses and opens no paths "
        "for clients; send the picture itself."
    )


def _find(url: str, media_root: Path) -> Path:
    """The file that ``file:NAME`` names below the allowed folder."""
    name = unquote(url.removeprefix("file:")).lstrip("/")
    try:
        path = (media_root / name).resolve()
        inside = path.is_relative_to(media_root.resolve()) and path.is_file()
    except (OSError, ValueError) as error:  # too long, or with a NUL
        raise MediaError("A file name is malformed.") from error
    if not inside:
        raise MediaError("There is no such file in the folder that this server may read.")
    return path


def pictures(content: Any) -> list[Image.Image]:
    """The pictures of an input."""
    if isinstance(content, dict):
        return [content["image"]] if "image" in content else []
    return [part["image"] for message in content for part in message["content"] if part["type"] == "image"]


def decoded_pixels(content: Any) -> int:
    """Pixels that the pictures of an input will have in memory, before they are resized."""
    return sum(picture.width * picture.height for picture in pictures(content))


def texts(content: Any) -> list[str]:
    """The texts of an input."""
    if isinstance(content, dict):
        return [content["text"]] if "text" in content else []
    return [part["text"] for message in content for part in message["content"] if part["type"] == "text"]

"""What a request may say, and how it becomes inputs of the processor. Nothing a client names is fetched or opened.

1. **Bound**: values are counted in the bytes, before a parser makes objects of them (:func:`check_values`).
2. **Types** are checked strictly, up to the first fault; unknown fields are refused: they would do nothing. A field
   that is null is absent.
3. **Pictures and clips** come as data URIs, or as names below a folder that the operator has allowed; their headers
   are checked against the limits here, their pixels are decoded later, batch by batch.
"""

import base64
import binascii
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import unquote

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from plume.apps.shared.limits import Limits, MediaError, clip_size, open_picture

MAX_INPUTS, MAX_PARTS = 128, 32  # inputs of a request, parts of a chat
_MAX_VALUES = 4096  # of everything in a body; 128 inputs have some 1000
_MARKS = (b",", b"[", b"{")  # outside of strings, each begins a value
_TOKENS = re.compile(rb'"input"\s*:\s*\[[\s\[]*-?[0-9]')
_DATA_URI = re.compile(r"data:(?P<kind>image|video)/[a-z0-9.+-]+;base64,", re.IGNORECASE)


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


class VideoUrl(Strict):
    """Where a clip is."""

    url: str


class VideoPart(Strict):
    """A clip in a message."""

    type: Literal["video_url"]
    video_url: VideoUrl


class Message(Strict):
    """A chat message; ``system`` holds the instruction."""

    role: Literal["system", "user"]
    content: str | Annotated[list[TextPart | ImagePart | VideoPart], Field(fail_fast=True)]


class Item(Strict):
    """A text, a picture or a clip (data URIs), or several of them."""

    text: str | None = None
    image: str | None = None
    video: str | None = None


class EmbeddingRequest(Strict):
    """The body of ``POST /v1/embeddings``.

    Attributes:
        model: Name that the server goes by.
        input: Texts and items; or
        messages: one input as a chat.
        encoding_format: Numbers, or base64 of fp32 little-endian, which OpenAI's client asks for.
        dimensions: Keep only this many, and scale to unit length again.
        user: OpenAI's; means nothing here.
        role: Which instruction and K of the checkpoint to use. Ours.
        num_latent_steps: K. Defaults to the checkpoint's for the role. Ours.
    """

    model: str
    input: str | Item | Annotated[list[str | Item], Field(max_length=MAX_INPUTS, fail_fast=True)] | None = None
    messages: Annotated[list[Message], Field(fail_fast=True)] | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(default=None, ge=1)
    user: str | None = None
    role: Literal["query", "document"] | None = None
    num_latent_steps: int | None = Field(default=None, ge=0)


@dataclass(frozen=True)
class Bounds:
    """What media may be: ``picture`` and ``clip`` bound one of each, ``root`` is the folder that clients may name."""

    picture: Limits
    clip: Limits
    root: Path | None = None


@dataclass(frozen=True)
class Clip:
    """A clip whose header has been read: its file, and the size of its frames."""

    data: bytes
    width: int
    height: int


def check_values(body: bytes) -> None:
    """Refuse a body of more values than any request has. It is looked at as bytes, in a few milliseconds per megabyte.

    Raises:
        MediaError: If it has, or if its input is token ids.
    """
    if _TOKENS.search(body):
        raise MediaError(
            "The input is a list of token ids (numbers), and the client's tokenizer is not this model's, so they mean "
            "nothing here. Send strings; in LangChain's OpenAIEmbeddings set check_embedding_ctx_length=False."
        )
    bare = body.replace(b"\\\\", b"").replace(b'\\"', b"")  # every quote that is left begins or ends a string
    few = bare.count(b'"') <= 2 * _MAX_VALUES
    outside = b"".join(bare.split(b'"')[::2]) if few else b""
    if not few or sum(outside.count(mark) for mark in _MARKS) > _MAX_VALUES:
        raise MediaError(
            f"The body holds more than {_MAX_VALUES} values, and a request has at most {MAX_INPUTS} inputs. Split it."
        )


def read_inputs(request: EmbeddingRequest, bounds: Bounds) -> list[Any]:
    """The inputs of a request, for the processor; pictures and clips are opened, not decoded.

    Raises:
        MediaError: If there is none, or one is empty, too large or not allowed.
    """
    if (request.input is None) == (request.messages is None):
        raise MediaError("Give either input or messages: one of them, not both.")
    if request.messages is not None:
        return [_read_messages(request, bounds)]
    given = request.input if isinstance(request.input, list) else [request.input]
    if not given:
        raise MediaError("The input is an empty list, so there is nothing to embed.")
    return [_read_item(item, bounds) for item in given]


def _read_item(item: Any, bounds: Bounds) -> dict[str, Any]:
    item = Item(text=item) if isinstance(item, str) else item
    content: dict[str, Any] = {}
    if item.image is not None:
        content["image"] = _read_picture(item.image, bounds)
    if item.video is not None:
        content["video"] = _read_clip(item.video, bounds)
    if item.text is not None and item.text.strip():
        content["text"] = _check_text(item.text, bounds.picture)
    if not content:
        raise MediaError("An input is empty: no text, picture or clip, so there is nothing to embed.")
    return content


def _read_messages(request: EmbeddingRequest, bounds: Bounds) -> list[dict[str, Any]]:
    messages = request.messages or []
    if request.role == "query" and any(message.role == "system" for message in messages):
        raise MediaError("A system message is the instruction, and role 'query' is another one. Leave one of them out.")
    chat = []
    for message in messages:
        given = [TextPart(type="text", text=message.content)] if isinstance(message.content, str) else message.content
        chat.append({"role": message.role, "content": [_read_part(part, bounds) for part in given]})
    if not chat:
        raise MediaError("messages is an empty list, so there is nothing to embed.")
    _check_whole(chat, bounds.picture)
    return chat


def _read_part(part: TextPart | ImagePart | VideoPart, bounds: Bounds) -> dict[str, Any]:
    if isinstance(part, TextPart):
        return {"type": "text", "text": _check_text(part.text, bounds.picture)}
    if isinstance(part, ImagePart):
        return {"type": "image", "image": _read_picture(part.image_url.url, bounds)}
    return {"type": "video", "video": _read_clip(part.video_url.url, bounds)}


def _check_whole(chat: list[dict[str, Any]], limits: Limits) -> None:
    """A chat is one input: together, its parts keep to what one picture, one clip and one text may have."""
    count = sum(len(message["content"]) for message in chat)
    if count > MAX_PARTS:
        raise MediaError(f"The messages have {count} parts, more than the {MAX_PARTS} allowed. Leave some out.")
    pixels = decoded_pixels(chat)
    if pixels > limits.max_pixels:
        raise MediaError(
            f"The pictures of the messages have {pixels:,} pixels together, more than the {limits.max_pixels:,} "
            "allowed. Send smaller ones."
        )
    if len(clips(chat)) > 1:
        raise MediaError("The messages have more than one clip. Send one per request.")
    _check_text("".join(texts(chat)), limits)


def _check_text(text: str, limits: Limits) -> str:
    if len(text) > limits.max_characters:
        raise MediaError(
            f"A text has {len(text)} characters, more than the {limits.max_characters} allowed. Cut it into passages."
        )
    return text


def _read_picture(url: str, bounds: Bounds) -> Image.Image:
    return open_picture(_read_file(url, "image", "png", bounds), bounds.picture)


def _read_clip(url: str, bounds: Bounds) -> Clip:
    source = _read_file(url, "video", "mp4", bounds)
    if isinstance(source, Path):
        bounds.clip.check_bytes(source.stat().st_size)
        source = source.read_bytes()
    return Clip(source, *clip_size(source, bounds.clip))


def _read_file(url: str, kind: str, ending: str, bounds: Bounds) -> bytes | Path:
    """What a data URI holds, or the path of an allowed file."""
    head = _DATA_URI.match(url)
    if head and head["kind"].lower() == kind:
        try:
            return base64.b64decode(url[head.end() :], validate=True)
        except binascii.Error as error:
            raise MediaError(f"A data URI is no valid base64 ({error}). Encode the file again.") from error
    if url.startswith("file:") and bounds.root is not None:
        return _find(url, bounds.root)
    raise MediaError(
        f"The {kind} is not a data URI (data:{kind}/{ending};base64,...). This server fetches no addresses and opens "
        "no paths for clients; send the file itself."
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


def parts_of(content: Any, kind: str) -> list[Any]:
    """The parts of an input that are of one kind: ``text``, ``image`` or ``video``."""
    if isinstance(content, dict):
        return [content[kind]] if kind in content else []
    return [part[kind] for message in content for part in message["content"] if part["type"] == kind]


def pictures(content: Any) -> list[Image.Image]:
    """The pictures of an input."""
    return parts_of(content, "image")


def clips(content: Any) -> list[Clip]:
    """The clips of an input."""
    return parts_of(content, "video")


def texts(content: Any) -> list[str]:
    """The texts of an input."""
    return parts_of(content, "text")


def decoded_pixels(content: Any) -> int:
    """Pixels that the pictures of an input will have in memory, before they are resized."""
    return sum(picture.width * picture.height for picture in pictures(content))


def with_clip(content: Any, clip: Any) -> Any:
    """An input with its one clip as it was read."""
    if isinstance(content, dict):
        return {**content, "video": clip}
    return [
        {**message, "content": [{**part, "video": clip} if "video" in part else part for part in message["content"]]}
        for message in content
    ]

"""Media from strangers, opened within bounds: bytes, pixels, frames, seconds.

1. **Bytes** are counted before anything is parsed.
2. **Pixels** are read from the header, before a picture is decoded: a file of a few kilobytes can claim gigabytes.
3. **Frames and seconds** are counted by decoding, because headers of clips lie.

Formats are listed by name: a "clip" that is a playlist would make the decoder open other files and addresses.
"""

import io
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
from PIL import Image

from plume.vision_plume import CLIP_FORMATS

PICTURE_FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "BMP", "TIFF", "GIF")
_MEGABYTE = 1024 * 1024


class MediaError(ValueError):
    """A file that is not what it should be, or larger than allowed."""


@dataclass(frozen=True)
class Limits:
    """Bounds of one file.

    Attributes:
        max_bytes: Size of the file.
        max_pixels: Area of a picture, of a frame, or of a rendered page.
        max_frames: Frames of a clip.
        max_seconds: Time spent on decoding a clip.
        max_pages: Pages of a PDF.
        max_characters: Length of a text.
    """

    max_bytes: int = 32 * _MEGABYTE
    max_pixels: int = 24_000_000
    max_frames: int = 4_000
    max_seconds: float = 20.0
    max_pages: int = 500
    max_characters: int = 8_000

    def check_bytes(self, size: int) -> None:
        """Refuse a file of ``size`` bytes that is empty or too large.

        Raises:
            MediaError: If it is.
        """
        if size == 0:
            raise MediaError("The file is empty, so there is nothing to embed.")
        if size > self.max_bytes:
            raise MediaError(
                f"The file has {size / _MEGABYTE:.1f} MiB, more than the {self.max_bytes / _MEGABYTE:.1f} MiB allowed. "
                "Send a smaller one."
            )

    def check_pixels(self, width: int, height: int) -> None:
        """Refuse a picture of ``width`` x ``height`` pixels that is too large.

        Raises:
            MediaError: If it is.
        """
        if width * height > self.max_pixels:
            raise MediaError(
                f"The picture has {width}x{height} pixels, more than the {self.max_pixels:,} allowed. Send a smaller "
                "one."
            )


def open_picture(source: bytes | Path, limits: Limits) -> Image.Image:
    """Read the header of a picture and check its size; the pixels are decoded when they are first used.

    Args:
        source: The file, or its bytes.
        limits: Bounds.

    Raises:
        MediaError: If the file is no picture of a known format, or exceeds the bounds.
    """
    data = source if isinstance(source, bytes) else _read(source, limits)
    limits.check_bytes(len(data))
    try:
        picture = Image.open(io.BytesIO(data), formats=PICTURE_FORMATS)
    except Image.DecompressionBombError as error:
        raise MediaError(f"The picture claims too many pixels ({error}). Send a smaller one.") from error
    except (OSError, ValueError, SyntaxError) as error:
        raise MediaError(
            f"The picture could not be read as {', '.join(PICTURE_FORMATS)}. Send a complete file of these formats."
        ) from error
    limits.check_pixels(*picture.size)
    return picture


def decode_picture(source: bytes | Path, limits: Limits) -> Image.Image:
    """Read a picture whole, as :func:`open_picture` and then its pixels.

    Raises:
        MediaError: As there, and if the file is cut off or damaged.
    """
    picture = open_picture(source, limits)
    try:
        picture.load()
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise MediaError(f"The picture is damaged or cut off ({error}). Send a complete file.") from error
    return picture


def clip_size(data: bytes, limits: Limits) -> tuple[int, int]:
    """Width and height that the header of a clip claims, checked before anything is decoded.

    Raises:
        MediaError: If it is no clip of a known format, or exceeds the bounds.
    """
    limits.check_bytes(len(data))
    with _opened(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        limits.check_pixels(stream.width, stream.height)
        return stream.width, stream.height


def check_clip(path: Path, limits: Limits) -> None:
    """Decode a clip once, frame by frame, and stop at the first bound that it exceeds.

    Raises:
        MediaError: If it exceeds one, is no clip of a known format, or has no frame.
    """
    limits.check_bytes(path.stat().st_size)
    deadline, count = time.monotonic() + limits.max_seconds, 0
    with _opened(str(path)) as container:
        for frame in container.decode(video=0):
            count += 1
            limits.check_pixels(frame.width, frame.height)
            if count > limits.max_frames:
                raise MediaError(f"The clip has more than the {limits.max_frames} frames allowed. Cut it.")
            if time.monotonic() > deadline:
                raise MediaError(f"The clip takes more than {limits.max_seconds:.0f} s to decode. Cut it.")
    if count == 0:
        raise MediaError("The clip has no frame, so there is nothing to embed.")


@contextmanager
def _opened(file: str | io.BytesIO) -> Iterator[Any]:
    try:
        with av.open(file, options={"format_whitelist": CLIP_FORMATS, "protocol_whitelist": "file"}) as container:
            yield container
    except (OSError, av.FFmpegError, IndexError) as error:
        raise MediaError(f"The clip could not be decoded ({error}). Send a complete file, such as MP4.") from error


def _read(path: Path, limits: Limits) -> bytes:
    try:
        limits.check_bytes(path.stat().st_size)
        return path.read_bytes()
    except OSError as error:
        raise MediaError(f"The file could not be read ({error.strerror}).") from error

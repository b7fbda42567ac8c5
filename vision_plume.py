"""From any source to upright RGB pictures and frames, with PIL, numpy and PyAV only (no torchvision).

1. **Open**: a path, URL, data URI, base64 or bytes becomes a readable file, for pictures and clips alike.
2. **Picture** (:func:`load_image`): upright, 8-bit, transparency composited on a background.
3. **Clip** (:func:`load_clip`): its decodable frames at the size they are shown at, evenly spaced. What a file's
   header says about their number is not trusted.
"""

import os
import shutil
import struct
import sys
import zlib
from base64 import b64decode
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPException
from io import BytesIO
from tempfile import TemporaryFile
from typing import IO, Any
from urllib.parse import unquote_to_bytes, urlsplit
from urllib.request import Request, url2pathname, urlopen

import numpy as np
from PIL import Image, ImageOps

from .options_plume import warn_once

try:
    import av
except ImportError:  # the extra `video`
    av = None  # type: ignore[assignment]

WHITE = [255, 255, 255]
_MAX_16_BIT, _CHANNELS = 65535, (1, 3, 4)
# Formats of clips by name: a "clip" that is a playlist would make the decoder open other files and addresses.
CLIP_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,gif,ogg,flv,asf"
# What Pillow and PyAV raise for damaged files.
_UNREADABLE: Any = (OSError, ValueError, SyntaxError, EOFError, LookupError, TypeError, AttributeError, ArithmeticError,
                    RuntimeError, HTTPException, Image.DecompressionBombError, struct.error, zlib.error,
                    *([av.FFmpegError] if av is not None else []))  # fmt: skip
_FILE = (str, os.PathLike, bytes)


@dataclass(frozen=True)
class Clip:
    """Kept frames of a clip, their times in seconds and their number per second; None if the rate is unknown."""

    frames: list[Image.Image]
    times: list[float] | None = None
    fps: float | None = None


def describe(kind: str, source: Any) -> str:
    """What an error calls a picture or clip: its path or address, or its type."""
    known = isinstance(source, (str, os.PathLike))
    return f"The {kind} {str(source)[:200]!r}" if known else f"The {kind} given as {type(source).__name__}"


@contextmanager
def _reading(kind: str, source: Any) -> Iterator[None]:
    try:
        yield
    except _UNREADABLE as error:
        cause = f"{describe(kind, source)} could not be read ({error}), so it cannot be embedded."
        raise ValueError(f"{cause} Check that it is there, complete and of the format its name says.") from error


def is_array(value: Any) -> bool:
    """Whether a value is an array of numpy or a tensor of torch, which need not be installed."""
    torch = sys.modules.get("torch")
    return isinstance(value, np.ndarray) or (torch is not None and isinstance(value, torch.Tensor))


def _open(source: str | os.PathLike | bytes) -> IO[bytes]:
    if isinstance(source, bytes):
        return BytesIO(source)
    address = os.fspath(source)
    if address.startswith("file:") and urlsplit(address).netloc in ("", "localhost"):
        address = url2pathname(urlsplit(address).path)
    if os.path.isfile(address):
        return open(address, "rb")
    if address.startswith(("http://", "https://")):
        with urlopen(Request(address, headers={"User-Agent": "plume-embedding"}), timeout=20.0) as answer:
            file = TemporaryFile()  # noqa: SIM115
            shutil.copyfileobj(answer, file)
        file.seek(0)
        return file
    header, _, payload = address.partition(",") if address.startswith("data:") else (";base64", ",", address)
    if not header.endswith(";base64"):
        return BytesIO(unquote_to_bytes(payload))
    try:
        return BytesIO(b64decode("".join(payload.split()), validate=True))
    except ValueError as error:
        raise FileNotFoundError("no such file, and neither URL nor base64") from error


def load_image(source: Any, background: Sequence[int] = WHITE, upright: bool = True) -> Image.Image:
    """Read one picture as RGB.

    Args:
        source: PIL image of any mode, path, URL, data URI, bytes of a file, or an array or tensor ``(H, W)``,
            ``(H, W, C)`` or ``(C, H, W)`` of uint8 in 0..255 or floats in [0, 1].
        background: RGB colour that shows through transparency.
        upright: Whether to turn a photo the way its EXIF data say.

    Raises:
        ValueError: If the source is unreadable, corrupt or of an unknown kind.
    """
    if is_array(source):
        source = _array_to_image(source)
    if isinstance(source, Image.Image):
        with _reading("image", source):
            return _to_rgb(source, background, upright)
    if not isinstance(source, _FILE):
        cause = f"An image is given as {type(source).__name__}."
        raise ValueError(f"{cause} Pass a PIL image, a path, a URL, bytes, or an array of shape (H, W, 3).")
    Image.init()
    formats = [name for name in Image.OPEN if name != "EPS"]  # a program, which Pillow would hand to Ghostscript
    with _reading("image", source), _open(source) as file, Image.open(file, formats=formats) as image:
        return _to_rgb(image, background, upright)


def _to_rgb(image: Any, background: Sequence[int], upright: bool) -> Image.Image:
    with suppress(AttributeError, ValueError):  # a format of one picture, or a loaded picture whose file is closed
        if image.n_frames > 1 and image.format != "MPO":  # a photo of a phone, with previews of itself
            what = "A picture file holds several frames or pages, and only one is embedded."
            warn_once(f'{what} Pass an animation as {{"video": source}}, and pages as one picture each, to embed all.')
    if upright:
        image = ImageOps.exif_transpose(image)
    hidden, deep = image.info.get("transparency"), image.mode.startswith("I;16")
    if deep or image.mode in ("I", "F"):
        values = np.asarray(image)
        # The range of 16 bits is known, however dark the picture.
        image = _array_to_image(values.astype(np.float32) / _MAX_16_BIT if deep else values)
        if hidden is not None:
            image.putalpha(_array_to_image(values != hidden))
    elif isinstance(hidden, tuple) and max(hidden) > 255:  # a colour in 16 bits, which Pillow reads as 8
        image = image.copy()
        image.info["transparency"] = tuple(value >> 8 for value in hidden)
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    canvas = Image.new("RGB", image.size, tuple(background))
    canvas.paste(image, mask=image.getchannel("A"))
    return canvas


def _array_to_image(array: Any) -> Image.Image:
    if not isinstance(array, np.ndarray):
        array = array.detach().cpu()
        array = (array.float() if array.is_floating_point() else array).numpy()
    if array.ndim == 3 and array.shape[-1] not in _CHANNELS and array.shape[0] in _CHANNELS:
        array = np.moveaxis(array, 0, -1)
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    flat = array.ndim == 2 or (array.ndim == 3 and array.shape[-1] in _CHANNELS)
    if array.size == 0 or not flat or array.dtype.kind not in "biuf":
        cause = f"An image array of shape {array.shape} and dtype {array.dtype} is no picture."
        raise ValueError(f"{cause} Pass numbers (H, W), (H, W, 3) or (3, H, W).")
    low, high = array.min(), array.max()
    is_wide = array.dtype.kind in "iu" and array.dtype.itemsize > 1
    if array.dtype == bool or (array.dtype.kind == "f" and np.isfinite(array).all() and low >= 0 and high <= 1):
        array = (array * 255.0).round().astype(np.uint8)
    elif is_wide and low >= 0 and 255 < high <= _MAX_16_BIT:
        array = (array * (255 / _MAX_16_BIT)).round().astype(np.uint8)  # 16-bit: PIL would clip it to white
    elif array.dtype != np.uint8:
        cause = f"An image array has dtype {array.dtype} and values from {low} to {high}, so its brightness is unknown."
        raise ValueError(f"{cause} Pass uint8 in 0..255, 16-bit values, or floats in [0, 1].")
    return Image.fromarray(array)


def load_clip(
    source: Any,
    num_frames: int,
    fps: float | None = None,
    min_frames: int = 1,
    rate: float | None = None,
    background: Sequence[int] = WHITE,
    upright: bool = True,
) -> Clip:
    """Read a clip as RGB frames of one size, evenly spaced over its length.

    Args:
        source: A list of frames (each as in :func:`load_image`), an array or tensor ``(T, H, W, C)`` or
            ``(T, C, H, W)``, a file as in :func:`load_image`, which PyAV decodes, or a :class:`Clip`, kept as it is.
        num_frames: Most frames to keep; a shorter clip keeps all of its frames.
        fps: Frames to keep per second, within ``min_frames`` and ``num_frames``; ``num_frames`` of any clip if None.
            Frames that come without a rate are taken to be ``1 / fps`` apart.
        min_frames: With ``fps``, fewest frames to keep of a clip that has them.
        rate: Frames per second of a source that does not say it.
        background: As in :func:`load_image`.
        upright: As in :func:`load_image`, for lists of frames.

    Raises:
        ValueError: If the clip has no frame, is unreadable, or its frames differ in size.
        ImportError: If a file is given and PyAV is not installed.
    """

    def choose(total: int, rate: float | None) -> list[int]:
        if fps is None:
            return np.linspace(0, total - 1, min(total, num_frames), dtype=int).tolist()
        wanted = min(max(int(total / (rate or fps) * fps), min_frames), num_frames, total)
        return np.linspace(0, total - 1, wanted).round().astype(int).tolist()  # as Qwen3-VL rounds

    if isinstance(source, Clip):
        return source
    if isinstance(source, _FILE):
        frames, total, found = _decode(source, choose, background)
        rate = found or rate
        indices = choose(total, found)
    else:
        total = _count(source)
        indices = choose(total, rate)
        frames = [load_image(source[index], background, upright) for index in indices]
    sizes = {frame.size for frame in frames}
    if len(sizes) > 1:
        raise ValueError(f"Frames of a video differ in size ({sorted(sizes)}): no grid fits all. Resize them to one.")
    rate = rate or fps
    return Clip(frames, [index / rate for index in indices], len(frames) / total * rate) if rate else Clip(frames)


def _count(source: Any) -> int:
    if not isinstance(source, Sequence) and not (is_array(source) and source.ndim == 4):
        shape = f" of shape {tuple(source.shape)}" if is_array(source) else ""
        cause = f"A video is given as {type(source).__name__}{shape}."
        raise ValueError(f"{cause} Pass a list of frames, a (T, H, W, 3) or (T, 3, H, W) array, a path, URL or bytes.")
    if len(source) == 0:
        raise ValueError("A video has no frames, so there is nothing to embed. Pass at least one frame.")
    return len(source)


def _decode(
    source: str | os.PathLike | bytes, choose: Callable[[int, float | None], list[int]], background: Sequence[int]
) -> tuple[list[Image.Image], int, float | None]:
    """Chosen frames of a file, the number of all its frames, and their rate."""
    if av is None:
        cause = f"{describe('video', source)} needs PyAV to be decoded: pip install 'plume-embedding[video]'."
        raise ImportError(f"{cause} Or pass the frames as a list of images.")
    with _reading("video", source), _open(source) as file:
        with _moving_pictures(file) as (container, stream):
            rate = float(stream.average_rate) if stream.average_rate else None
            # Cheap to count, and usually one per frame. Where they are not, the decoded frames decide.
            total = sum(1 for packet in container.demux(stream) if packet.size)
        frames, decoded = _pick(file, choose(total, rate) if total else [], background)
        if decoded not in (0, total):
            frames, total = _pick(file, choose(decoded, rate), background)
        if not frames:
            raise ValueError("it has no decodable frames")
    return frames, total, rate


@contextmanager
def _moving_pictures(file: IO[bytes]) -> Iterator[tuple[Any, Any]]:
    file.seek(0)
    # No protocol is allowed: a file that refers to others must not have them opened.
    options = {"format_whitelist": CLIP_FORMATS, "protocol_whitelist": "none"}
    with av.open(file, options=options, metadata_errors="ignore") as container:
        stream = container.streams.best("video")  # not one of a single picture, if there is another
        if stream is None or stream.disposition & av.stream.Disposition.attached_pic:
            raise ValueError("it holds sound or a cover picture but no moving pictures")
        yield container, stream


def _pick(file: IO[bytes], indices: list[int], background: Sequence[int]) -> tuple[list[Image.Image], int]:
    """Frames of a file, and the number of all that it has."""
    wanted, frames, count = set(indices), [], 0
    with _moving_pictures(file) as (container, stream):
        for count, frame in enumerate(container.decode(stream), start=1):
            if count - 1 in wanted:
                frames.append(_as_shown(frame, stream.sample_aspect_ratio, background))
    return frames, count


def _as_shown(frame: Any, aspect: Any, background: Sequence[int]) -> Image.Image:
    """A frame as a player shows it: on a background, with square pixels, turned as it was filmed."""
    has_alpha = any(component.is_alpha for component in frame.format.components)
    image = load_image(frame.to_ndarray(format="rgba"), background) if has_alpha else frame.to_image()
    if aspect and aspect != 1:  # enlarged along one side, so that nothing is thrown away
        width, height = round(image.width * max(aspect, 1)), round(image.height / min(aspect, 1))
        if Image.MAX_IMAGE_PIXELS and width * height > Image.MAX_IMAGE_PIXELS:
            raise ValueError(f"its frames would be shown at {width}x{height} pixels")
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    return image.rotate(frame.rotation, expand=True)

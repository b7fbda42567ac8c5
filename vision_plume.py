"""From any source to upright RGB pictures and frames, with PIL, numpy and PyAV only (no torchvision).

1. **Open**: a path, URL, data URI, base64 or bytes becomes a readable file, for pictures and clips alike.
2. **Picture** (:func:`load_image`): upright, 8-bit, transparency composited on a background.
3. **Clip** (:func:`load_clip`): its decodable frames at the size they are shown at, evenly spaced. What a file's
   header says about their number is not trusted.
"""

import os
import shutil
import struct
import zlib
from base64 import b64decode
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from http.client import HTTPException
from io import BytesIO
from tempfile import TemporaryFile
from typing import IO, Any, NamedTuple
from urllib.parse import unquote_to_bytes, urlsplit
from urllib.request import Request, url2pathname, urlopen

import numpy as np
import torch
from PIL import Image, ImageOps
from transformers.utils import logging

try:
    import av
except ImportError:  # the extra `video`
    av = None  # type: ignore[assignment]

logger = logging.get_logger(__name__)

WHITE = [255, 255, 255]
_MAX_16_BIT = 65535
_TIMEOUT = 20.0  # seconds to wait for an answer
_FORMATS_REFUSED = {"EPS"}  # a program, which Pillow would hand to Ghostscript
# Formats of clips by name: a "clip" that is a playlist would make the decoder open other files and addresses.
CLIP_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,gif,ogg,flv,asf"
# What Pillow and PyAV raise for damaged files.
_UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, LookupError, TypeError, ArithmeticError, HTTPException,
               NotImplementedError, Image.DecompressionBombError, struct.error, zlib.error)  # fmt: skip

File = str | os.PathLike | bytes


class Clip(NamedTuple):
    """Frames of a clip, all of one size.

    Attributes:
        frames: The frames that were kept.
        times: When each is shown, in seconds; none where the clip's rate is unknown.
        fps: Kept frames per second; none where the clip's rate is unknown.
    """

    frames: list[Image.Image]
    times: list[float] | None
    fps: float | None


@contextmanager
def naming(what: str) -> Iterator[None]:
    """Put ``what`` in front of the message of a ValueError, so that it says which input is meant."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from error


def describe(kind: str, source: Any) -> str:
    """What an error calls a picture or clip: its path or address, or its type."""
    known = isinstance(source, (str, os.PathLike))
    return f"The {kind} {str(source)[:200]!r}" if known else f"The {kind} given as {type(source).__name__}"


@contextmanager
def _reading(kind: str, source: Any) -> Iterator[None]:
    try:
        yield
    except _UNREADABLE as error:
        raise ValueError(
            f"{describe(kind, source)} could not be read ({error}), so it cannot be embedded. Check that the file "
            "exists, is complete and has the format its name says."
        ) from error


# 1. Open


@contextmanager
def _open(source: File) -> Iterator[IO[bytes]]:
    if isinstance(source, bytes):
        yield BytesIO(source)
        return
    address = os.fspath(source)
    if os.path.isfile(address):
        with open(address, "rb") as file:
            yield file
    elif address.startswith("file:"):
        with open(url2pathname(urlsplit(address).path), "rb") as file:
            yield file
    elif address.startswith(("http://", "https://")):
        request = Request(address, headers={"User-Agent": "plume-embedding"})
        with urlopen(request, timeout=_TIMEOUT) as answer, TemporaryFile() as file:
            shutil.copyfileobj(answer, file)
            file.seek(0)
            yield file
    else:
        yield BytesIO(_from_text(address))


def _from_text(address: str) -> bytes:
    """Bytes of a data URI or of base64."""
    header, comma, payload = address.partition(",") if address.startswith("data:") else (";base64", ",", address)
    if not comma:
        raise ValueError("a data URI without a comma")
    if not header.endswith(";base64"):
        return unquote_to_bytes(payload)
    try:
        return b64decode("".join(payload.split()), validate=True)
    except ValueError as error:
        raise FileNotFoundError("no such file, and neither URL nor base64") from error


# 2. Picture


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
    if isinstance(source, (np.ndarray, torch.Tensor)):
        source = _array_to_image(_as_array(source))
    if isinstance(source, Image.Image):
        with _reading("image", source):
            return _to_rgb(source, background, upright)
    if not isinstance(source, (str, os.PathLike, bytes)):
        raise ValueError(
            f"An image is given as {type(source).__name__}. Pass a PIL image, a path, a URL, bytes, or an array of "
            "shape (H, W, 3)."
        )
    Image.init()
    formats = [name for name in Image.OPEN if name not in _FORMATS_REFUSED]
    with _reading("image", source), _open(source) as file, Image.open(file, formats=formats) as image:
        return _to_rgb(image, background, upright)


def _to_rgb(image: Image.Image, background: Sequence[int], upright: bool) -> Image.Image:
    _warn_of_frames(image)
    if upright:
        image = ImageOps.exif_transpose(image)
    hidden = image.info.get("transparency")
    if image.mode.startswith("I;16"):  # the range is known, however dark the picture
        values = np.asarray(image)
        image = _array_to_image(values.astype(np.float32) / _MAX_16_BIT)
        if hidden is not None:
            image.putalpha(Image.fromarray((values != hidden).astype(np.uint8) * 255))
    elif image.mode in ("I", "F"):
        image = _array_to_image(np.asarray(image))
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    canvas = Image.new("RGB", image.size, tuple(background))
    canvas.paste(image, mask=image.getchannel("A"))
    return canvas


def _warn_of_frames(image: Any) -> None:
    with suppress(AttributeError, ValueError):  # a format of one picture, or a loaded picture whose file is closed
        if image.n_frames > 1 and image.format != "MPO":  # photos of phones, with previews of themselves
            logger.warning_once(
                "A picture file holds several frames or pages, and only one is embedded. Pass an animation as a "
                'video, {"video": source}, and pages as one picture each, to embed all.'
            )


def _as_array(values: np.ndarray | torch.Tensor) -> np.ndarray:
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        return (values.float() if values.is_floating_point() else values).numpy()
    return values


def _array_to_image(array: np.ndarray) -> Image.Image:
    channels = (1, 3, 4)
    if array.ndim == 3 and array.shape[-1] not in channels and array.shape[0] in channels:
        array = np.moveaxis(array, 0, -1)
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.size == 0 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] not in channels):
        raise ValueError(
            f"An image array has shape {array.shape}, which is no picture. Pass (H, W), (H, W, 3) or (3, H, W)."
        )
    if array.dtype.kind == "f":
        if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
            raise ValueError(
                "A float image array has values outside [0, 1], so its brightness is unknown. Scale it to [0, 1], or "
                "pass uint8 in 0..255."
            )
        array = (array * 255).round().astype(np.uint8)
    elif array.dtype == bool:
        array = array.astype(np.uint8) * 255
    elif (
        array.dtype.kind in "iu" and array.dtype.itemsize > 1 and 255 < array.max() <= _MAX_16_BIT and array.min() >= 0
    ):
        array = (array * (255 / _MAX_16_BIT)).round().astype(np.uint8)  # 16-bit: PIL would clip it to white
    elif array.dtype != np.uint8:
        raise ValueError(
            f"An image array has dtype {array.dtype} and values from {array.min()} to {array.max()}, so its brightness "
            "is unknown. Pass uint8 in 0..255, 16-bit values, or floats in [0, 1]."
        )
    return Image.fromarray(array)


# 3. Clip


def load_video(source: Any, num_frames: int) -> list[Image.Image]:
    """Frames of :func:`load_clip`: at most ``num_frames``, evenly spaced."""
    return load_clip(source, num_frames).frames


def load_clip(
    source: Any,
    num_frames: int,
    fps: float | None = None,
    min_frames: int = 1,
    rate: float | None = None,
    background: Sequence[int] = WHITE,
    upright: bool = True,
) -> Clip:
    """Read a clip as upright RGB frames of one size, evenly spaced over its length.

    Args:
        source: A list of frames (each as in :func:`load_image`), an array or tensor ``(T, H, W, C)`` or
            ``(T, C, H, W)``, or a file as in :func:`load_image`, which PyAV decodes.
        num_frames: Most frames to keep; a shorter clip keeps all of its frames.
        fps: Frames to keep per second, within ``min_frames`` and ``num_frames``; ``num_frames`` of any clip if None.
            Frames that come without a rate are taken to be sampled at ``fps`` already.
        min_frames: With ``fps``, fewest frames to keep of a clip that has them.
        rate: Frames per second of the source, for lists and arrays.
        background: RGB colour that shows through transparency.
        upright: Whether to turn frames given as photos the way their EXIF data say.

    Raises:
        ValueError: If the clip has no frame, is unreadable, or its frames differ in size.
        ImportError: If a file is given and PyAV is not installed.
    """

    def choose(total: int, rate: float | None) -> list[int]:
        if fps is None:
            return np.linspace(0, total - 1, min(total, num_frames), dtype=int).tolist()
        wanted = min(max(int(total / (rate or fps) * fps), min_frames), num_frames, total)
        return np.linspace(0, total - 1, wanted).round().astype(int).tolist()  # as Qwen3-VL rounds

    if isinstance(source, (str, os.PathLike, bytes)):
        frames, indices, total, found = _decode(source, choose, background)
        rate = rate or found
    else:
        total = _check_frames(source)
        indices = choose(total, rate)
        frames = [load_image(source[index], background, upright) for index in indices]
    if len({frame.size for frame in frames}) > 1:
        raise ValueError(
            f"The frames of a video differ in size ({sorted({frame.size for frame in frames})}), so they do not fit "
            "one grid. Resize them to one size first."
        )
    rate = rate or fps
    if rate is None:
        return Clip(frames, None, None)
    return Clip(frames, [index / rate for index in indices], len(indices) / total * rate)


def _check_frames(source: Any) -> int:
    """Number of frames of a list or array."""
    if not isinstance(source, (np.ndarray, torch.Tensor, Sequence)):
        raise ValueError(
            f"A video is given as {type(source).__name__}. Pass a list of frames, an array of shape (T, H, W, 3), a "
            "path, a URL or bytes."
        )
    if not isinstance(source, Sequence) and source.ndim != 4:
        raise ValueError(f"A video array has shape {tuple(source.shape)}. Pass (T, H, W, 3) or (T, 3, H, W).")
    if len(source) == 0:
        raise ValueError("A video has no frames, so there is nothing to embed. Pass at least one frame.")
    return len(source)


def _decode(
    source: File, choose: Callable[[int, float | None], list[int]], background: Sequence[int]
) -> tuple[list[Image.Image], list[int], int, float | None]:
    """Chosen frames of a file, their indices, the number of all its frames and their rate."""
    if av is None:
        raise ImportError(
            f"{describe('video', source)} needs PyAV to be decoded. Install it with pip install "
            "'plume-embedding[video]', or pass the frames as a list of images."
        )
    with _reading("video", source), _open(source) as file:
        # Packets are cheap to count and usually one per frame. Where they are not, the decoded frames decide.
        with _stream(file) as (container, stream):
            total = sum(1 for packet in container.demux(stream) if packet.size)
            rate = float(stream.average_rate) if stream.average_rate else None
        frames, decoded = _pick(file, set(choose(total, rate)), background) if total else ([], 0)
        if decoded != total and decoded:
            total = decoded
            frames, _ = _pick(file, set(choose(total, rate)), background)
        if not frames:
            raise ValueError("it has no decodable frames")
    return frames, choose(total, rate), total, rate


@contextmanager
def _stream(file: IO[bytes]) -> Iterator[tuple[Any, Any]]:
    """The container and its moving pictures; a cover picture is not one."""
    file.seek(0)
    # No protocol is allowed: a file that refers to others must not have them opened.
    options = {"format_whitelist": CLIP_FORMATS, "protocol_whitelist": "none"}
    with av.open(file, options=options, metadata_errors="ignore") as container:
        stream = container.streams.best("video")  # its guess is a stream of many frames
        if stream is None or stream.disposition & av.stream.Disposition.attached_pic:
            raise ValueError("it holds sound or a cover picture but no moving pictures")
        yield container, stream


def _pick(file: IO[bytes], wanted: set[int], background: Sequence[int]) -> tuple[list[Image.Image], int]:
    """The wanted frames of a file, and the number of all that it has."""
    frames, count = [], 0
    with _stream(file) as (container, stream):
        for count, frame in enumerate(container.decode(stream), start=1):
            if count - 1 in wanted:
                frames.append(_shown(frame, stream.sample_aspect_ratio, background))
    return frames, count


def _shown(frame: Any, aspect: Any, background: Sequence[int]) -> Image.Image:
    """A frame as a player shows it: transparency composited, pixels made square, turned as it was filmed."""
    if any(component.is_alpha for component in frame.format.components):
        image = load_image(frame.to_ndarray(format="rgba"), background)
    else:
        image = frame.to_image()
    if aspect and aspect != 1:  # enlarged along one side, so that nothing is thrown away
        width, height = round(image.width * max(aspect, 1)), round(image.height / min(aspect, 1))
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    return image.rotate(frame.rotation, expand=True)

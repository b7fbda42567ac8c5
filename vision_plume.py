"""From pictures and clips to Qwen2-VL patches, with PIL and numpy only (no torchvision).

1. **Load** (:func:`load_image`, :func:`load_video`): any source becomes upright RGB frames.
2. **Resize** (:func:`smart_resize`): sides divisible by the token edge, area within the limits, aspect kept.
3. **Patchify** (:func:`patchify`): frames become rows of patches; an image is a clip of one frame.

The values equal those of transformers' PIL image processor for Qwen2-VL bit for bit.
"""

import math
import os
import struct
from base64 import b64decode
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from transformers import image_utils
from transformers.image_transforms import normalize, rescale

try:
    import av
except ImportError:  # the extra `video`
    av = None  # type: ignore[assignment]

_MAX_ASPECT_RATIO = 200
_MAX_16_BIT = 65535
_TIMEOUT = 20.0  # seconds to wait for an answer
_FORMATS_REFUSED = {"EPS"}  # a program, which Pillow would hand to Ghostscript
# Formats of clips by name: a "clip" that is a playlist would make the decoder open other files and addresses.
CLIP_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,gif,ogg,flv,asf"


@contextmanager
def _as_value_error(what: str, errors: tuple[type[BaseException], ...]) -> Iterator[None]:
    try:
        yield
    except errors as error:
        raise ValueError(
            f"{what} could not be read ({error}), so it cannot be embedded. Check that the file exists, is complete "
            "and has the format its name says."
        ) from error


def load_image(source: Any) -> Image.Image:
    """Read one picture as upright RGB.

    Args:
        source: PIL image of any mode, path, URL, data URI, or an array or tensor ``(H, W)``, ``(H, W, C)`` or
            ``(C, H, W)`` of uint8 in 0..255 or floats in [0, 1].

    Raises:
        ValueError: If the source is unreadable, corrupt or of an unknown kind.
    """
    if isinstance(source, (str, os.PathLike)):
        unreadable = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
        with _as_value_error(f"The image {str(source)[:200]!r}", unreadable):
            source = _open_image(os.fspath(source))
    elif isinstance(source, (np.ndarray, torch.Tensor)):
        source = _array_to_image(_as_array(source))
    if not isinstance(source, Image.Image):
        raise ValueError(
            f"An image is given as {type(source).__name__}. Pass a PIL image, a path, a URL, or an array of shape "
            "(H, W, 3)."
        )
    # Pillow raises the last three for EXIF data that are cut off.
    with _as_value_error(
        "The image", (OSError, SyntaxError, UnidentifiedImageError, struct.error, KeyError, TypeError)
    ):
        source = ImageOps.exif_transpose(source)
        if source.mode.startswith("I;16"):  # the range is known, however dark the picture
            source = _array_to_image(np.asarray(source).astype(np.float32) / _MAX_16_BIT)
        elif source.mode in ("I", "F"):
            source = _array_to_image(np.asarray(source))
        return source.convert("RGB")


def _open_image(source: str) -> Image.Image:
    """A picture from a path, a URL, a data URI or base64, not decoded yet."""
    if os.path.isfile(source):
        file: Any = source
    elif source.startswith(("http://", "https://")):
        with urlopen(Request(source, headers={"User-Agent": "plume-embedding"}), timeout=_TIMEOUT) as answer:
            file = BytesIO(answer.read())
    else:
        encoded = source.partition(",")[2] if source.startswith("data:") else source
        try:
            file = BytesIO(b64decode("".join(encoded.split()), validate=True))
        except ValueError as error:
            raise FileNotFoundError("no such file, and neither URL nor base64") from error
    Image.init()
    return Image.open(file, formats=[name for name in Image.OPEN if name not in _FORMATS_REFUSED])


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


def load_video(source: Any, num_frames: int) -> list[Image.Image]:
    """Read a clip as at most ``num_frames`` upright RGB frames of one size, evenly spaced.

    Args:
        source: A list of frames (each as in :func:`load_image`), an array or tensor ``(T, H, W, C)`` or
            ``(T, C, H, W)``, or a path or URL of a video file, which PyAV decodes.
        num_frames: Frames to keep; a shorter clip keeps all of its frames.

    Raises:
        ValueError: If the clip has no frame, is unreadable, or its frames differ in size.
        ImportError: If a file is given and PyAV is not installed.
    """
    if isinstance(source, (str, os.PathLike)):
        return _decode_video(os.fspath(source), num_frames)
    if not isinstance(source, (np.ndarray, torch.Tensor, Sequence)):
        raise ValueError(
            f"A video is given as {type(source).__name__}. Pass a list of frames, an array of shape (T, H, W, 3), or a "
            "path."
        )
    if len(source) == 0:
        raise ValueError("A video has no frames, so there is nothing to embed. Pass at least one frame.")
    frames = [load_image(source[i]) for i in _evenly_spaced(len(source), num_frames)]
    if len({frame.size for frame in frames}) > 1:
        raise ValueError(
            f"The frames of a video differ in size ({sorted({frame.size for frame in frames})}), so they do not fit "
            "one grid. Resize them to one size first."
        )
    return frames


def _evenly_spaced(total: int, wanted: int) -> list[int]:
    return np.linspace(0, total - 1, min(total, wanted), dtype=int).tolist()


def _decode_video(path: str, num_frames: int) -> list[Image.Image]:
    if av is None:
        raise ImportError(
            f"The video file {path!r} needs PyAV to be decoded. Install it with pip install 'plume-embedding[video]', "
            "or pass the frames as a list of images."
        )
    with _as_value_error(f"The video {path!r}", (OSError, av.FFmpegError, IndexError)):
        with _open_video(path) as container:
            total = container.streams.video[0].frames
        frames = _decode_frames(path, _evenly_spaced(total, num_frames)) if total else []
        if len(frames) < min(total, num_frames) or not total:  # the header is silent or wrong: count by decoding
            total = sum(1 for _ in _iterate_frames(path))
            frames = _decode_frames(path, _evenly_spaced(total, num_frames)) if total else []
    if not frames:
        raise ValueError(f"The video {path!r} has no decodable frames, so there is nothing to embed.")
    return frames


def _open_video(path: str) -> Any:
    protocols = "http,https,tcp,tls" if path.startswith(("http://", "https://")) else "file"
    return av.open(path, options={"format_whitelist": CLIP_FORMATS, "protocol_whitelist": protocols})


def _iterate_frames(path: str) -> Iterator[Any]:
    with _open_video(path) as container:
        yield from container.decode(video=0)


def _decode_frames(path: str, indices: list[int]) -> list[Image.Image]:
    wanted, frames = set(indices), []
    for index, frame in enumerate(_iterate_frames(path)):
        if index in wanted:
            # Phones store clips as filmed and say how to turn them.
            frames.append(frame.to_image().rotate(frame.rotation, expand=True))
        if index >= indices[-1]:
            break
    return frames


def smart_resize(height: int, width: int, edge: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """Size with sides divisible by ``edge`` and an area in [min_pixels, max_pixels], aspect kept (Qwen2-VL).

    Raises:
        ValueError: If one side is more than 200 times the other.
    """
    if max(height, width) > _MAX_ASPECT_RATIO * min(height, width):
        raise ValueError(
            f"An image of {width}x{height} pixels is more than {_MAX_ASPECT_RATIO} times longer than wide, so no grid "
            "keeps its aspect. Crop or split it first."
        )
    rows, columns = round(height / edge) * edge, round(width / edge) * edge
    if rows * columns > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        rows = max(edge, math.floor(height / shrink / edge) * edge)
        columns = max(edge, math.floor(width / shrink / edge) * edge)
    elif rows * columns < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        rows, columns = math.ceil(height * grow / edge) * edge, math.ceil(width * grow / edge) * edge
    return rows, columns


def patchify(
    frames: list[Image.Image],
    *,
    min_pixels: int,
    max_pixels: int,
    patch_size: int,
    merge_size: int,
    temporal_patch_size: int,
) -> tuple[np.ndarray, tuple[int, int, int]]:
    """Turn frames of one size into patch rows.

    Args:
        frames: RGB frames; one for an image.
        min_pixels: Smallest area of a frame after resizing, in pixels.
        max_pixels: Largest area of a frame after resizing, in pixels.
        patch_size: Edge of a patch, in pixels.
        merge_size: Patches per token along an edge.
        temporal_patch_size: Frames per patch; the last frame is repeated to fill it.

    Returns:
        Patches ``(t * h * w, 3 * temporal_patch_size * patch_size**2)``, fp32, and the grid (t, h, w) in patches.
    """
    rows, columns = smart_resize(frames[0].height, frames[0].width, patch_size * merge_size, min_pixels, max_pixels)
    pixels = np.stack([_to_normalized_array(frame, rows, columns) for frame in frames])
    missing = -len(frames) % temporal_patch_size
    if missing:
        pixels = np.concatenate([pixels, np.repeat(pixels[-1:], missing, axis=0)])
    t, h, w = len(pixels) // temporal_patch_size, rows // patch_size, columns // patch_size
    blocks = pixels.reshape(
        t, temporal_patch_size, 3, h // merge_size, merge_size, patch_size, w // merge_size, merge_size, patch_size
    )
    # Patches of one token lie next to each other: (t, token row, token column, row, column, then values).
    return blocks.transpose(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(t * h * w, -1), (t, h, w)


def _to_normalized_array(frame: Image.Image, rows: int, columns: int) -> np.ndarray:
    """Channels-first fp32 values, ``(3, rows, columns)``, CLIP-normalised."""
    resized = np.moveaxis(np.asarray(frame.resize((columns, rows), Image.Resampling.BICUBIC)), -1, 0)
    scaled = rescale(resized, 1 / 255, input_data_format="channels_first")
    mean, std = image_utils.OPENAI_CLIP_MEAN, image_utils.OPENAI_CLIP_STD
    return normalize(scaled, mean=mean, std=std, input_data_format="channels_first").astype(np.float32)

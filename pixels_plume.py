"""From frames to the patches of a Qwen vision tower, with PIL and numpy only.

1. **Size** (:func:`smart_resize`): sides divisible by the token edge, area within the limits, aspect kept.
2. **Patches** (:func:`patchify`): frames become rows of patches; an image is a clip of one frame.

The values equal those of transformers' PIL image processor for Qwen2-VL bit for bit.
"""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

CLIP_MEAN, CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
_MAX_ASPECT_RATIO = 200
# The released checkpoint's pipeline resizes to these limits first, by another library, at 28 pixels a token.
_FIRST_EDGE, _FIRST_LIMITS = 28, (4 * 28 * 28, 16384 * 28 * 28)

Grid = tuple[int, int, int]


def smart_resize(
    height: int, width: int, edge: int, low: int, high: int, *, frames: int = 1, padded: int = 1, shortest: int = 0
) -> tuple[int, int]:
    """Size with sides divisible by ``edge`` and an area in [low, high], aspect kept.

    Frames of a clip may share the limits: there are ``frames``, ``padded`` with those that fill temporal patches. No
    side is taken to be less than ``shortest`` when areas are compared.
    """
    if max(height, width) > _MAX_ASPECT_RATIO * min(height, width):
        raise ValueError(
            f"A picture of {width}x{height} pixels is more than {_MAX_ASPECT_RATIO} times longer than wide, so no grid "
            "keeps its aspect. Crop or split it first."
        )
    rows, columns = (max(shortest, round(side / edge) * edge) for side in (height, width))
    if padded * rows * columns > high:
        shrink = math.sqrt(frames * height * width / high)
        rows, columns = (max(edge, math.floor(side / shrink / edge) * edge) for side in (height, width))
    elif padded * rows * columns < low:
        grow = math.sqrt(low / (frames * height * width))
        rows, columns = (math.ceil(side * grow / edge) * edge for side in (height, width))
    return rows, columns


def patchify(
    frames: list[Image.Image],
    *,
    min_pixels: int,
    max_pixels: int,
    patch_size: int,
    merge_size: int,
    temporal_patch_size: int,
    image_mean: Sequence[float] = CLIP_MEAN,
    image_std: Sequence[float] = CLIP_STD,
    whole_clip: bool = False,
    resize_twice: bool = False,
) -> tuple[np.ndarray, Grid]:
    """Turn frames of one size into patch rows; the settings are those of [`PlumeProcessor`].

    The limits hold for each frame, or with ``whole_clip`` for all frames together, as in Qwen3-VL. ``resize_twice`` is
    the released checkpoint's way. The last frame is repeated to fill a temporal patch.

    Returns:
        Patches ``(t * h * w, 3 * temporal_patch_size * patch_size**2)``, fp32, and the grid (t, h, w) in patches.
    """
    if resize_twice:
        frames = [_first_resize(frame) for frame in frames]
    height, width, edge, shared = frames[0].height, frames[0].width, patch_size * merge_size, {}
    if whole_clip:
        if min(height, width) < edge:
            scale = max(edge / height, edge / width)
            height, width = int(height * scale), int(width * scale)
        count = max(len(frames), temporal_patch_size)
        shared = {"frames": count, "padded": round(count / temporal_patch_size) * temporal_patch_size}
    rows, columns = smart_resize(height, width, edge, min_pixels, max_pixels, **shared)
    pixels = np.stack([_normalized(frame, rows, columns, image_mean, image_std) for frame in frames])
    pixels = np.concatenate([pixels, *[pixels[-1:]] * (-len(frames) % temporal_patch_size)])
    t, h, w = len(pixels) // temporal_patch_size, rows // patch_size, columns // patch_size
    blocks = pixels.reshape(
        t, temporal_patch_size, 3, h // merge_size, merge_size, patch_size, w // merge_size, merge_size, patch_size
    )
    # Patches of one token lie next to each other: (t, token row, token column, row, column, then values).
    return blocks.transpose(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(t * h * w, -1), (t, h, w)


def _first_resize(frame: Image.Image) -> Image.Image:
    rows, columns = smart_resize(frame.height, frame.width, _FIRST_EDGE, *_FIRST_LIMITS, shortest=_FIRST_EDGE)
    return frame.resize((columns, rows), Image.Resampling.BICUBIC)


def _normalized(frame: Image.Image, rows: int, columns: int, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """Channels-first fp32 values, ``(3, rows, columns)``."""
    resized = np.asarray(frame.resize((columns, rows), Image.Resampling.BICUBIC))
    scaled = (resized.astype(np.float64) * (1 / 255)).astype(np.float32)
    return np.moveaxis((scaled - np.array(mean, np.float32)) / np.array(std, np.float32), -1, 0)

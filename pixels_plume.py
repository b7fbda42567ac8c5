"""From frames to the patches of a Qwen vision tower, with PIL and numpy only.

1. **Size** (:func:`smart_resize`): sides divisible by the token edge, area within the limits, aspect kept.
2. **Patches** (:func:`patchify`): frames become rows of patches; an image is a clip of one frame.

The values equal those of transformers' PIL image processor for Qwen2-VL bit for bit.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from .options_plume import check_limits

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
        cause = f"A picture of {width}x{height} pixels is more than {_MAX_ASPECT_RATIO} times longer than wide."
        raise ValueError(f"{cause} No grid keeps its aspect: crop or split it first.")
    rows, columns = (max(shortest, round(side / edge) * edge) for side in (height, width))
    if padded * rows * columns > high:
        shrink = math.sqrt(frames * height * width / high)
        rows, columns = (max(edge, math.floor(side / shrink / edge) * edge) for side in (height, width))
    elif padded * rows * columns < low:
        grow = math.sqrt(low / (frames * height * width))
        rows, columns = (math.ceil(side * grow / edge) * edge for side in (height, width))
    return rows, columns


def patchify(
    frames: list[Image.Image], settings: Mapping[str, Any], min_pixels: int, max_pixels: int, whole_clip: bool = False
) -> tuple[np.ndarray, Grid]:
    """Turn frames of one size into patches ``(t * h * w, 3 * temporal_patch_size * patch_size**2)`` and grid (t, h, w).

    Args:
        frames: The last one is repeated to fill a temporal patch.
        settings: Those of [`PlumeProcessor`], by name.
        min_pixels: Smallest area of a frame.
        max_pixels: Largest area of a frame.
        whole_clip: Whether the limits hold for all frames together, as in Qwen3-VL.
    """
    check_limits(min_pixels, max_pixels)
    step, patch, merge = (settings[name] for name in ("temporal_patch_size", "patch_size", "merge_size"))
    height, width, edge, shared = frames[0].height, frames[0].width, patch * merge, {}
    if settings["resize"] == "released":
        height, width = smart_resize(height, width, _FIRST_EDGE, *_FIRST_LIMITS, shortest=_FIRST_EDGE)
        frames = [frame.resize((width, height), Image.Resampling.BICUBIC) for frame in frames]
    if whole_clip:
        scale = max(1, edge / height, edge / width)
        height, width, count = int(height * scale), int(width * scale), max(len(frames), step)
        shared = {"frames": count, "padded": round(count / step) * step}
    rows, columns = smart_resize(height, width, edge, min_pixels, max_pixels, **shared)
    mean, std = (np.array(settings[name], np.float32) for name in ("image_mean", "image_std"))
    pixels = np.stack([_normalized(frame, rows, columns, mean, std) for frame in frames])
    pixels = np.concatenate([pixels, *[pixels[-1:]] * (-len(frames) % step)])
    t, h, w = len(pixels) // step, rows // patch, columns // patch
    blocks = pixels.reshape(t, step, 3, h // merge, merge, patch, w // merge, merge, patch)
    # Patches of one token lie next to each other: (t, token row, token column, row, column, then values).
    return blocks.transpose(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(t * h * w, -1), (t, h, w)


def _normalized(frame: Image.Image, rows: int, columns: int, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """Channels-first fp32 values, ``(3, rows, columns)``."""
    resized = np.asarray(frame.resize((columns, rows), Image.Resampling.BICUBIC))
    scaled = (resized.astype(np.float64) * (1 / 255)).astype(np.float32)
    return np.moveaxis((scaled - mean) / std, -1, 0)

"""Inputs that are the same everywhere, so that machines can be compared: for fingerprints and golden vectors."""

from typing import Any

import numpy as np
from PIL import Image


def fixed_inputs() -> list[Any]:
    """Texts, a drawn picture, a clip, a mixture."""
    columns, rows = np.meshgrid(np.arange(84), np.arange(56))
    ramps = [np.stack([columns * 3, rows * 5, columns + rows + 20 * shift], axis=-1) % 256 for shift in range(4)]
    frames = [Image.fromarray(ramp.astype(np.uint8)) for ramp in ramps]
    return [
        "a red bus at a stop",
        "the total of the second row",
        frames[0],
        {"video": frames},
        {"image": frames[1], "text": "a bus"},
    ]

"""Pictures bent, recolored and blurred, so that a model cannot learn a set's style by heart.

Legend: B batch, C colors, H and W pixels.
"""

import math
from collections.abc import Callable

import torch
from torch.nn.functional import affine_grid, conv2d, grid_sample

# Numbers in -1..1 of a shape.
Drawn = Callable[..., torch.Tensor]


def augment(pictures_BCHW: torch.Tensor, generator: torch.Generator, recolor: bool = True) -> torch.Tensor:
    """Change every picture of a batch in its own way.

    Args:
        pictures_BCHW: Pictures in 0..1.
        generator: Source of all randomness.
        recolor: Whether colors change too, which skin tones do not survive.

    Returns:
        Pictures of the same shape in 0..1.
    """
    drawn = lambda *shape: torch.rand(*shape, generator=generator) * 2 - 1  # noqa: E731
    changed_BCHW = _blur(_bend(pictures_BCHW, drawn), drawn)
    return (_recolor(changed_BCHW, drawn) if recolor else changed_BCHW).clamp(0, 1)


def _bend(pictures_BCHW: torch.Tensor, drawn: Drawn) -> torch.Tensor:
    size = len(pictures_BCHW)
    angle, shear = drawn(size) * 0.15, drawn(size) * 0.1
    zoom_x, zoom_y = torch.exp(drawn(size) * 0.15), torch.exp(drawn(size) * 0.1)
    zoom_y = zoom_y * zoom_x
    cos, sin = angle.cos(), angle.sin()
    rows = [cos * zoom_x, (shear - sin) * zoom_x, drawn(size) * 0.1, sin * zoom_y, cos * zoom_y, drawn(size) * 0.1]
    grid = affine_grid(torch.stack(rows, 1).view(size, 2, 3), list(pictures_BCHW.shape), align_corners=False)
    # Zero outside, and white is what lies there.
    return 1 - grid_sample(1 - pictures_BCHW, grid, align_corners=False, padding_mode="zeros")


def _blur(pictures_BCHW: torch.Tensor, drawn: Drawn) -> torch.Tensor:
    kernel = torch.tensor([1.0, 2.0, 1.0])
    kernel = (kernel[:, None] * kernel / 16).expand(3, 1, 3, 3)
    strength_B111 = (drawn(len(pictures_BCHW), 1, 1, 1) * 1.5).clamp(-0.7, 1)  # below zero sharpens
    blurred_BCHW = conv2d(pictures_BCHW, kernel, padding=1, groups=3)
    return pictures_BCHW + strength_B111 * (blurred_BCHW - pictures_BCHW)


def _recolor(pictures_BCHW: torch.Tensor, drawn: Drawn) -> torch.Tensor:
    size = len(pictures_BCHW)
    # Hue: a turn around the gray axis. Most are small, some go all the way round.
    angle_B = drawn(size) * 0.3 + (drawn(size) > 0.85) * drawn(size) * math.pi
    gray_B = torch.where(drawn(size) > 0.75, 0.0, 1 + 0.4 * drawn(size))  # saturation; some without any color
    axis = torch.full((3, 3), 1 / 3)
    cross = torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) / math.sqrt(3)
    cos, sin = (gray_B * angle_B.cos())[:, None, None], (gray_B * angle_B.sin())[:, None, None]
    turn_B33 = axis + cos * (torch.eye(3) - axis) + sin * cross
    colored = torch.einsum("bij,bjhw->bihw", turn_B33, pictures_BCHW)
    contrast, light = 1 + 0.35 * drawn(size, 1, 1, 1), 0.12 * drawn(size, 3, 1, 1)
    return (colored - 1) * contrast + 1 + light - light.clamp(min=0)

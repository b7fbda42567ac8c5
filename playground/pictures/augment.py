"""Pictures bent, recolored and blurred, so that a model cannot learn a set's style by heart.

Legend: B batch, C colors, H and W pixels.
"""

import math
from collections.abc import Callable

import torch
from torch.nn.functional import affine_grid, conv2d, grid_sample, interpolate, pad

# Numbers in -1..1 of a shape.
Drawn = Callable[..., torch.Tensor]

_WAVES, _GRADATION, _HOLES = 0.08, 0.5, 0.5  # in halves of an edge; of the logarithm of an exponent; share of pictures


def augment(
    pictures_BCHW: torch.Tensor, generator: torch.Generator, recolor: bool = True, strength: float = 0.0
) -> torch.Tensor:
    """Change every picture of a batch in its own way.

    Args:
        pictures_BCHW: Pictures in 0..1.
        generator: Source of all randomness.
        recolor: Whether colors change too, which skin tones do not survive.
        strength: 0..1, how much of what slows a fresh model down: waves, holes, other gradations.

    Returns:
        Pictures of the same shape in 0..1.
    """
    drawn = lambda *shape: torch.rand(*shape, generator=generator) * 2 - 1  # noqa: E731
    changed_BCHW = _blur(_bend(pictures_BCHW, drawn, strength), drawn)
    if recolor:
        exponents = torch.exp(drawn(len(pictures_BCHW), 3, 1, 1) * _GRADATION * strength)
        changed_BCHW = _recolor(changed_BCHW.clamp(1e-3, 1) ** exponents, drawn)
    return _cut(changed_BCHW.clamp(0, 1), drawn, strength)


def _bend(pictures_BCHW: torch.Tensor, drawn: Drawn, strength: float) -> torch.Tensor:
    size, _, height, width = pictures_BCHW.shape
    angle, shear = drawn(size) * 0.15, drawn(size) * 0.1
    zoom_x, zoom_y = torch.exp(drawn(size) * 0.15), torch.exp(drawn(size) * 0.1)
    zoom_y = zoom_y * zoom_x
    cos, sin = angle.cos(), angle.sin()
    rows = [cos * zoom_x, (shear - sin) * zoom_x, drawn(size) * 0.1, sin * zoom_y, cos * zoom_y, drawn(size) * 0.1]
    grid = affine_grid(torch.stack(rows, 1).view(size, 2, 3), list(pictures_BCHW.shape), align_corners=False)
    waves = interpolate(drawn(size, 2, 5, 5) * _WAVES * strength, (height, width), mode="bicubic", align_corners=True)
    grid = grid + waves.permute(0, 2, 3, 1)
    # Zero outside, and white is what lies there.
    return 1 - grid_sample(1 - pictures_BCHW, grid, align_corners=False, padding_mode="zeros")


def _cut(pictures_BCHW: torch.Tensor, drawn: Drawn, strength: float) -> torch.Tensor:
    """Rectangles, white or of any color, over some pictures."""
    size, _, height, width = pictures_BCHW.shape
    inside = [
        (torch.arange(edge) - (drawn(size, 1) + 1) / 2 * edge).abs() < (0.15 + 0.1 * drawn(size, 1)) * edge
        for edge in (height, width)
    ]
    hole = inside[0][:, :, None] & inside[1][:, None, :] & (drawn(size, 1, 1) < 2 * _HOLES * strength - 1)
    color = torch.where(drawn(size, 1, 1, 1) > 0, 1.0, (drawn(size, 3, 1, 1) + 1) / 2)
    return torch.where(hole.unsqueeze(1), color, pictures_BCHW)


def _blur(pictures_BCHW: torch.Tensor, drawn: Drawn) -> torch.Tensor:
    kernel = torch.tensor([1.0, 2.0, 1.0])
    kernel = (kernel[:, None] * kernel / 16).expand(3, 1, 3, 3)
    strength_B111 = (drawn(len(pictures_BCHW), 1, 1, 1) * 1.5).clamp(-0.7, 1)  # below zero sharpens
    blurred_BCHW = conv2d(pad(pictures_BCHW, (1, 1, 1, 1), mode="replicate"), kernel, groups=3)
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

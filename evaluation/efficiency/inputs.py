"""Inputs of stated sizes, drawn by seed: what costs are measured on, where content does not matter but sizes do."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

_WORDS = [
    "the",
    "a",
    "red",
    "blue",
    "bus",
    "boat",
    "dog",
    "table",
    "row",
    "total",
    "stop",
    "night",
    "left",
    "under",
    "second",
    "of",
    "in",
    "with",
    "and",
    "near",
]


@dataclass(frozen=True)
class Sizes:
    """Sizes of the inputs.

    Attributes:
        text_words: Words of a text; other inputs carry a question of eight words, except pages.
        image_size: Edge of an image, in pixels.
        page_size: Width of a page image, in pixels; it is sqrt(2) times as high.
        frame_size: Edge of a video frame, in pixels.
        num_frames: Frames of a video.
    """

    text_words: int = 48
    image_size: int = 448
    page_size: int = 896
    frame_size: int = 224
    num_frames: int = 8


def draw_inputs(modality: str, count: int, seed: int, sizes: Sizes) -> Iterator[dict[str, Any]]:
    """Draw inputs one by one.

    Args:
        modality: ``"text"``, ``"image"`` (with a question), ``"video"`` (with a question) or ``"page"``.
        count: How many.
        seed: Equal seeds give equal inputs.
        sizes: How large.

    Raises:
        ValueError: If the modality is unknown.
    """
    draw = DRAWS.get(modality)
    if draw is None:
        raise ValueError(f"There are no inputs of the modality {modality!r}. Use one of {', '.join(DRAWS)}.")
    for index in range(count):
        yield draw(np.random.default_rng([seed, index]), sizes)


def _sentence(rng: np.random.Generator, words: int) -> str:
    return " ".join(rng.choice(_WORDS, words))


def _text(rng: np.random.Generator, sizes: Sizes) -> dict[str, Any]:
    return {"text": _sentence(rng, sizes.text_words)}


def _image(rng: np.random.Generator, sizes: Sizes) -> dict[str, Any]:
    return {"text": _sentence(rng, 8), "image": _scene(rng, sizes.image_size, 1)[0]}


def _video(rng: np.random.Generator, sizes: Sizes) -> dict[str, Any]:
    return {"text": _sentence(rng, 8), "video": _scene(rng, sizes.frame_size, sizes.num_frames)}


def _page(rng: np.random.Generator, sizes: Sizes) -> dict[str, Any]:
    width, height, margin = sizes.page_size, round(sizes.page_size * 2**0.5), sizes.page_size // 12
    page = Image.new("RGB", (width, height), "white")
    canvas = ImageDraw.Draw(page)
    for top in range(margin, height - margin, 16):
        canvas.text((margin, top), _sentence(rng, (width - 2 * margin) // 36), fill="black")
    return {"image": page}


def _scene(rng: np.random.Generator, size: int, num_frames: int) -> list[Image.Image]:
    """Frames of boxes that move over a plain ground."""
    ground, colors = rng.integers(0, 256, 3), rng.integers(0, 256, (6, 3))
    corners, speed = rng.uniform(0, 0.8, (6, 2)), rng.uniform(-0.02, 0.02, (6, 2))
    frames = []
    for step in range(num_frames):
        frame = Image.new("RGB", (size, size), tuple(ground.tolist()))
        canvas = ImageDraw.Draw(frame)
        for corner, color in zip(corners + step * speed, colors, strict=True):
            box = [*(corner * size), *((corner + 0.2) * size)]
            canvas.rectangle(box, fill=tuple(color.tolist()))
        frames.append(frame)
    return frames


DRAWS: dict[str, Callable[[np.random.Generator, Sizes], dict[str, Any]]] = {
    "text": _text,
    "image": _image,
    "video": _video,
    "page": _page,
}

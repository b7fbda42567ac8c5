"""Inputs that tests share."""

import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from plume.hub import MODEL_TYPES
from plume.vision_plume import load_clip

ROOT = Path(__file__).resolve().parents[1]
MEDIA = ROOT / "examples" / "media"


@pytest.fixture(scope="module", params=MODEL_TYPES)
def every_backbone(request) -> str:
    """`from inputs import every_backbone as model_type` runs the tests of a module over every backbone."""
    return request.param


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def noise_image(seed: int, width: int = 84, height: int = 56) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def load_video(source, num_frames: int) -> list[Image.Image]:
    return load_clip(source, num_frames).frames


def noise_video(seed: int, frames: int = 5) -> list[Image.Image]:
    return [noise_image(100 * seed + index) for index in range(frames)]


def mixed_inputs() -> list:
    """24 inputs: text, image, two images, video, image with text, video with text; no two alike."""
    inputs = []
    for seed in range(4):
        inputs += [
            " ".join(["a red bus at a stop"] * (1 + 3 * seed)) + f" {seed}",
            noise_image(seed, 56 + 28 * seed),
            {"image": [noise_image(seed + 10), noise_image(seed + 20, 112)]},
            {"video": noise_video(seed, 2 + seed)},
            {"image": noise_image(seed + 30), "text": f"two dogs on a sofa {seed}"},
            {"video": noise_video(seed + 40, 3), "text": "the second row " * seed + "total"},
        ]
    return inputs


def embed(model, processor, inputs, **kwargs) -> torch.Tensor:
    with torch.no_grad():
        return model(**processor.process_documents(inputs), **kwargs).embeddings


def checkpoint_activations(model, options: dict | None = None) -> None:
    """Gradient checkpointing, by the name that the installed transformers has for it."""
    newer = getattr(model, "activation_checkpointing_enable", None)
    (newer or model.gradient_checkpointing_enable)(options)


def claim_pixels(folder: Path) -> Path:
    path = folder / "bomb.png"
    Image.new("1", (7000, 7000)).save(path, optimize=True)  # some kilobytes, 49 million pixels
    assert path.stat().st_size < 20_000
    return path

"""Models and inputs that every benchmark shares. Sizes matter here and nothing else: weights may be random."""

from string import ascii_lowercase
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoModel
from transformers.initialization import no_init_weights

from plume import PlumeModel, PlumeProcessor
from plume.benchmarks.names import DTYPE_NAMES, INPUTS
from plume.hub.random_checkpoint import build_backbone_config, build_tokenizer
from plume.start import build_config, build_processor

DTYPES = dict(zip(DTYPE_NAMES, (torch.float32, torch.bfloat16), strict=True))
_NOISE = 1 << 22  # values drawn once and repeated over all weights: drawing two thousand million takes a minute
# Each is one token of the random tokenizer and of the real ones.
_WORDS = ("red", "bus", "at", "stop", "two", "dogs", "on", "sofa", "the", "total", "of", "second", "row")


def build_model(
    size: str,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    model_type: str = "qwen2_vl",
    **fields: Any,
) -> tuple[PlumeModel, PlumeProcessor]:
    """A random model in evaluation mode, and its processor.

    Args:
        size: A key of :data:`~plume.hub.sizes.SIZES`.
        dtype: Of the weights.
        device: Torch device.
        model_type: Of the backbone, one of :data:`~plume.hub.MODEL_TYPES`.
        **fields: Fields of [`PlumeConfig`].
    """
    tokenizer = build_tokenizer(model_type=model_type)
    processor = build_processor(tokenizer, model_type=model_type)
    backbone = build_backbone_config(processor.tokenizer, size, model_type=model_type)
    config = build_config(backbone, **{**processor.token_fields(), **fields})
    with torch.device(device), no_init_weights():
        model = AutoModel.from_config(config, dtype=dtype).eval()
    model.tie_weights()
    _fill(model)
    return model, processor


@torch.no_grad()
def _fill(model: PlumeModel) -> None:
    noise = torch.randn(_NOISE, generator=torch.Generator().manual_seed(0)).to(model.device, model.dtype)
    for name, parameter in model.named_parameters():
        flat = parameter.view(-1)
        fan_in = parameter.shape[-1] if parameter.ndim == 2 else parameter[0].numel() ** 0.5
        scale = 1.0 if "embed" in name else fan_in**-0.5 if parameter.ndim > 1 else 0.1
        for piece in flat.split(_NOISE):
            piece.copy_(noise[: len(piece)] * scale)
        if parameter.ndim == 1 and name.endswith("weight"):
            flat.add_(1)


def draw_items(processor: PlumeProcessor, kind: str, batch: int, variant: int = 0) -> list[dict[str, Any]]:
    """Inputs of one kind and length, for :func:`~plume.evaluation.embedders.prepare`.

    Args:
        processor: Its prompt is part of the tokens that :data:`INPUTS` promises.
        kind: A key of :data:`INPUTS`.
        batch: How many.
        variant: From 0 to 25; texts of two variants differ from their first word on.
    """
    shape, rng, first = INPUTS[kind], np.random.default_rng(variant), ascii_lowercase[variant]
    items: list[dict[str, Any]] = []
    for _ in range(batch):
        item: dict[str, Any] = {"text": first}
        if shape.size:
            width, height = shape.size
            pixels = rng.integers(0, 256, (shape.num_frames or 1, height, width, 3), dtype=np.uint8)
            frames = [Image.fromarray(frame) for frame in pixels]
            item |= {"video": frames} if shape.num_frames else {"image": frames[0]}
        items.append(item)
    missing = shape.tokens - _count_text(processor, items[0]) if shape.tokens else 11
    for item in items:
        item["text"] = " ".join([first, *rng.choice(_WORDS, max(0, missing))])
        if not shape.tokens:
            item["text"] = f"{processor.query_prompt}\n{item['text']}"
    return items


def _count_text(processor: PlumeProcessor, item: dict[str, Any]) -> int:
    """Tokens of an input, those of its picture or clip left out."""
    ids = processor.process_documents([item], prompt="")["input_ids"][0]
    media = processor.tokenizer.convert_tokens_to_ids(["<|image_pad|>", "<|video_pad|>"])
    return int((~torch.isin(ids, torch.tensor(media))).sum())

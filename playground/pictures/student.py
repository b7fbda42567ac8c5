"""The fresh model that learns pictures and words: a Qwen2-VL of two layers over a vocabulary of CLDR's words."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from plume import PlumeConfig, PlumeForEmbedding, PlumeProcessor, PromptLayout
from plume.hub.random_checkpoint import build_backbone_config, build_tokenizer
from plume.playground.pictures.drawing import EDGE
from plume.start import build_processor as new_processor

LAYOUT = PromptLayout(system="", query_prompt="")
PATCH = 10
SHAPE: dict[str, Any] = {
    "text": {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 2, "num_attention_heads": 8},
    "vision": {"depth": 5, "embed_dim": 192, "num_heads": 6, "mlp_ratio": 4, "patch_size": PATCH},
    "mrope_section": [4, 6, 6],
    "vocab_size": None,
}
_NUM_PIECES = 9500


def build_processor(words: Sequence[str]) -> PlumeProcessor:
    """Processor with a vocabulary trained on words; bytes are its fallback, so every script can be written."""
    tokenizer = build_tokenizer([*words, *["user\nassistant\nsystem\n"] * 100], num_pieces=_NUM_PIECES)
    tokenizer.add_tokens(["</think>", "<answer>", "</answer>"])
    return new_processor(tokenizer, LAYOUT, patch_size=PATCH, min_pixels=EDGE**2, max_pixels=EDGE**2)


def build_student(processor: PlumeProcessor, seed: int = 0, **fields: Any) -> PlumeForEmbedding:
    """A fresh model.

    Args:
        processor: From :func:`build_processor`.
        seed: Seed of the weights.
        **fields: Fields of [`PlumeConfig`].
    """
    backbone = build_backbone_config(processor.tokenizer, shape=SHAPE)
    config = PlumeConfig.from_backbone(backbone, **{**processor.token_fields(), "expert_dropout": 0.0, "expert_expansion": 1, **fields})
    torch.manual_seed(seed)
    return PlumeForEmbedding(config)


def save_student(folder: Path, words: Sequence[str], seed: int = 0, **fields: Any) -> Path:
    """Write a fresh model and its processor as a checkpoint."""
    processor = build_processor(words)
    build_student(processor, seed, **fields).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder

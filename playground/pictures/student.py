"""The fresh model that learns pictures and words: a Qwen2-VL of two layers over a vocabulary of CLDR's words."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from plume import PlumeConfig, PlumeForEmbedding, PlumeProcessor, PromptLayout
from plume.hub.random_checkpoint import build_backbone_config, build_tokenizer
from plume.playground.pictures.drawing import EDGE
from plume.start import build_processor as new_processor

LAYOUT = PromptLayout(system="", query_prompt="")
# The whole picture is one visual token. Its merger sees all patches side by side, each in its place. Means of several
# tokens, as a fresh decoder takes them, do not know where anything was: the tower then learned nothing in 400 steps.
PATCH, MERGE = 12, 5
SHAPE: dict[str, Any] = {
    "text": {
        "hidden_size": 256,
        "intermediate_size": 1024,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
    },
    "vision": {
        "depth": 4,
        "embed_dim": 72,
        "num_heads": 3,
        "mlp_ratio": 4,
        "patch_size": PATCH,
        "spatial_merge_size": MERGE,
    },
    "mrope_section": [4, 6, 6],
    "vocab_size": None,
}
_NUM_PIECES = 9500


def build_processor(words: Sequence[str]) -> PlumeProcessor:
    """Processor with a vocabulary trained on words; bytes are its fallback, so every script can be written."""
    tokenizer = build_tokenizer([*words, *["user\nassistant\nsystem\n"] * 100], num_pieces=_NUM_PIECES)
    tokenizer.add_tokens(["</think>", "<answer>", "</answer>"])
    return new_processor(tokenizer, LAYOUT, patch_size=PATCH, merge_size=MERGE, min_pixels=EDGE**2, max_pixels=EDGE**2)


def build_student(processor: PlumeProcessor, seed: int = 0, **fields: Any) -> PlumeForEmbedding:
    """A fresh model.

    Args:
        processor: From :func:`build_processor`.
        seed: Seed of the weights.
        **fields: Fields of [`PlumeConfig`].
    """
    backbone = build_backbone_config(processor.tokenizer, shape=SHAPE)
    config = PlumeConfig.from_backbone(
        backbone, **{**processor.token_fields(), "expert_dropout": 0.0, "expert_expansion": 1, **fields}
    )
    torch.manual_seed(seed)
    model = PlumeForEmbedding(config)
    with torch.no_grad():  # transformers' scale of 0.02 is that of wide models; this narrow one hardly moves from there
        for part in (model.model.visual, model.get_decoder()):
            for module in part.modules():
                if isinstance(module, (nn.Linear, nn.Conv3d)):
                    module.weight.normal_(std=module.weight[0].numel() ** -0.5)
    _start_average(model)
    return model


@torch.no_grad()
def _start_average(model: PlumeForEmbedding) -> None:
    """Let the first layer start by averaging what it reads, which every pretrained model can do and a fresh one cannot.

    Queries and keys start small, so every token gets the same attention; values and outputs start as the identity.
    """
    attention = model.get_decoder().layers[0].self_attn
    for projection in (attention.q_proj, attention.k_proj):
        projection.weight.mul_(0.1)
    for projection in (attention.v_proj, attention.o_proj):
        projection.weight.copy_(torch.eye(len(projection.weight)))


def save_student(folder: Path, words: Sequence[str], seed: int = 0, **fields: Any) -> Path:
    """Write a fresh model and its processor as a checkpoint."""
    processor = build_processor(words)
    build_student(processor, seed, **fields).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder

"""The fresh model that learns pictures and words: a Qwen2-VL of two layers over a vocabulary of CLDR's words."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from plume import PlumeForEmbedding, PlumeProcessor, PromptLayout
from plume.hub.random_checkpoint import build_backbone_config, build_tokenizer
from plume.playground.pictures.drawing import EDGE
from plume.start import build_config
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
_NO_WEIGHT = -1.5


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
    config = build_config(
        backbone, **{**processor.token_fields(), "expert_dropout": 0.0, "expert_expansion": 1, **fields}
    )
    torch.manual_seed(seed)
    model: Any = PlumeForEmbedding(config)
    with torch.no_grad():  # transformers' scale of 0.02 is that of wide models; this narrow one hardly moves from there
        for part in (model.model.visual, model.get_decoder()):
            for module in part.modules():
                if isinstance(module, (nn.Linear, nn.Conv3d)):
                    module.weight.normal_(std=module.weight[0].numel() ** -0.5)
    _start_average(model, processor)
    return model


@torch.no_grad()
def _start_average(model: Any, processor: PlumeProcessor) -> None:
    """Let the decoder start by averaging pieces and visual tokens, each at unit size, and by doing nothing else.

    The first layer's values and outputs are the identity, and every other output is zero. The tokens of the prompt say
    nothing about an input: they lie on an axis of their own, which the values leave out.
    """
    layers = model.get_decoder().layers
    first = layers[0].self_attn
    for projection in (first.v_proj, first.o_proj):
        projection.weight.copy_(torch.eye(len(projection.weight)))
    first.v_proj.weight[:, 0] = 0
    first.q_proj.weight.zero_()
    for layer in layers:
        layer.mlp.down_proj.weight.zero_()
    for layer in layers[1:]:
        layer.self_attn.o_proj.weight.zero_()
    axis = torch.eye(model.config.text_config.hidden_size)[0]
    model.get_input_embeddings().weight[_prompt_tokens(model, processor)] = axis


def _prompt_tokens(model: Any, processor: PlumeProcessor) -> torch.Tensor:
    picture = Image.new("RGB", (EDGE, EDGE))
    prompt = processor.process_documents([{"image": picture}], prompt="")["input_ids"][0]
    return torch.cat([prompt, torch.tensor(model.config.suffix_token_ids)]).unique()


@torch.no_grad()
def start_weighing(model: Any, processor: PlumeProcessor, direction: torch.Tensor) -> None:
    """Let the first layer weigh what it averages, by the softmax of its products with a direction.

    Every head compares one number of a key, which its slowest rotation leaves as it is, with a bias of the query.
    Tokens of the prompt get no weight.

    Args:
        model: Changed in place.
        processor: Its processor.
        direction: ``(D,)``; for inputs at unit length.
    """
    attention, table = model.get_decoder().layers[0].self_attn, model.get_input_embeddings().weight
    width, size = len(direction), attention.head_dim
    said = torch.ones(len(table), dtype=torch.bool)
    said[_prompt_tokens(model, processor)] = False
    table[said, 0] = 0
    merger = model.model.visual.merger.mlp[-1]
    merger.weight[0], merger.bias[0] = 0, 0
    row = direction / width**0.5  # inputs of the layer have this length
    row[0] = _NO_WEIGHT
    attention.k_proj.weight[size - 1 :: size] = row
    attention.q_proj.bias[size - 1 :: size] = size**0.5


def save_student(folder: Path, words: Sequence[str], seed: int = 0, **fields: Any) -> Path:
    """Write a fresh model and its processor as a checkpoint."""
    processor = build_processor(words)
    build_student(processor, seed, **fields).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder

"""The model that learns the world: a Qwen2-VL of two layers with fresh weights, small enough for a laptop.

Two layers are the point: a single pass can do one look-up or two, a chain of three needs more depth than it has, and
the latent steps are where that depth can come from.
"""

import random
from pathlib import Path
from typing import Any

import torch
from torch import nn

from plume import PlumeConfig, PlumeForEmbedding, PlumeProcessor, PromptLayout
from plume.hub.random_checkpoint import build_backbone_config, build_tokenizer
from plume.latent_plume import LatentTransition
from plume.playground.drawing import CELL
from plume.playground.tasks import TASKS, draw_example
from plume.prompt_plume import build_chat_template

LAYOUT = PromptLayout(system="")
_SHAPE: dict[str, Any] = {
    "text": {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 8},
    "vision": {"depth": 1, "embed_dim": 128, "num_heads": 4, "mlp_ratio": 2},
    "mrope_section": [2, 3, 3],
    "vocab_size": None,
}
_EMBEDDING_SCALE = 0.3
_CORPUS_ROWS = 400


def build_processor() -> PlumeProcessor:
    """Processor with a vocabulary trained on the words of the world, so that each is one token."""
    rng, lines = random.Random(0), []
    for index in range(_CORPUS_ROWS):
        task = list(TASKS.values())[index % len(TASKS)]
        example = draw_example(task, rng, "train")
        lines += [
            example.query.text,
            example.target.text,
            "".join(example.thought),
            f"<answer>{example.answer}</answer>",
        ]
        lines.append("user\nassistant\nsystem\n")
    tokenizer = build_tokenizer([line for line in lines if line])
    tokens = [token for token in LAYOUT.row_sources() if token not in tokenizer.get_vocab()]
    tokenizer.add_tokens(tokens)
    return PlumeProcessor(
        tokenizer,
        build_chat_template(LAYOUT),
        query_prompt="",
        min_pixels=(2 * CELL) ** 2,
        video_min_pixels=(2 * CELL) ** 2,
    )


def build_student(processor: PlumeProcessor, seed: int = 0, **fields: Any) -> PlumeForEmbedding:
    """A fresh model.

    Args:
        processor: From :func:`build_processor`.
        seed: Seed of the weights.
        **fields: Fields of [`PlumeConfig`], such as those of the ablations.
    """
    backbone = build_backbone_config(processor.tokenizer, shape=_SHAPE)
    config = PlumeConfig.from_backbone(backbone, **{**processor.token_fields(), "expert_dropout": 0.0, **fields})
    torch.manual_seed(seed)
    model = PlumeForEmbedding(config)
    adapter = {id(p) for m in model.modules() if isinstance(m, LatentTransition) for p in m.parameters()}
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            for parameter in module.parameters(recurse=False):
                if id(parameter) not in adapter and parameter.ndim > 1:
                    scale = _EMBEDDING_SCALE if isinstance(module, nn.Embedding) else parameter[0].numel() ** -0.5
                    parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return model


def save_student(folder: Path, seed: int = 0, **fields: Any) -> Path:
    """Write a fresh model and its processor as a checkpoint that ``training/train.py`` starts from."""
    processor = build_processor()
    build_student(processor, seed, **fields).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder

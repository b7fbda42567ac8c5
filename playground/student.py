"""The model that learns the world: a Qwen2-VL of two layers with fresh weights, small enough for a laptop.

Two layers are the point: a single pass can do one look-up or two, a chain of three needs more depth than it has, and
the latent steps are where that depth can come from.
"""

import random
from pathlib import Path
from typing import Any

import torch
from torch import nn

from plume import PlumeForEmbedding, PlumeProcessor, PromptLayout
from plume.hub.random_checkpoint import build_backbone_config, build_tokenizer
from plume.latent_plume import LatentTransition
from plume.playground.drawing import CELL, COLORS, SIGNS
from plume.playground.tasks import PLAIN, TASKS, draw_example
from plume.start import build_config
from plume.start import build_processor as new_processor

LAYOUT = PromptLayout(system="")
_SHAPE: dict[str, Any] = {
    "text": {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 8},
    "vision": {"depth": 1, "embed_dim": 128, "num_heads": 4, "mlp_ratio": 2},
    "mrope_section": [2, 3, 3],
    "vocab_size": None,
}
_EMBEDDING_SCALE = 0.3
_CORPUS_ROWS = 400
_LOOK_BACK, _ALIKE = 8.0, 1.0


def build_processor() -> PlumeProcessor:
    """Processor with a vocabulary trained on the words of the world, so that each is one token."""
    rng, lines = random.Random(0), []
    for index in range(_CORPUS_ROWS):
        task = list(TASKS.values())[index % len(TASKS)]
        example = draw_example(task, rng, "train")
        lines += [
            example.query.text,
            example.target.text,
            "".join((*example.thought, *PLAIN)),
            f"<answer>{example.answer}</answer>",
        ]
        lines += [
            "user\nassistant\nsystem\n",
            "".join(f" {word.capitalize()} {word.upper()}" for word in (*COLORS, *SIGNS)),
        ]
    tokenizer = build_tokenizer([line for line in lines if line])
    tokenizer.add_tokens(["</think>", "<answer>", "</answer>"])
    return new_processor(
        tokenizer,
        LAYOUT,
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
    config = build_config(backbone, **{**processor.token_fields(), "expert_dropout": 0.0, **fields})
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
        rows = model.get_input_embeddings().weight
        for word in (*COLORS, *SIGNS):  # a pretrained model knows that red, Red and RED are one color
            usual = _one_token(processor, f" {word}")
            for form, share in ((word.capitalize(), 0.5), (word.upper(), 0.95)):
                other = _one_token(processor, f" {form}")
                rows[other] = share * rows[usual] + (1 - share**2) ** 0.5 * rows[other]
        _start_induction(model)
    return model


def _one_token(processor: PlumeProcessor, text: str) -> int:
    (token,) = processor.tokenizer(text).input_ids
    return int(token)


def _start_induction(model: PlumeForEmbedding) -> None:
    """Let the first head of each layer start as half of an induction head, which every pretrained model has.

    Layer 0 looks at the token before, whatever it is: biases are vectors that every position has, and turned back by
    the rotation of one position, the product of the query's and the key's is largest there. Layer 1 looks for what
    that head wrote. Without them texts are not read within this model's few hundred steps, and pictures later.
    """
    text = model.config.text_config
    size = text.hidden_size // text.num_attention_heads
    half = size // 2
    angles = text.rope_parameters["rope_theta"] ** (-torch.arange(half) / half)
    before, alike = (layer.self_attn for layer in model.get_decoder().layers)
    fast, slow = (angles > 0.1).float(), (angles < 0.1).float().repeat(2)
    for projection, bias in (
        (before.q_proj, torch.cat([fast * angles.cos(), -fast * angles.sin()])),
        (before.k_proj, torch.cat([fast, torch.zeros(half)])),
    ):
        projection.weight[:size] = 0
        projection.bias[:size] = _LOOK_BACK * bias
    for projection in (alike.q_proj, alike.k_proj):
        projection.weight[:size] = _ALIKE * slow[:, None] * before.o_proj.weight[:, :size].T


def save_student(folder: Path, seed: int = 0, **fields: Any) -> Path:
    """Write a fresh model and its processor as a checkpoint that ``training/train.py`` starts from."""
    processor = build_processor()
    build_student(processor, seed, **fields).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder

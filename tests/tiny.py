"""Tiny random Qwen2-VL checkpoints in the layouts that exist on the Hub, built offline in a second."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import Qwen2Tokenizer, Qwen2VLConfig, Qwen2VLForConditionalGeneration
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from plume import PAPER_LAYOUT, PlumeForEmbedding, PlumeProcessor, PromptLayout

SPECIALS = [
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
]  # fmt: skip
CORPUS = ["You are a helpful assistant. system user assistant", "Find the item that matches the given query.",
          "a red bus at a stop, two dogs on a sofa, the total of the second row"] * 4  # fmt: skip


def tiny_tokenizer() -> Qwen2Tokenizer:
    """A Qwen2 tokenizer with a 512-token vocabulary."""
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.NFC()
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trained.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=498, show_progress=False, initial_alphabet=alphabet)
    )
    model = json.loads(trained.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=model["vocab"],
        merges=[tuple(merge) for merge in model["merges"]],
        padding_side="left",
        model_max_length=4096,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
    )
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIALS})
    return tokenizer


def tiny_config(tokenizer: Qwen2Tokenizer, tied: bool = True) -> Qwen2VLConfig:
    """A two-layer Qwen2-VL with room for new tokens in its table, as Qwen2-VL has."""
    to_id = tokenizer.convert_tokens_to_ids
    return Qwen2VLConfig(
        text_config={
            "vocab_size": len(tokenizer) + 16,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 2]},
            "bos_token_id": to_id("<|endoftext|>"),
            "eos_token_id": to_id("<|im_end|>"),
            "pad_token_id": to_id("<|endoftext|>"),
        },
        vision_config={
            "depth": 2,
            "embed_dim": 32,
            "hidden_size": 32,
            "num_heads": 2,
            "mlp_ratio": 2,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
        image_token_id=to_id("<|image_pad|>"),
        video_token_id=to_id("<|video_pad|>"),
        vision_start_token_id=to_id("<|vision_start|>"),
        vision_end_token_id=to_id("<|vision_end|>"),
        tie_word_embeddings=tied,
    )


def save_backbone(folder: Path, key_layout: str = "hub", tied: bool = True) -> Path:
    """Save a random Qwen2-VL checkpoint.

    Args:
        folder: Where to.
        key_layout: ``"hub"`` for ``visual.* / model.layers.*``, ``"nested"`` for ``model.visual.* /
            model.language_model.*`` (saved by transformers 4.52 and later 4.x versions).
        tied: Whether the LM head shares the token embeddings (2B) or not (7B).
    """
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    model = Qwen2VLForConditionalGeneration(tiny_config(tokenizer, tied))
    with torch.no_grad():  # weights as strong as trained ones: at the initial scale no error would be visible
        for name, parameter in model.named_parameters():
            if "norm" in name or "ln_q" in name:
                parameter.uniform_(0.5, 1.5)
            elif parameter.ndim > 1 and "embed" not in name:
                parameter.mul_(10)
            else:
                parameter.normal_()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if key_layout == "nested":
        path = folder / "model.safetensors"
        weights = {_nested(name): tensor for name, tensor in load_file(path).items()}
        save_file(weights, path, metadata={"format": "pt"})
    return folder


def _nested(name: str) -> str:
    if name.startswith(("lm_head", "model.visual", "model.language_model")):
        return name
    return f"model.{name}" if name.startswith("visual") else name.replace("model.", "model.language_model.", 1)


def make_plume(
    backbone: Path, layout: PromptLayout = PAPER_LAYOUT, **fields: object
) -> tuple[PlumeForEmbedding, PlumeProcessor]:
    """A PLUME model with a randomised (not identity) adapter, and its processor, on a saved backbone."""
    processor = PlumeProcessor.from_backbone(
        backbone, layout, max_pixels=28 * 28 * 16, video_min_pixels=56 * 56, video_max_pixels=28 * 28 * 8
    )
    torch.manual_seed(1)
    model = PlumeForEmbedding.from_backbone(
        backbone, {**processor.token_fields(), "num_latent_steps": 3, "max_latent_steps": 8, **fields}, processor.row_sources
    )
    randomize_adapter(model)
    return model.eval(), processor


def randomize_adapter(model: PlumeForEmbedding) -> None:
    """Give the adapter weights that a test would miss: large enough to change every vector."""
    with torch.no_grad():
        for parameter in model.latent_transition.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)

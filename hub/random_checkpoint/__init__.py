"""Random checkpoints of every backbone in the layouts that exist on the Hub, built offline.

They replace weights that cannot be downloaded: real files, real names, real shapes in ratio, no knowledge.
Weights depend on the seed and the tensor's name alone, so every library version builds the same checkpoint.
``python -m plume.hub.random_checkpoint FOLDER`` writes one.
"""

import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import nn
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from plume import PAPER_LAYOUT, PlumeModel, PlumeProcessor, PromptLayout
from plume.hub.sizes import SIZES
from plume.start import build_config, build_processor, model_class_of

SPECIAL_TOKENS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
# Ordinary tokens that later tokenizers add. They take the ids that PLUME's own tokens have after Qwen2-VL's.
_TOOL_TOKENS = [
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
]
_THINK_TOKENS = ["<tool_response>", "</tool_response>", "<think>", "</think>"]
_ADDED_TOKENS: dict[str, list[str]] = {
    "qwen2_vl": [],
    "qwen2_5_vl": _TOOL_TOKENS,
    "qwen3_vl": [*_TOOL_TOKENS, *_THINK_TOKENS],
}
_CORPUS = [
    "You are a helpful assistant. system user assistant",
    "Find the item that matches the given query.",
    "a red bus at a stop, two dogs on a sofa, the total of the second row",
] * 4
_SPARE_ROWS = 16  # Qwen2-VL's embedding table is longer than its vocabulary too

_CLASSES: dict[str, tuple[Any, Any]] = {  # configuration and model
    "qwen2_vl": (Qwen2VLConfig, Qwen2VLForConditionalGeneration),
    "qwen2_5_vl": (Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration),
    "qwen3_vl": (Qwen3VLConfig, Qwen3VLForConditionalGeneration),
}


def build_tokenizer(
    corpus: Sequence[str] = _CORPUS, model_type: str = "qwen2_vl", num_pieces: int = 500
) -> Qwen2Tokenizer:
    """A Qwen2 tokenizer with the added tokens of a backbone and at most so many pieces learned from a corpus."""
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.NFC()
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if model_type == "qwen3_vl":  # its embedder reads a vector after the role, one piece in the real vocabulary
        corpus = [*corpus, *["assistant"] * 16]
    trained.train_from_iterator(
        corpus, trainers.BpeTrainer(vocab_size=num_pieces, show_progress=False, initial_alphabet=alphabet)
    )
    model = json.loads(trained.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=model["vocab"],
        merges=[tuple(merge) for merge in model["merges"]],  # type: ignore[misc]
        padding_side="left",
        model_max_length=4096,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
    )
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL_TOKENS})
    tokenizer.add_tokens(_ADDED_TOKENS[model_type])
    return tokenizer


def build_backbone_config(
    tokenizer: Qwen2Tokenizer,
    size: str = "tiny",
    tied: bool = True,
    shape: dict[str, Any] | None = None,
    model_type: str = "qwen2_vl",
) -> Any:
    """Configuration of a backbone of a size in :data:`~plume.hub.sizes.SIZES`, or of another shape, for this tokenizer.

    Args:
        tokenizer: From :func:`build_tokenizer`.
        size: A key of :data:`~plume.hub.sizes.SIZES`.
        tied: Whether the LM head shares the token embeddings.
        shape: Shape instead of the one of ``size``, with the same keys.
        model_type: One of :data:`plume.hub.MODEL_TYPES`.

    Returns:
        A ``Qwen2VLConfig``, ``Qwen2_5_VLConfig`` or ``Qwen3VLConfig``.
    """
    shape = shape or SIZES[size]
    to_id: Any = tokenizer.convert_tokens_to_ids
    text = {
        "num_key_value_heads": 2,
        **shape["text"],
        "vocab_size": shape["vocab_size"] or len(tokenizer) + _SPARE_ROWS,
        "max_position_embeddings": 32768,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": shape["mrope_section"]},
        "bos_token_id": to_id("<|endoftext|>"),
        "eos_token_id": to_id("<|im_end|>"),
        "pad_token_id": to_id("<|endoftext|>"),
    }
    config_class, _ = _CLASSES[model_type]
    return config_class(
        text_config=text | (_qwen3_text(shape["text"], tied) if model_type == "qwen3_vl" else {}),
        vision_config=_VISION[model_type](shape["vision"], shape["text"]["hidden_size"]),
        image_token_id=to_id("<|image_pad|>"),
        video_token_id=to_id("<|video_pad|>"),
        vision_start_token_id=to_id("<|vision_start|>"),
        vision_end_token_id=to_id("<|vision_end|>"),
        tie_word_embeddings=tied,
    )


def _qwen3_text(text: dict[str, int], tied: bool) -> dict[str, Any]:
    """What Qwen3-VL states beyond Qwen2-VL: a head width of its own and interleaved rotary sections."""
    head_dim = max(16, text["hidden_size"] // text["num_attention_heads"])  # tiny: more than its share, as in the 4B
    height = width = head_dim * 5 // 32  # [24, 20, 20] at the real 128
    return {
        "head_dim": head_dim,
        "num_hidden_layers": max(3, text["num_hidden_layers"]),  # every deepstack feature meets a later layer
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 5e6,
            "mrope_section": [head_dim // 2 - height - width, height, width],
            "mrope_interleaved": True,
        },
        "tie_word_embeddings": tied,  # the Hub's files say it at both levels
    }


def _qwen2_vision(vision: dict[str, int], width: int) -> dict[str, Any]:
    return {**vision, "hidden_size": width}


def _qwen2_5_vision(vision: dict[str, int], width: int) -> dict[str, Any]:
    depth = vision["depth"]
    return {
        **_later_vision(vision, width),
        "fullatt_block_indexes": list(range(depth - 1, -1, -8))[::-1],  # [7, 15, 23, 31] of the real 32
        "window_size": 112 if depth >= 8 else 56,  # pictures of tests are small: still several windows
        "tokens_per_second": 2,
    }


def _qwen3_vision(vision: dict[str, int], width: int) -> dict[str, Any]:
    depth = vision["depth"]
    return {
        **_later_vision(vision, width),
        "num_position_embeddings": 48 * 48 if depth >= 8 else 8 * 8,
        # [5, 11, 17] of the real 24
        "deepstack_visual_indexes": [depth * n // 4 - 1 for n in (1, 2, 3)] if depth >= 8 else list(range(depth)),
    }


def _later_vision(vision: dict[str, int], width: int) -> dict[str, Any]:
    """Qwen2-VL's fields under the names of its successors."""
    return {
        "depth": vision["depth"],
        "hidden_size": vision["embed_dim"],
        "intermediate_size": vision["embed_dim"] * vision["mlp_ratio"],
        "num_heads": vision["num_heads"],
        "out_hidden_size": width,
    }


_VISION = {"qwen2_vl": _qwen2_vision, "qwen2_5_vl": _qwen2_5_vision, "qwen3_vl": _qwen3_vision}


def fill_weights(module: nn.Module, seed: int = 0) -> None:
    """Fill every parameter with values of a trained model's scale, by name and seed alone.

    At the usual initial scale of 0.02 a small model hardly transforms its input, and no error in it would show.
    """
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            generator = torch.Generator().manual_seed(seed + zlib.crc32(name.encode()))
            values = torch.randn(parameter.shape, generator=generator)
            is_scale = parameter.ndim == 1 and name.endswith("weight")
            fan_in = parameter.shape[-1] if parameter.ndim == 2 else parameter[0].numel() ** 0.5
            scale = 1.0 if "embed" in name else fan_in**-0.5 if parameter.ndim > 1 else 0.2
            parameter.copy_(1 + 0.2 * values if is_scale else scale * values)


def save_random_backbone(
    folder: Path,
    size: str = "tiny",
    *,
    model_type: str = "qwen2_vl",
    nested_keys: bool = False,
    tied: bool = True,
    seed: int = 0,
) -> Path:
    """Save a random backbone checkpoint with tokenizer.

    Args:
        folder: Where to.
        size: A key of :data:`~plume.hub.sizes.SIZES`.
        model_type: One of :data:`plume.hub.MODEL_TYPES`.
        nested_keys: Name tensors ``model.visual.* / model.language_model.*``, as transformers 4.52 saved them,
            instead of the Hub's ``visual.* / model.layers.*``. Qwen3-VL has the nested names only.
        tied: Whether the LM head shares the token embeddings, as in the 2B model but not in the 7B one.
        seed: Seed of the weights.

    Returns:
        ``folder``.
    """
    tokenizer = build_tokenizer(model_type=model_type)
    _, model_class = _CLASSES[model_type]
    model = model_class(build_backbone_config(tokenizer, size, tied, model_type=model_type))
    fill_weights(model, seed)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if nested_keys:
        path = folder / "model.safetensors"
        save_file({_nested(name): weight for name, weight in load_file(path).items()}, path, {"format": "pt"})
    return folder


def _nested(name: str) -> str:
    if name.startswith(("lm_head", "model.visual", "model.language_model")):
        return name
    return f"model.{name}" if name.startswith("visual") else name.replace("model.", "model.language_model.", 1)


def save_random_plume(
    folder: Path,
    size: str = "tiny",
    layout: PromptLayout = PAPER_LAYOUT,
    *,
    model_type: str = "qwen2_vl",
    seed: int = 0,
    **fields: object,
) -> tuple[PlumeModel, PlumeProcessor]:
    """Save a random PLUME checkpoint, complete as a Hub repository.

    Args:
        folder: Where to.
        size: A key of :data:`~plume.hub.sizes.SIZES`.
        layout: Token strings and prompt.
        model_type: Of the backbone, one of :data:`plume.hub.MODEL_TYPES`.
        seed: Seed of the weights.
        **fields: Fields of [`PlumeConfig`].

    Returns:
        The saved model, in evaluation mode, and processor.
    """
    save_random_backbone(folder, size, model_type=model_type, seed=seed)
    processor = build_processor(
        build_tokenizer(model_type=model_type),
        layout,
        model_type,
        max_pixels=28 * 28 * 16,
        video_min_pixels=56 * 56,
        video_max_pixels=28 * 28 * 8,
    )
    model_class = model_class_of(model_type)
    config = build_config(
        build_backbone_config(processor.tokenizer, size, model_type=model_type),
        **{**processor.token_fields(), **fields},
    )
    model = model_class(config).eval()
    fill_weights(model, seed)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model, processor

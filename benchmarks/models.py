"""Random models and inputs that every benchmark shares: only shapes matter here, no file is read."""

from typing import Any

import torch
from transformers.initialization import no_init_weights

from plume import PlumeConfig, PlumeForEmbedding
from plume.hub.random_checkpoint import build_backbone_config, build_tokenizer

TOKENS = {"anchor_token_id": 1, "latent_start_token_id": 2, "latent_end_token_id": 3, "embedding_token_id": 4}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

_NOISE = 1 << 22  # values drawn once and repeated over all weights: drawing two thousand million takes a minute
_PATCH_WIDTH = 3 * 2 * 14 * 14
# Patch grids (time, height, width); four neighbouring patches are one token.
_GRIDS = {"image448": (1, 32, 32), "video8": (4, 24, 24)}
INPUTS = ("text64", "text512", "image448", "video8")


def build_model(size: str, dtype: torch.dtype = torch.float32, device: str = "cpu", **fields: Any) -> PlumeForEmbedding:
    """A random model in evaluation mode; token ids are arbitrary.

    Args:
        size: A key of :data:`~plume.hub.random_checkpoint.SIZES`.
        dtype: Of the weights; rotary frequencies stay in float32.
        device: Torch device.
        **fields: Fields of [`PlumeConfig`].
    """
    config = PlumeConfig.from_backbone(build_backbone_config(build_tokenizer(), size), **{**TOKENS, **fields})
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # parameters are born in their type: 2b in float32 first would need 9 GB
    try:
        with torch.device(device), no_init_weights():
            model = PlumeForEmbedding(config).eval()
    finally:
        torch.set_default_dtype(before)
    model.tie_weights()
    _fill(model)
    return model


@torch.no_grad()
def _fill(model: PlumeForEmbedding) -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(_NOISE, generator=generator).to(model.device, model.dtype)
    for name, parameter in model.named_parameters():
        flat = parameter.view(-1)
        fan_in = parameter.shape[-1] if parameter.ndim == 2 else parameter[0].numel() ** 0.5
        scale = 1.0 if "embed" in name else fan_in**-0.5 if parameter.ndim > 1 else 0.1
        for start in range(0, flat.numel(), _NOISE):
            piece = flat[start : start + _NOISE]
            piece.copy_(noise[: len(piece)] * scale)
        if parameter.ndim == 1 and name.endswith("weight"):
            flat.add_(1)


def build_inputs(model: PlumeForEmbedding, kind: str, batch: int) -> dict[str, torch.Tensor]:
    """Arguments of one forward pass.

    Args:
        model: The model.
        kind: One of :data:`INPUTS`: a text of 64 or 512 tokens; a picture of 448 x 448 (256 tokens) or 8 frames of
            336 x 336 (576 tokens), each with 64 tokens of text.
        batch: Rows, all of this kind and length.
    """
    generator = torch.Generator().manual_seed(0)
    length = int(kind.removeprefix("text")) if kind.startswith("text") else 64
    ids = torch.randint(8, 250, (batch, length), generator=generator)
    ids[:, -2], ids[:, -1] = TOKENS["anchor_token_id"], TOKENS["latent_start_token_id"]
    inputs: dict[str, torch.Tensor] = {}
    if kind in _GRIDS:
        frames, height, width = _GRIDS[kind]
        is_image = kind.startswith("image")
        token = model.config.image_token_id if is_image else model.config.video_token_id
        ids = torch.cat([torch.full((batch, frames * height * width // 4), token), ids], dim=1)
        patches = torch.randn(batch * frames * height * width, _PATCH_WIDTH, generator=generator)
        grid = torch.tensor([_GRIDS[kind]] * batch)
        names = ("pixel_values", "image_grid_thw") if is_image else ("pixel_values_videos", "video_grid_thw")
        inputs = dict(zip(names, (patches.to(model.dtype), grid), strict=True))
    inputs |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return {name: value.to(model.device) for name, value in inputs.items()}

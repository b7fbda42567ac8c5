"""The parts of a model as graphs, each a module that ``torch.onnx.export`` can follow.

Legend: B batch, T tokens, P columns of the cache, S new columns, L = P + S, D width, F visual tokens, N media.

- :class:`Tokens`: token ids, grids and visual features become input vectors and positions.
- :class:`Decoder`: one pass of the decoder over its cache. Its input vectors are refined latent states, if there are
  any, and vectors as given; so the same graph, with one copy of the weights, reads the prefix, thinks a step, and reads
  the suffix in the same pass as the last step.
- :class:`Vision`: pictures of one size, or the frames of a clip, become visual features.

The layers are transformers' own; only what they are called with is written here.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, Cache

from plume.cache_plume import CACHE_ARGUMENT
from plume.latent_plume import LatentExperts
from plume.modeling_plume import PlumeModel
from plume.positions_plume import Media, rollout_positions

_ATTENTION = "plume_grouped"


class Tokens(nn.Module):
    """Input vectors and positions of a batch of prefixes."""

    def __init__(self, model: PlumeModel) -> None:
        super().__init__()
        self.embedding = model.get_input_embeddings()
        self.config = model.config

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        image_grid_thw: torch.Tensor,
        video_grid_thw: torch.Tensor,
        places: torch.Tensor,
        features: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Lay visual features into the token embeddings.

        Args:
            input_ids: ``(B, T)``.
            attention_mask: ``(B, T)``.
            image_grid_thw: ``(N + 1, 3)``; the last row is not looked at, so that there always is one.
            video_grid_thw: ``(N + 1, 3)``, likewise.
            places: Columns of the visual tokens in the flattened batch, ``(F,)``.
            features: ``(F, D)``.

        Returns:
            Input vectors ``(B, T, D)``, and the positions of the prefix and of the first token after it,
            ``(3, B, T + 1)``.
        """
        media = [
            Media(self.config.image_token_id, None, image_grid_thw),
            Media(self.config.video_token_id, None, video_grid_thw),
        ]
        merge_size = self.config.vision_config.spatial_merge_size
        scheme = self.config.position_scheme
        position_ids = rollout_positions(input_ids, attention_mask, media, merge_size, 1, scheme)
        vectors = self.embedding(input_ids)
        laid = vectors.flatten(0, 1).index_put((places,), features)
        return laid.view(vectors.shape), position_ids


class Decoder(nn.Module):
    """The decoder and the transition adapter; takes the model over, and leaves it changed."""

    def __init__(self, model: PlumeModel) -> None:
        super().__init__()
        AttentionInterface.register(_ATTENTION, _attend_in_groups)
        self.decoder = model.model.language_model
        self.decoder.config._attn_implementation = _ATTENTION
        self.transition = model.latent_transition
        single: Any = _SingleExperts(self.transition.experts)
        self.transition.experts = single

    def forward(
        self,
        latents: torch.Tensor,
        anchors: torch.Tensor,
        step: torch.Tensor,
        vectors: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor,
        past: list[torch.Tensor],
    ) -> tuple[torch.Tensor, ...]:
        """Refine the latent states, then read them and the vectors after them.

        Args:
            latents: z(k-1), ``(B, 1, D)``, or none, ``(B, 0, D)``.
            anchors: c(x), of the same shape.
            step: k, ``()``.
            vectors: Input vectors as they are, ``(B, S - 1, D)`` or ``(B, S, D)``.
            attention_mask: ``(B, L)``.
            position_ids: ``(3, B, S)``.
            past: Keys and values of the columns before, layer by layer, ``(B, heads, P, head width)``.

        Returns:
            States ``(B, S, D)``, post-norm, routing probabilities of the latent states ``(B or 0, E)``, and the keys
            and values of all columns, in the order of ``past``.
        """
        refined, router_probs = self.transition(latents.flatten(0, 1), step, anchors.flatten(0, 1))
        x_BSD = torch.cat([refined.view(latents.shape), vectors], dim=1)
        columns = torch.arange(attention_mask.shape[1])
        visible = columns <= columns[attention_mask.shape[1] - x_BSD.shape[1] :, None]
        visible = (visible & attention_mask.bool().unsqueeze(1)).unsqueeze(1)
        # A finite number: rows of padding see nothing, and must not become NaN.
        mask = torch.zeros(visible.shape).masked_fill(~visible, torch.finfo(torch.float32).min)
        cache = _GrowingCache(past)
        shared = {"attention_mask": mask, "position_embeddings": self.decoder.rotary_emb(x_BSD, position_ids)}
        for layer in self.decoder.layers:
            x_BSD = layer(x_BSD, **shared, **{CACHE_ARGUMENT: cache, "use_cache": True})
        return (self.decoder.norm(x_BSD), router_probs, *cache.present)


class _GrowingCache(Cache):
    """Keys and values that come as arguments and leave as results, one pass longer."""

    def __init__(self, past: Sequence[torch.Tensor]) -> None:
        super().__init__(layers=[])
        self.past = past
        self.present: list[torch.Tensor] = []

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Those of all columns so far."""
        new = (key_states, value_states)
        pairs = zip(self.past[2 * layer_idx : 2 * layer_idx + 2], new, strict=True)
        grown = [torch.cat(pair, dim=2) for pair in pairs]
        self.present += grown
        return grown[0], grown[1]


def _attend_in_groups(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    scaling: float,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention in which the queries of a group share their keys and values, which are not repeated for them."""
    batch, heads, length, width = query.shape
    groups = key.shape[1]
    scores = (query * scaling).reshape(batch, groups, -1, width) @ key.transpose(2, 3)
    scores = scores.view(batch, heads, length, -1) + attention_mask
    mixed = scores.softmax(dim=-1).view(batch, groups, -1, key.shape[2]) @ value
    return mixed.view(batch, heads, length, width).transpose(1, 2), None


class _SingleExperts(nn.Module):
    """A bank of experts as products of two matrices each, which can be packed and quantized."""

    def __init__(self, bank: LatentExperts) -> None:
        super().__init__()
        weights = (bank.up_weight, bank.up_bias, bank.down_weight, bank.down_bias)
        experts = zip(*(weight.detach().unbind(0) for weight in weights), strict=True)
        self.experts: Any = nn.ModuleList(nn.ParameterList(expert) for expert in experts)

    def forward(self, x_BD: torch.Tensor) -> torch.Tensor:
        """The output of every expert, ``(E, B, D)``."""
        gelu = nn.functional.gelu
        return torch.stack([gelu(x_BD @ up + bias) @ down + last for up, bias, down, last in self.experts])


class Vision(nn.Module):
    """The vision tower of Qwen2-VL for frames of one size; a frame sees itself only."""

    def __init__(self, model: PlumeModel) -> None:
        super().__init__()
        self.visual = model.model.visual

    def forward(self, patches: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        """Embed frames.

        Args:
            patches: ``(frames, patches of a frame, values)``.
            position_ids: Row and column of each patch, ``(patches of a frame, 2)``.

        Returns:
            Visual tokens of all frames, ``(F, D)``.
        """
        frames, count, _ = patches.shape
        x_FPD = self.visual.patch_embed(patches.flatten(0, 1)).view(frames, count, -1)
        cos, sin = self.visual.rotary_pos_emb(x_FPD, position_ids)
        for block in self.visual.blocks:
            x_FPD = x_FPD + _see(block.attn, block.norm1(x_FPD), cos, sin)
            x_FPD = x_FPD + block.mlp(block.norm2(x_FPD))
        return self.visual.merger(x_FPD.flatten(0, 1))


def _see(attention: Any, x_FPD: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """The attention of a block, frame by frame; transformers' own splits frames by numbers that a graph cannot have."""
    frames, count, width = x_FPD.shape
    turned = attention.qkv(x_FPD).view(frames, count, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
    query, key, value = turned.unbind(0)
    query, key = (x * cos + _rotate_half(x) * sin for x in (query, key))
    scores = (query * attention.scaling) @ key.transpose(2, 3)
    mixed = scores.softmax(dim=-1) @ value
    return attention.proj(mixed.transpose(1, 2).reshape(frames, count, width))


def _rotate_half(x: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat([-second, first], dim=-1)

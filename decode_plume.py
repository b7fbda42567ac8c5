"""Reading a few new positions over a cache: what the backbone's decoder computes, without what it repeats.

Legend: B batch, S new positions, L columns in sight, R reserved columns, D width, G key-value heads, N query heads
per key-value head, W head width, I width of the MLP.

The decoder of transformers serves any call; a latent step is one position per row, again and again. Here:

1. masks and rotary factors of all reserved columns are made once, behind the prefix;
2. keys and values go into room that was kept free behind those of the prefix: nothing is allocated or copied to grow
   (with gradient they are appended, because a backward pass still needs the shorter ones);
3. the N query heads of one key-value head are N queries of one head: no key or value is repeated.

The layers' own modules compute everything, so adapters on them count; :class:`LayerCalls` may replace the linear ones.
Invariant: the states equal those of transformers' decoder to rounding, and so do their gradients.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import Cache
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLDecoderLayer

_RECORDERS = "transformers.utils.output_capturing"


class LayerCalls(NamedTuple):
    """The four products of a decoder layer, each a function of ``(B, S, width)``.

    Attributes:
        qkv: Queries, keys and values side by side, ``(B, S, (G * N + 2 * G) * W)``.
        output: Attention's output projection, ``(B, S, D)``.
        gate_up: The gate and the up projection of the MLP, each ``(B, S, I)``.
        down: Its down projection, ``(B, S, D)``.
    """

    qkv: Callable[[torch.Tensor], torch.Tensor]
    output: Callable[[torch.Tensor], torch.Tensor]
    gate_up: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
    down: Callable[[torch.Tensor], torch.Tensor]


class RoomyCache(Cache):
    """Keys and values, ``(B, G, columns, W)`` per layer, written in place into room for all columns to come."""

    def __init__(self, num_columns: int) -> None:
        super().__init__(layers=[])
        self.num_columns = num_columns
        self.buffers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.filled: dict[int, int] = {}

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the keys and values of the next columns, and return those of all columns so far."""
        start = self.filled.get(layer_idx, 0)
        stop = self.filled[layer_idx] = start + key_states.shape[-2]
        assert stop <= self.num_columns, "more columns than the context reserved"
        if layer_idx not in self.buffers:
            batch, heads, _, width = key_states.shape
            shape = (batch, heads, self.num_columns, width)
            self.buffers[layer_idx] = (key_states.new_empty(shape), value_states.new_empty(shape))
        keys, values = self.buffers[layer_idx]
        keys[:, :, start:stop] = key_states
        values[:, :, start:stop] = value_states
        return (key_states, value_states) if start == 0 else (keys[:, :, :stop], values[:, :, :stop])

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns written so far."""
        return self.filled.get(layer_idx, 0)

    def get_mask_sizes(self, query_length: int | torch.Tensor, layer_idx: int = 0) -> tuple[int, int]:
        """Keys that the next pass sees, and the offset of the first; older libraries give the positions of the pass."""
        if isinstance(query_length, torch.Tensor):
            query_length = len(query_length)
        return self.get_seq_length(layer_idx) + query_length, 0


class AppendingCache(RoomyCache):
    """As :class:`RoomyCache` for use with gradient: nothing that a backward pass needs is written over."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append the keys and values of the next columns, and return those of all columns so far."""
        if layer_idx in self.buffers:
            keys, values = self.buffers[layer_idx]
            key_states, value_states = torch.cat([keys, key_states], dim=-2), torch.cat([values, value_states], dim=-2)
        self.buffers[layer_idx] = (key_states, value_states)
        self.filled[layer_idx] = key_states.shape[-2]
        return key_states, value_states


def can_decode(language_model: Any) -> bool:
    """Whether :class:`StepDecoder` computes what this decoder would.

    Not where something else is to happen at the call of a layer (offloading, sharding, a compiled or a wrapped layer),
    nor with another attention kernel, a sliding window or dropout in attention.
    """
    config = language_model.config
    layers = list(language_model.layers)
    return (
        config._attn_implementation == "sdpa"
        and not (language_model.training and config.attention_dropout)
        and "sliding_attention" not in config.layer_types
        and all(isinstance(layer, Qwen2VLDecoderLayer) for layer in layers)
        and not any(is_watched(module) for layer in layers for module in (layer, layer.self_attn, layer.mlp))
    )


def is_watched(module: nn.Module) -> bool:
    """Whether something else happens at its call; transformers' recorders stay installed but idle."""
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    return "_hf_hook" in module.__dict__ or any(hook.__module__ != _RECORDERS for hook in hooks)


def projections(layer: Any) -> list[nn.Module]:
    """The linear modules of a decoder layer, or what stands in their places."""
    attention, mlp = layer.self_attn, layer.mlp
    into = [attention.q_proj, attention.k_proj, attention.v_proj, mlp.gate_proj, mlp.up_proj]
    return [*into, attention.o_proj, mlp.down_proj]


class StepDecoder:
    """The decoder for the reserved columns behind a prefix.

    Args:
        language_model: The backbone's decoder, without head.
        cache: Keys and values of the prefix, with room for the reserved columns.
        cos_B1RW: Rotary factors of the reserved columns, ``(B, 1, R, W)``.
        sin_B1RW: As ``cos_B1RW``.
        bias_B1RL: 0 where a reserved column sees a column and -inf elsewhere, ``(B, 1, R, T + R)``.
        calls: The products of every layer; those of its own modules where omitted.
    """

    def __init__(
        self,
        language_model: Any,
        cache: RoomyCache,
        cos_B1RW: torch.Tensor,
        sin_B1RW: torch.Tensor,
        bias_B1RL: torch.Tensor,
        calls: list[LayerCalls] | None = None,
    ) -> None:
        self._language_model, self._cache = language_model, cache
        self._cos_B1RW, self._sin_B1RW, self._bias_B1RL = cos_B1RW, sin_B1RW, bias_B1RL
        self._calls = calls or [_own_calls(layer) for layer in language_model.layers]
        self._prefix = bias_B1RL.shape[-1] - bias_B1RL.shape[-2]

    @classmethod
    def behind(
        cls,
        language_model: Any,
        cache: RoomyCache,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor,
        hidden: torch.Tensor,
        calls: list[LayerCalls] | None = None,
    ) -> "StepDecoder":
        """The decoder behind a prefix that was read.

        Args:
            language_model: As in the class.
            cache: As in the class.
            attention_mask: ``(B, T + R)``; the last R columns are reserved and 1.
            position_ids: ``(3, B, T + R)``; equal on the three axes in the reserved columns.
            hidden: States of the prefix, ``(B, T, D)``, for their type and length.
            calls: As in the class.
        """
        prefix = hidden.shape[1]
        cos, sin = language_model.rotary_emb(hidden, position_ids[..., prefix:])
        if cos.ndim == 4:  # older transformers leave the three axes apart; behind the prefix they are equal
            cos, sin = cos[0], sin[0]
        columns = torch.arange(attention_mask.shape[1], device=hidden.device)
        visible_BRL = attention_mask.bool().unsqueeze(1) & (columns <= columns[prefix:, None])
        bias = torch.zeros(visible_BRL.shape, dtype=hidden.dtype, device=hidden.device)
        bias = bias.masked_fill(~visible_BRL, -torch.inf)
        return cls(language_model, cache, cos.unsqueeze(1), sin.unsqueeze(1), bias.unsqueeze(1), calls)

    def with_room(self, prefix: int) -> "StepDecoder":
        """An empty decoder of the same shape behind a prefix of more columns, for :meth:`take`."""
        batch, _, reserved, _ = self._bias_B1RL.shape
        cache = RoomyCache(prefix + reserved)
        for layer, pair in self._cache.buffers.items():
            # Zeros: what nothing attends to must still be finite.
            keys, values = (t.new_zeros(batch, t.shape[1], prefix + reserved, t.shape[3]) for t in pair)
            cache.buffers[layer] = (keys, values)
        bias = self._bias_B1RL.new_full((batch, 1, reserved, prefix + reserved), -torch.inf)
        cos, sin = self._cos_B1RW.clone(), self._sin_B1RW.clone()
        return StepDecoder(self._language_model, cache, cos, sin, bias, self._calls)

    def take(self, other: "StepDecoder") -> None:
        """Copy what another decoder has behind its prefix into this one's places, padded on the left."""
        left = self._prefix - other._prefix
        self._cos_B1RW.copy_(other._cos_B1RW)
        self._sin_B1RW.copy_(other._sin_B1RW)
        self._bias_B1RL[..., :left] = -torch.inf
        self._bias_B1RL[..., left:] = other._bias_B1RL
        for layer, pair in self._cache.buffers.items():
            for mine, theirs in zip(pair, other._cache.buffers[layer], strict=True):
                mine[:, :, :left] = 0  # nothing attends to it, and yet a NaN there would spoil all
                mine[:, :, left : self._prefix] = theirs[:, :, : other._prefix]
        self.rewind()

    def rewind(self) -> None:
        """Read again from behind the prefix."""
        self._cache.filled = dict.fromkeys(self._cache.buffers, self._prefix)

    def read(self, inputs_BSD: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        """States of the input vectors at the columns ``start`` to ``stop - 1``, ``(B, S, D)``, post-norm."""
        assert stop <= self._cache.num_columns, "more columns than the context reserved"
        rows = slice(start - self._prefix, stop - self._prefix)
        cos, sin = self._cos_B1RW[:, :, rows], self._sin_B1RW[:, :, rows]
        bias = self._bias_B1RL[:, :, rows, :stop]
        x_BSD = inputs_BSD
        for index, (layer, calls) in enumerate(zip(self._language_model.layers, self._calls, strict=True)):
            context_BSD = self._attend(calls.qkv(layer.input_layernorm(x_BSD)), index, cos, sin, bias)
            x_BSD = x_BSD + calls.output(context_BSD)
            gate_BSI, up_BSI = calls.gate_up(layer.post_attention_layernorm(x_BSD))
            x_BSD = x_BSD + calls.down(layer.mlp.act_fn(gate_BSI) * up_BSI)
        return self._language_model.norm(x_BSD)

    def _attend(
        self, qkv: torch.Tensor, layer_idx: int, cos: torch.Tensor, sin: torch.Tensor, bias: torch.Tensor
    ) -> torch.Tensor:
        """Attention of the new positions to all columns so far, heads side by side, ``(B, S, G * N * W)``."""
        batch, length, _ = qkv.shape
        groups, width = self._cache.buffers[layer_idx][0].shape[1::2]
        heads = qkv.shape[-1] // width - 2 * groups
        per_group = heads // groups
        qkv = qkv.view(batch, length, -1, width).transpose(1, 2)
        qk, values = qkv[:, : heads + groups], qkv[:, heads + groups :]
        first, second = qk.chunk(2, dim=-1)
        qk = qk * cos + torch.cat((-second, first), dim=-1) * sin
        keys, values = self._cache.update(qk[:, heads:], values, layer_idx)
        folded = qk[:, :heads].reshape(batch, groups, per_group * length, width)
        if length > 1:  # rows are ordered by head of the group, then by position
            bias = bias.repeat(1, 1, per_group, 1)
        context = nn.functional.scaled_dot_product_attention(folded, keys, values, attn_mask=bias)
        return context.reshape(batch, heads, length, width).transpose(1, 2).reshape(batch, length, -1)


def _own_calls(layer: Any) -> LayerCalls:
    attention, mlp = layer.self_attn, layer.mlp
    return LayerCalls(
        lambda x: torch.cat([attention.q_proj(x), attention.k_proj(x), attention.v_proj(x)], dim=-1),
        attention.o_proj,
        lambda x: (mlp.gate_proj(x), mlp.up_proj(x)),
        mlp.down_proj,
    )


__all__ = ["AppendingCache", "LayerCalls", "RoomyCache", "StepDecoder", "can_decode", "is_watched", "projections"]

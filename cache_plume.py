"""The backbone after its prefix: states, KV cache, and a way to read on at the next positions.

Legend: B batch, T prefix length, S new positions, R reserved columns (latent steps and suffix), L = T + R, D width.

1. The prefix goes through the decoder as transformers runs it, media and all.
2. Masks and rotary factors of the R reserved columns are built once.
3. Each later pass calls the decoder layers themselves over the cache, so that hooks, adapters, quantized and patched
   layers count in every latent step.

:class:`CachedContext` keeps keys and values (C(k) of Eq. 3). :class:`RecomputedContext` runs the whole grown sequence
again, to the same states, for reentrant gradient checkpointing and for transformers that drop the cache of a
checkpointed layer. Tests compare the two.
"""

import inspect
from abc import ABC, abstractmethod
from dataclasses import InitVar, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.qwen2.modeling_qwen2 import Qwen2Model

# transformers 5.24 renamed the argument and warns about the old name.
CACHE_ARGUMENT = "cache" if "cache" in inspect.signature(Qwen2Model.forward).parameters else "past_key_values"
_KEEPS_CACHE = "_can_checkpoint_with_cache"  # a switch that older layers do not have
Pair = tuple[Tensor, Tensor]


@dataclass(eq=False, repr=False)
class Context(ABC):
    """A backbone that has read a prefix, whose states ``(B, T, D)`` are ``hidden``, and can read on."""

    language_model: Any  # the backbone's decoder, without head
    inputs_embeds: InitVar[Tensor]  # of the prefix, (B, T, D), left-padded
    ahead: InitVar[Tensor | None]  # (B, S, D), read in the pass of the prefix and forgotten again
    attention_mask: Tensor  # (B, T + R); the R columns reserved for what follows the prefix are 1
    position_ids: Tensor  # (3, B, T + R)
    prefix_arguments: dict[str, Any]  # what the decoder takes for the prefix alone (deepstack features of Qwen3-VL)

    def __post_init__(self, inputs_embeds: Tensor, ahead: Tensor | None) -> None:
        self._length, prefix = 0, inputs_embeds.shape[1]
        states = self.extend(inputs_embeds if ahead is None else torch.cat([inputs_embeds, ahead], dim=1), keep=prefix)
        self.hidden, self.seen_ahead = states[:, :prefix], None if ahead is None else states[:, prefix:]

    def extend(self, inputs_embeds: Tensor, keep: int | None = None) -> Tensor:
        """States ``(B, S, D)``, post-norm, of input vectors ``(B, S, D)`` at the next S positions.

        All of them stay, or the first ``keep``; the others are forgotten again.
        """
        start, stop = self._length, self._length + inputs_embeds.shape[1]
        assert stop <= self.attention_mask.shape[1], "more columns than the context reserved"
        self._length = stop if keep is None else start + keep
        return self._read(inputs_embeds, start, stop)

    @abstractmethod
    def _read(self, inputs_embeds: Tensor, start: int, stop: int) -> Tensor:
        """States of the input vectors at the columns ``start`` to ``stop - 1``; later columns are forgotten."""

    def _run(self, inputs_embeds: Tensor, start: int, stop: int, **arguments: Any) -> Tensor:
        """The decoder as transformers runs it."""
        mask, position_ids = self.attention_mask[:, :stop], self.position_ids[..., start:stop]
        inputs = {"inputs_embeds": inputs_embeds, "attention_mask": mask, "position_ids": position_ids}
        if "visual_pos_masks" in arguments:  # nothing after the prefix is visual
            visual = arguments["visual_pos_masks"]
            arguments["visual_pos_masks"] = torch.nn.functional.pad(visual, (0, stop - visual.shape[1]))
        return self.language_model(**inputs, **arguments).last_hidden_state


class CachedContext(Context):
    """Context over a KV cache."""

    _cache: "PieceCache"
    _shared: tuple[Tensor, Pair] | None = None

    def _read(self, inputs_embeds: Tensor, start: int, stop: int) -> Tensor:
        self._cache = self._cache.next_pass(start) if start else PieceCache()
        # Checkpointed layers refuse to return a cache.
        arguments = {CACHE_ARGUMENT: self._cache, "use_cache": not _is_checkpointing(self.language_model)}
        if start > 0:
            step = self._step if self._shared else self._run
            return step(inputs_embeds, start, stop, **arguments)
        states = self._run(inputs_embeds, start, stop, **arguments, **self.prefix_arguments)
        config = self.language_model.config
        sliding = "sliding_attention" in (vars(config).get("layer_types") or ())
        if config._attn_implementation in ("sdpa", "eager") and not sliding:  # other layers have masks of other formats
            self._shared = self._share(states)
        return states

    def _share(self, hidden: Tensor) -> tuple[Tensor, Pair]:
        """Additive masks ``(B, 1, R, L)`` and rotary factors of the reserved columns."""
        prefix = self._length
        columns = torch.arange(self.attention_mask.shape[1], device=hidden.device)
        visible_BRL = self.attention_mask.to(hidden.device).bool().unsqueeze(1) & (columns <= columns[prefix:, None])
        mask = torch.zeros(visible_BRL.shape, dtype=hidden.dtype, device=hidden.device)
        mask = mask.masked_fill(~visible_BRL, -torch.inf)
        return mask.unsqueeze(1), self.language_model.rotary_emb(hidden, self.position_ids[..., prefix:])

    def _step(self, x_BSD: Tensor, start: int, stop: int, **arguments: Any) -> Tensor:
        """The decoder's layers, one after the other, over what all passes share."""
        assert self._shared is not None
        mask, (cos, sin) = self._shared
        prefix = mask.shape[-1] - mask.shape[-2]
        rows = slice(start - prefix, stop - prefix)
        arguments["position_embeddings"] = cos[..., rows, :], sin[..., rows, :]
        arguments["attention_mask"] = mask[:, :, rows, :stop]
        for layer in self.language_model.layers:
            x_BSD = layer(x_BSD, **arguments)
            if isinstance(x_BSD, tuple):  # older layers
                x_BSD = x_BSD[0]
        return self.language_model.norm(x_BSD)


class RecomputedContext(Context):
    """Context without a cache: every extension reads the whole sequence again."""

    _read_so_far: Tensor | None = None

    def _read(self, inputs_embeds: Tensor, start: int, stop: int) -> Tensor:
        past = [] if self._read_so_far is None else [self._read_so_far[:, :start]]
        self._read_so_far = torch.cat([*past, inputs_embeds], dim=1)
        return self._run(self._read_so_far, 0, stop, use_cache=False, **self.prefix_arguments)[:, start:]


class PieceCache(Cache):
    """Keys and values, ``(B, heads, S, head width)`` per layer, of one pass, and of the passes before it.

    Nothing that a backward pass needs is written over, and a layer may be replayed.
    """

    def __init__(self, past: tuple["PieceCache", ...] = (), start: int = 0) -> None:
        super().__init__(layers=[])
        self.past, self.start = past, start  # the columns before ``start`` are those of the past
        self.buffers: dict[int, Pair] = {}

    def next_pass(self, start: int) -> "PieceCache":
        """The cache for a pass over the columns from ``start`` on; what this one has from there on is forgotten."""
        kept = PieceCache(self.past, self.start)
        length = start - self.start
        kept.buffers = {layer: (k[:, :, :length], v[:, :, :length]) for layer, (k, v) in self.buffers.items()}
        return PieceCache((*self.past, kept), start)

    def columns(self, layer_idx: int) -> Pair:
        """Keys and values of a layer for all columns so far."""
        if not self.past:
            return self.buffers[layer_idx]
        keys, values = zip(*(piece.buffers[layer_idx] for piece in (*self.past, self)), strict=True)
        return torch.cat(keys, dim=-2), torch.cat(values, dim=-2)

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Pair:
        """Keep the keys and values of this pass, and return those of all columns so far."""
        self.buffers[layer_idx] = (key_states, value_states)
        return self.columns(layer_idx)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns before this pass."""
        return self.start

    def get_mask_sizes(self, query_length: int | Tensor, layer_idx: int = 0) -> tuple[int, int]:
        """Keys that this pass sees, and the offset of the first; older libraries give the positions of the pass."""
        queries = len(query_length) if isinstance(query_length, Tensor) else query_length
        return self.start + queries, 0


def context_class(language_model: Any) -> type[Context]:
    """The context that a decoder can be read with as it is set.

    Reentrant checkpointing first runs a layer without gradient, so what it keeps for later passes would have none.
    """
    if not _is_checkpointing(language_model):
        return CachedContext
    functions: list[partial] = [layer._gradient_checkpointing_func for layer in language_model.layers]
    reentrant = any(function.keywords.get("use_reentrant", True) for function in functions)  # torch's default
    if reentrant or _KEEPS_CACHE not in vars(GradientCheckpointingLayer):
        return RecomputedContext
    for layer in language_model.layers:
        setattr(layer, _KEEPS_CACHE, True)  # a piece never changes, however often a layer is replayed
    return CachedContext


def _is_checkpointing(language_model: Any) -> bool:
    return any(layer.training and layer.gradient_checkpointing for layer in language_model.layers)

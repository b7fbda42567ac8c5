"""What the backbone has read so far, and one way to let it read on.

A context holds the prefix states and extends by new input vectors at the next positions, returning their
post-norm last-layer states. Three implementations that agree to rounding:

- :class:`CachedContext` appends to a key-value cache (C(k) of Eq. 3): one new position costs one position. It reads on
  by :class:`~plume.decode_plume.StepDecoder`, which keeps what all steps share.
- :class:`CheckpointedContext` serves gradient checkpointing in training, with which the usual cache cannot live.
- :class:`RecomputedContext` runs the whole grown sequence again. It does the same where transformers is too old for the
  second, and it is the reference that tests hold the caches against.
"""

import inspect
from abc import ABC, abstractmethod
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import Cache
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLDecoderLayer, Qwen2VLTextModel

from .decode_plume import AppendingCache, RoomyCache, StepDecoder, can_decode
from .packed_plume import Packed

# transformers 5.24 renamed the argument and warns about the old name.
CACHE_ARGUMENT = "cache" if "cache" in inspect.signature(Qwen2VLTextModel.forward).parameters else "past_key_values"


class Context(ABC):
    """A backbone that has read a prefix and can read on.

    Args:
        language_model: The backbone's decoder, without head.
        inputs_embeds: Prefix input vectors, ``(B, T, D)``, left-padded.
        attention_mask: ``(B, T + R)``; the R columns reserved for what follows the prefix are 1.
        position_ids: ``(3, B, T + R)``.
        packed: Packed weights to read on with; the weights as they are where omitted or of no use here.

    Attributes:
        hidden: States of the prefix, ``(B, T, D)``, post-norm.
        mix: The packed experts of the adapter, None for its own.
    """

    def __init__(
        self,
        language_model: nn.Module,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor,
        packed: Packed | None = None,
    ) -> None:
        self._language_model, self._packed = language_model, packed
        self.mix = packed.mix if packed is not None else None
        self._attention_mask, self._position_ids = attention_mask, position_ids
        self._length = 0
        self._prepare()
        self.hidden = self.extend(inputs_embeds)

    def extend(self, inputs_embeds: torch.Tensor) -> torch.Tensor:
        """Read ``(B, S, D)`` input vectors at the next S positions and return their states ``(B, S, D)``."""
        start, self._length = self._length, self._length + inputs_embeds.shape[1]
        return self._read(inputs_embeds, start, self._length)

    @abstractmethod
    def _prepare(self) -> None:
        """Set up what is remembered between passes."""

    @abstractmethod
    def _read(self, inputs_embeds: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        """States of the input vectors at the columns ``start`` to ``stop - 1``."""

    def _run(self, inputs_embeds: torch.Tensor, start: int, stop: int, **cache: Any) -> torch.Tensor:
        return self._language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=self._attention_mask[:, :stop],
            position_ids=self._position_ids[..., start:stop],
            **cache,
        ).last_hidden_state


class CachedContext(Context):
    """Context over a key-value cache.

    Attributes:
        decoder: What reads on behind the prefix, None where transformers' own decoder does.
    """

    def _prepare(self) -> None:
        cache = AppendingCache if torch.is_grad_enabled() else RoomyCache
        self._cache = cache(self._attention_mask.shape[1])
        self._steps_apart = can_decode(self._language_model)
        self.decoder: StepDecoder | None = None

    def _read(self, inputs_embeds: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        if start > 0 and self.decoder is not None:
            return self.decoder.read(inputs_embeds, start, stop)
        states = self._run(inputs_embeds, start, stop, use_cache=True, **{CACHE_ARGUMENT: self._cache})
        if self._steps_apart:
            calls = self._packed.layers if self._packed is not None else None
            self.decoder = StepDecoder.behind(
                self._language_model, self._cache, self._attention_mask, self._position_ids, states, calls
            )
        return states


class CheckpointedContext(Context):
    """Context for gradient checkpointing: the cache of a pass never changes, so that replaying a layer is harmless.

    Each pass keeps its own keys and values beside those of the passes before it.
    """

    def _prepare(self) -> None:
        self._passes: list[PassCache] = []
        for module in self._language_model.modules():
            if isinstance(module, Qwen2VLDecoderLayer):
                # Layers drop any cache they would checkpoint with, because the usual one grows again on replay.
                module._can_checkpoint_with_cache = True

    def _read(self, inputs_embeds: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        cache = PassCache(list(self._passes), start)
        self._passes.append(cache)
        # Nothing is to be returned (`use_cache`); the cache is used all the same.
        return self._run(inputs_embeds, start, stop, use_cache=False, **{CACHE_ARGUMENT: cache})


class RecomputedContext(Context):
    """Context without a cache: every extension reads the whole sequence again."""

    def _prepare(self) -> None:
        self._read_so_far: list[torch.Tensor] = []

    def _read(self, inputs_embeds: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        self._read_so_far.append(inputs_embeds)
        return self._run(torch.cat(self._read_so_far, dim=1), 0, stop, use_cache=False)[:, start:]


class PassCache(Cache):
    """Keys and values of one pass, ``(B, heads, S, head width)`` per layer, behind those of earlier passes."""

    def __init__(self, past: list["PassCache"], start: int) -> None:
        super().__init__(layers=[])
        self.past, self.start = past, start
        self.own: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keep this pass's keys and values, and return them behind all earlier ones."""
        self.own[layer_idx] = (key_states, value_states)
        pieces = [*(earlier.own[layer_idx] for earlier in self.past), self.own[layer_idx]]
        keys, values = zip(*pieces, strict=True)
        return torch.cat(keys, dim=-2), torch.cat(values, dim=-2)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens before this pass."""
        return self.start

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """Keys that the pass sees, and the offset of the first."""
        return self.start + query_length, 0


# Older layers have no switch to keep a cache under gradient checkpointing.
TrainingContext = (
    CheckpointedContext if hasattr(Qwen2VLDecoderLayer, "_can_checkpoint_with_cache") else RecomputedContext
)


def context_class(language_model: Any) -> type[Context]:
    """The context that a decoder can be read with as it is set.

    Reentrant checkpointing runs a layer without gradient first, so that what it keeps for later passes has none: there
    the whole sequence is read again.
    """
    layers = [layer for layer in language_model.layers if layer.training and layer.gradient_checkpointing]
    if not layers:
        return CachedContext
    functions: list[partial] = [layer._gradient_checkpointing_func for layer in layers]
    reentrant = any(function.keywords.get("use_reentrant", True) for function in functions)  # torch's default
    return RecomputedContext if reentrant else TrainingContext

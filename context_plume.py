"""What the backbone has read so far, and one way to let it read on.

A context holds the prefix states and extends by new input vectors at the next positions, returning their
post-norm last-layer states. Three implementations that agree to rounding:

- :class:`CachedContext` appends to a key-value cache (C(k) of Eq. 3): one new position costs one position.
- :class:`CheckpointedContext` serves gradient checkpointing in training, with which the usual cache cannot live.
- :class:`RecomputedContext` runs the whole grown sequence again. It does the same where transformers is too old for the
  second, and it is the reference that tests hold the caches against.
"""

import inspect
from typing import Any, Protocol

import torch
from torch import nn
from transformers import Cache, DynamicCache
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLDecoderLayer, Qwen2VLTextModel

# transformers 5.24 renamed the argument and warns about the old name.
_CACHE_ARGUMENT = "cache" if "cache" in inspect.signature(Qwen2VLTextModel.forward).parameters else "past_key_values"


class Context(Protocol):
    """A backbone that has read a prefix and can read on."""

    hidden: torch.Tensor

    def extend(self, inputs_embeds: torch.Tensor) -> torch.Tensor:
        """Read ``(B, S, D)`` input vectors at the next S positions and return their states ``(B, S, D)``."""
        ...


class CachedContext:
    """Context over a key-value cache.

    Args:
        language_model: The backbone's decoder, without head.
        inputs_embeds: Prefix input vectors, ``(B, T, D)``, left-padded.
        attention_mask: ``(B, T + R)``; the R columns reserved for what follows the prefix are 1.
        position_ids: ``(3, B, T + R)``.
    """

    def __init__(
        self,
        language_model: nn.Module,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor,
    ) -> None:
        self._language_model = language_model
        self._attention_mask, self._position_ids = attention_mask, position_ids
        self._cache, self._length = DynamicCache(), 0
        self.hidden = self.extend(inputs_embeds)

    def extend(self, inputs_embeds: torch.Tensor) -> torch.Tensor:
        """Read ``(B, S, D)`` input vectors at the next S positions and return their states ``(B, S, D)``."""
        start, self._length = self._length, self._length + inputs_embeds.shape[1]
        return self._language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=self._attention_mask[:, : self._length],
            position_ids=self._position_ids[..., start : self._length],
            use_cache=True,
            **{_CACHE_ARGUMENT: self._cache},
        ).last_hidden_state


class CheckpointedContext:
    """Context for gradient checkpointing: the cache of a pass never changes, so that replaying a layer is harmless.

    Each pass keeps its own keys and values beside those of the passes before it. Arguments as above.
    """

    def __init__(
        self,
        language_model: nn.Module,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor,
    ) -> None:
        self._language_model = language_model
        self._attention_mask, self._position_ids = attention_mask, position_ids
        self._passes: list[PassCache] = []
        for module in language_model.modules():
            if isinstance(module, Qwen2VLDecoderLayer):
                # Layers drop any cache they would checkpoint with, because the usual one grows again on replay.
                module._can_checkpoint_with_cache = True
        self.hidden = self.extend(inputs_embeds)

    def extend(self, inputs_embeds: torch.Tensor) -> torch.Tensor:
        """Read ``(B, S, D)`` input vectors at the next S positions and return their states ``(B, S, D)``."""
        cache = PassCache(list(self._passes))
        start, stop = cache.start, cache.start + inputs_embeds.shape[1]
        states = self._language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=self._attention_mask[:, :stop],
            position_ids=self._position_ids[..., start:stop],
            use_cache=False,  # nothing is returned; the cache is used all the same
            **{_CACHE_ARGUMENT: cache},
        ).last_hidden_state
        self._passes.append(cache)
        return states


class PassCache(Cache):
    """Keys and values of one pass, ``(B, heads, S, head width)`` per layer, behind those of earlier passes."""

    def __init__(self, past: list["PassCache"]) -> None:
        super().__init__(layers=[])
        self.past = past
        self.own: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.start: int = past[-1].start + past[-1].own[0][0].shape[-2] if past else 0

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


class RecomputedContext:
    """Context without a cache: every extension reads the whole sequence again. Arguments as above."""

    def __init__(
        self,
        language_model: nn.Module,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor,
    ) -> None:
        self._language_model = language_model
        self._attention_mask, self._position_ids = attention_mask, position_ids
        self._inputs_embeds = inputs_embeds[:, :0]
        self.hidden = self.extend(inputs_embeds)

    def extend(self, inputs_embeds: torch.Tensor) -> torch.Tensor:
        """Read ``(B, S, D)`` input vectors at the next S positions and return their states ``(B, S, D)``."""
        self._inputs_embeds = torch.cat([self._inputs_embeds, inputs_embeds], dim=1)
        length = self._inputs_embeds.shape[1]
        states = self._language_model(
            inputs_embeds=self._inputs_embeds,
            attention_mask=self._attention_mask[:, :length],
            position_ids=self._position_ids[..., :length],
            use_cache=False,
        ).last_hidden_state
        return states[:, -inputs_embeds.shape[1] :]


# Older layers have no switch to keep a cache under gradient checkpointing.
TrainingContext = (
    CheckpointedContext if hasattr(Qwen2VLDecoderLayer, "_can_checkpoint_with_cache") else RecomputedContext
)

"""What the backbone has read so far, and one way to let it read on.

A context holds the prefix states and extends by new input vectors at the next positions, returning their
post-norm last-layer states. Two implementations that agree to rounding:

- :class:`CachedContext` appends to a key-value cache (C(k) of Eq. 3): one new position costs one position.
- :class:`RecomputedContext` runs the whole grown sequence again. It serves gradient checkpointing in training,
  where the layers of transformers drop the cache, and it is the reference that tests hold the cache against.
"""

import inspect
from typing import Protocol

import torch
from torch import nn
from transformers import DynamicCache
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLTextModel

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

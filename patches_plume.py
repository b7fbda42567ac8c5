"""The vision tower's patch embedding as the linear map that it is.

Qwen2-VL writes it as a convolution whose kernel and stride are one patch. On some devices such a convolution takes
seconds where the product takes microseconds (transformers issue 45750: bfloat16 on recent GPUs). Invariant: names and
shapes of the weights stay Qwen2-VL's, and so do the vectors, to rounding.
"""

import torch
from torch import nn
from transformers.models.qwen2_vl.modeling_qwen2_vl import PatchEmbed

from .decode_plume import is_watched


class LinearPatchEmbed(PatchEmbed):
    """As :class:`PatchEmbed`, by one product; as it was where something else happens at its call or to its weight."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Embed flattened patches ``(N, C * T * P * P)`` as ``(N, D)``."""
        if type(self.proj) is not nn.Conv3d or is_watched(self.proj):
            return super().forward(hidden_states)
        weight = self.proj.weight
        return nn.functional.linear(hidden_states.to(weight.dtype), weight.flatten(1))

    @classmethod
    def take_over(cls, patch_embed: PatchEmbed) -> None:
        """Turn a patch embedding into one of this class, with its weights."""
        patch_embed.__class__ = cls


__all__ = ["LinearPatchEmbed"]

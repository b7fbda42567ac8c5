"""PLUME over Qwen3-VL.

1. **Deepstack**: the decoder adds features of three vision layers to its first hidden states at visual tokens. Only the
   prefix has visual tokens; later passes see their effect through the cached keys and values.
2. **Videos**: every temporal patch is an item of its own, after its timestamp as text.
"""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import Qwen3VLForConditionalGeneration

from .configuration_plume import PlumeQwen3VLConfig
from .modeling_plume import PlumeModel
from .positions_plume import Media


class PlumeQwen3VLForEmbedding(PlumeModel, Qwen3VLForConditionalGeneration):
    """A Qwen3-VL model that thinks K latent steps before it embeds."""

    config_class = PlumeQwen3VLConfig

    def media_of(self, inputs: Mapping[str, Any]) -> list[Media]:
        """As in the base; every temporal patch of a video has positions of its own."""
        return [kind._replace(frames_apart=True) for kind in super().media_of(inputs)]

    def prefix_arguments(self, placeholders: list[torch.Tensor], outputs: list[Any]) -> dict[str, Any]:
        """Deepstack features, in the order of the visual tokens of the batch."""
        mask = torch.stack(placeholders).any(dim=0)
        levels = []
        for kinds in zip(*(output.deepstack_features for output in outputs), strict=True):
            rows = [torch.cat(level) if isinstance(level, (tuple, list)) else level for level in kinds]
            laid_in = rows[0].new_zeros(*mask.shape, rows[0].shape[-1])
            for where, row in zip(placeholders, rows, strict=True):
                laid_in = laid_in.masked_scatter(where.unsqueeze(-1), row)
            levels.append(laid_in[mask])
        return {"visual_pos_masks": mask, "deepstack_visual_embeds": levels}

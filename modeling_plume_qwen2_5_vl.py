"""PLUME over Qwen2.5-VL: videos are placed in time by seconds; everything else is as in ``modeling_plume``."""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from .configuration_plume import PlumeQwen2_5_VLConfig
from .modeling_plume import PlumeModel
from .positions_plume import Media


class PlumeQwen2_5_VLForEmbedding(PlumeModel, Qwen2_5_VLForConditionalGeneration):  # noqa: N801 (transformers' spelling)
    """A Qwen2.5-VL model that thinks K latent steps before it embeds."""

    config_class = PlumeQwen2_5_VLConfig

    def media_of(self, inputs: Mapping[str, Any]) -> list[Media]:
        """As in the base; a temporal patch of a video advances time by ``tokens_per_second`` positions a second."""
        images, videos = super().media_of(inputs)
        if videos.grid_thw is not None:
            seconds = inputs.get("second_per_grid_ts")
            if seconds is None:
                seconds = torch.ones(len(videos.grid_thw))  # as the backbone's own code has it
            vision: Any = self.config.vision_config
            videos = videos._replace(time_step=torch.as_tensor(seconds) * vision.tokens_per_second)
        return [images, videos]

"""The encoder of the apps without torch: an exported model on onnxruntime."""

from pathlib import Path
from typing import Any

from plume.apps.shared.batches import CPU_PIXEL_BUDGET, BatchEncoder
from plume.runtime import Runtime, RuntimeOutput


class ExportedEncoder(BatchEncoder):
    """What ``plume export`` wrote, as an encoder that embeds lists of any length.

    Args:
        folder: The exported folder.
        pixel_budget: Largest weight of a batch, in pixels.

    Raises:
        ValueError: If the folder is damaged.
    """

    def __init__(self, folder: Path, pixel_budget: int = CPU_PIXEL_BUDGET) -> None:
        self.runtime, self.pixel_budget = Runtime(folder), pixel_budget
        self.processor, self.config = self.runtime.prompt, self.runtime.settings

    @property
    def dimension(self) -> int:
        """Length of a vector."""
        return self.runtime.settings.hidden_size

    @property
    def identity(self) -> str:
        """That of the checkpoint in float32, whose vectors these are; with weights of eight bits one of its own."""
        return self.runtime.manifest.checkpoint + ("-int8" if self.runtime.manifest.int8 else "")

    def run(self, inputs: Any, role: str = "query", num_latent_steps: int | None = None) -> RuntimeOutput:
        """The pass of one batch."""
        return self.runtime.run(inputs, self.config.check_num_latent_steps(num_latent_steps, role))

"""The encoder of the apps with torch: a PLUME checkpoint on a device."""

from functools import cached_property
from typing import Any

import torch
from transformers import AutoModel, AutoProcessor, BatchFeature

from plume import PlumeOutput
from plume.apps.shared.batches import CPU_PIXEL_BUDGET, BatchEncoder
from plume.checkpoints import DEFAULT_MODEL, locate
from plume.hub.identity import identity_of

PIXEL_BUDGET = 16 * 1024 * 1024  # pixels per batch, about 21000 visual tokens of 28 x 28


class Encoder(BatchEncoder):
    """A PLUME checkpoint that embeds lists of any length.

    Args:
        model_id: Folder or Hub id of a PLUME checkpoint, or ``"tiny"``, which comes with the package.
        device: Torch device; CUDA if available.
        pixel_budget: Largest weight of a batch, in pixels. Defaults to what suits the device.
        dtype: Of the weights, e.g. ``"float32"``; the checkpoint's with ``"auto"``.
        int8: Whether decoder and adapter run with weights of eight bits on a CPU (see :mod:`plume.speed`).
        reuse: Whether common beginnings of inputs, and pictures that come again, are read once on a CPU.

    Raises:
        ValueError: If the checkpoint is damaged.
    """

    def __init__(
        self,
        model_id: str = DEFAULT_MODEL,
        device: str | None = None,
        pixel_budget: int | None = None,
        dtype: str = "auto",
        int8: bool = False,
        reuse: bool = True,
    ) -> None:
        self.model_id = locate(model_id)
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.pixel_budget = pixel_budget or (CPU_PIXEL_BUDGET if self.device == "cpu" else PIXEL_BUDGET)
        self.model = AutoModel.from_pretrained(self.model_id, dtype=dtype).to(self.device).eval()
        self.model.speed_up(pack=int8, int8=int8, reuse=reuse)
        self._weights = f"{self.model.dtype} in eight bits" if int8 and self.device == "cpu" else str(self.model.dtype)
        self.processor = AutoProcessor.from_pretrained(self.model_id)

    @property
    def dimension(self) -> int:
        """Length of a vector."""
        return self.model.config.text_config.hidden_size

    @property
    def config(self) -> Any:
        """Of the model."""
        return self.model.config

    @cached_property
    def identity(self) -> str:
        """See :func:`~plume.hub.identity.identity_of`."""
        return identity_of(self.model_id, self._weights)

    def run(self, inputs: BatchFeature, role: str = "query", num_latent_steps: int | None = None) -> PlumeOutput:
        """The forward pass of one batch."""
        with torch.inference_mode():
            return self.model(**inputs.to(self.device), task=role, num_latent_steps=num_latent_steps)

"""One encoder for all apps: batches sized by pixels, vectors that do not depend on them.

1. **Weigh** every input in pixels after resizing; text counts too, as many pixels as its tokens would hold.
2. **Pack** inputs of similar weight together, up to a budget: memory follows pixels, not the number of inputs.
3. **Embed** batch by batch; the vectors come back in the order of the inputs.
"""

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import snapshot_download
from transformers import AutoModel, AutoProcessor, BatchFeature

from plume import PlumeOutput
from plume.checkpoints import DEFAULT_MODEL, locate
from plume.hub_files_plume import SETTINGS_FILES
from plume.vision_plume import Clip

# Pixels per batch, about 21000 visual tokens of 28 x 28. A CPU gains nothing from large batches, and what comes next
# waits for a batch to end.
PIXEL_BUDGET, CPU_PIXEL_BUDGET = 16 * 1024 * 1024, 1024 * 1024
_PIXELS_PER_TOKEN, _CHARACTERS_PER_TOKEN, _PROMPT_TOKENS = 28 * 28, 3, 64


class Encoder:
    """A PLUME checkpoint that embeds lists of any length.

    Args:
        model_id: Folder or Hub id of a PLUME checkpoint, or ``"tiny"``, which comes with the package.
        device: Torch device; CUDA if available.
        pixel_budget: Largest weight of a batch, in pixels. Defaults to what suits the device.
        dtype: Of the weights, e.g. ``"float32"``; the checkpoint's with ``"auto"``.

    Raises:
        ValueError: If the checkpoint is damaged.
    """

    def __init__(
        self,
        model_id: str = DEFAULT_MODEL,
        device: str | None = None,
        pixel_budget: int | None = None,
        dtype: str = "auto",
    ) -> None:
        self.model_id = locate(model_id)
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.pixel_budget = pixel_budget or (CPU_PIXEL_BUDGET if self.device == "cpu" else PIXEL_BUDGET)
        self.model = AutoModel.from_pretrained(self.model_id, dtype=dtype).to(self.device).eval()
        self.processor = AutoProcessor.from_pretrained(self.model_id)

    @property
    def dimension(self) -> int:
        """Length of a vector."""
        return self.model.config.text_config.hidden_size

    @cached_property
    def identity(self) -> str:
        """What tells vectors of two checkpoints apart: the checkpoint's name, for people, and a hash after it.

        The hash covers weights, their dtype, settings and prompt; see :func:`~plume.apps.shared.rows.same_checkpoint`.
        """
        folder = Path(self.model_id)
        name = folder.resolve().name if folder.is_dir() else self.model_id
        if not folder.is_dir():
            folder = Path(snapshot_download(self.model_id, local_files_only=True))
        digest = hashlib.blake2b(str(self.model.dtype).encode(), digest_size=12)
        for path in sorted([*folder.glob("*.safetensors"), *(folder / name for name in SETTINGS_FILES)]):
            if path.is_file():
                digest.update(path.name.encode())
                with path.open("rb") as file:
                    while block := file.read(1 << 22):
                        digest.update(block)
        return f"{name} {digest.hexdigest()}"

    def encode(self, items: Sequence[Any], role: str = "document", num_latent_steps: int | None = None) -> np.ndarray:
        """Embed inputs of any number and mixture.

        Args:
            items: Inputs of the processor.
            role: ``"document"`` or ``"query"``: the instruction in front, and whose K is the default.
            num_latent_steps: K. Defaults to the checkpoint's for the role.

        Returns:
            Unit vectors, ``(len(items), D)``, fp32.
        """
        vectors = np.empty((len(items), self.dimension), dtype=np.float32)
        for chosen in pack([self.weigh(item) for item in items], self.pixel_budget):
            output = self.think([items[index] for index in chosen], role, num_latent_steps)
            assert output.embeddings is not None
            vectors[chosen] = output.embeddings.float().cpu().numpy()
        return vectors

    def try_encode(
        self, items: Sequence[Any], role: str = "document", num_latent_steps: int | None = None
    ) -> list[np.ndarray | ValueError]:
        """Embed inputs of which some may be unusable: per input its vector ``(D,)``, or why there is none."""
        try:
            return list(self.encode(items, role, num_latent_steps))
        except ValueError as error:
            if len(items) == 1:
                return [error]
            return [self.try_encode([item], role, num_latent_steps)[0] for item in items]

    def think(
        self, items: Sequence[Any], role: str = "query", num_latent_steps: int | None = None, **options: Any
    ) -> PlumeOutput:
        """Embed one batch and keep the latent states and the routing; arguments as in :meth:`encode`."""
        return self.run(self.process(items, role, **options), role, num_latent_steps)

    def process(self, items: Sequence[Any], role: str = "query", **options: Any) -> BatchFeature:
        """Model inputs of one batch, on the CPU; ``options`` are the processor's."""
        process = {"query": self.processor.process_queries, "document": self.processor.process_documents}[role]
        return process(items, **options)

    def run(self, inputs: BatchFeature, role: str = "query", num_latent_steps: int | None = None) -> PlumeOutput:
        """The forward pass of one batch."""
        with torch.inference_mode():
            return self.model(**inputs.to(self.device), task=role, num_latent_steps=num_latent_steps)

    def clip(self, path: Path) -> Clip:
        """The frames of a clip that the model sees, with their times."""
        return self.processor.read_clip(path)

    def weigh(self, item: Any) -> int:
        """Weight of an input of texts, PIL pictures and clips, in pixels after resizing."""
        parts = item if isinstance(item, dict) else {"text" if isinstance(item, str) else "image": item}
        pixels = _PIXELS_PER_TOKEN * _PROMPT_TOKENS
        for kind, part in parts.items():
            several = part.frames if isinstance(part, Clip) else part if isinstance(part, list) else [part]
            if kind == "text":
                pixels += sum(len(text) for text in several) // _CHARACTERS_PER_TOKEN * _PIXELS_PER_TOKEN
            elif kind == "image":
                limits = self.processor.min_pixels, self.processor.max_pixels
                pixels += sum(min(max(image.width * image.height, limits[0]), limits[1]) for image in several)
            else:
                limits = self.processor.video_min_pixels, self.processor.video_max_pixels
                pixels += sum(min(max(frame.width * frame.height, limits[0]), limits[1]) for frame in several)
        return pixels


def pack(weights: Sequence[int], budget: int) -> list[list[int]]:
    """Put items into batches, heaviest first: padded to its heaviest item, no batch exceeds the budget.

    Args:
        weights: Weight per item.
        budget: Largest weight of a batch; an item that exceeds it is alone.

    Returns:
        Per batch the positions of its items.
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(weights)), key=lambda index: (-weights[index], index)):
        # Every row is padded to the longest, which is the first.
        if batches and weights[batches[-1][0]] * (len(batches[-1]) + 1) <= budget:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches

"""One encoder for all apps: batches sized by pixels, vectors that do not depend on them.

1. **Weigh** every input in pixels after resizing; text counts too, as many pixels as its tokens would hold.
2. **Pack** inputs of similar weight together, up to a budget: memory follows pixels, not the number of inputs.
3. **Embed** batch by batch; the vectors come back in the order of the inputs.

What embeds a batch is a subclass: a checkpoint with torch (``encoder``), or an exported one without (``exported``).
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from plume.checkpoints import DEFAULT_MODEL
from plume.vision_plume import Clip

# Pixels per batch. A CPU gains nothing from large batches, and what comes next waits for a batch to end.
CPU_PIXEL_BUDGET = 1024 * 1024
_PIXELS_PER_TOKEN, _CHARACTERS_PER_TOKEN, _PROMPT_TOKENS = 28 * 28, 3, 64


class BatchEncoder(ABC):
    """A model that embeds lists of any length.

    Attributes:
        processor: Its :class:`~plume.prompt_plume.PromptBuilder`.
        config: What it says of itself: ``num_latent_steps``, ``max_latent_steps``, ``num_active_experts``, and
            ``check_num_latent_steps``.
        pixel_budget: Largest weight of a batch, in pixels.
    """

    processor: Any
    config: Any
    pixel_budget: int

    @property
    @abstractmethod
    def dimension(self) -> int:
        """Length of a vector."""

    @property
    @abstractmethod
    def identity(self) -> str:
        """What tells vectors of two models apart."""

    @abstractmethod
    def run(self, inputs: Any, role: str = "query", num_latent_steps: int | None = None) -> Any:
        """The forward pass of one batch: ``embeddings``, ``latent_states`` and ``router_probs``."""

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
            vectors[chosen] = as_array(output.embeddings)
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
    ) -> Any:
        """Embed one batch and keep the latent states and the routing; arguments as in :meth:`encode`."""
        return self.run(self.process(items, role, **options), role, num_latent_steps)

    def process(self, items: Sequence[Any], role: str = "query", **options: Any) -> Any:
        """Model inputs of one batch, on the CPU; ``options`` are the processor's."""
        process = {"query": self.processor.process_queries, "document": self.processor.process_documents}[role]
        return process(items, **options)

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


def as_array(values: Any) -> np.ndarray:
    """Values of a pass in numpy, whichever library computed them."""
    return values if isinstance(values, np.ndarray) else values.float().cpu().numpy()


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


def open_encoder(
    model: str | None, device: str | None, dtype: str, runtime: Path | None, *, int8: bool = False, reuse: bool = True
) -> BatchEncoder:
    """The encoder that a command line names: a checkpoint, or with ``runtime`` an exported one.

    Raises:
        ValueError: If options of a checkpoint come with an exported one, on which they would have no effect.
    """
    if runtime is None:
        from plume.apps.shared.encoder import Encoder  # with torch, which an exported model does without

        return Encoder(model or DEFAULT_MODEL, device, dtype=dtype, int8=int8, reuse=reuse)
    given = {
        "--model": model is not None,
        "--device": device is not None,
        "--dtype": dtype != "auto",
        "--int8": int8,
        "--no-reuse": not reuse,
    }
    if superfluous := [flag for flag, is_given in given.items() if is_given]:
        raise ValueError(
            f"--runtime {runtime} is a model already, on the CPU and in the dtype of its export: "
            f"{', '.join(superfluous)} would have no effect. Remove them."
        )
    from plume.apps.shared.exported import ExportedEncoder

    return ExportedEncoder(runtime)

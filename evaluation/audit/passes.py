"""One side of a task, read under several conditions: every batch is prepared once and goes through all of them."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from datasets import Dataset
from tqdm import tqdm

from plume import PlumeModel, PlumeProcessor
from plume.evaluation.audit.intervene import recording, replacing
from plume.evaluation.embedders import prepare
from plume.evaluation.encoder import to_inputs


@dataclass
class Reading:
    """What N inputs came to, undisturbed; fp32, on the CPU.

    Attributes:
        embeddings: ``(N, D)`` of unit length, by number of latent steps.
        probs: Routing probabilities at the reader's K, ``(N, K, E)``.
        refined: z~(0)..z~(K-1), ``(N, K, D)``: what interventions replace; empty where states were not kept.
        latents: z(1)..z(K), ``(N, K, D)``; empty likewise.
        kinds: What each input holds, e.g. ``("text", "image")``.
    """

    embeddings: dict[int, torch.Tensor]
    probs: torch.Tensor
    refined: torch.Tensor
    latents: torch.Tensor
    kinds: list[tuple[str, ...]]


@dataclass
class _Parts:
    """Batches of a reading."""

    embeddings: dict[int, list[torch.Tensor]]
    probs: list[torch.Tensor] = field(default_factory=list)
    refined: list[torch.Tensor] = field(default_factory=list)
    latents: list[torch.Tensor] = field(default_factory=list)
    kinds: list[tuple[str, ...]] = field(default_factory=list)

    def join(self) -> Reading:
        """All batches as one."""
        vectors = {steps: torch.cat(parts) for steps, parts in self.embeddings.items()}
        probs, refined, latents = (torch.cat(parts) for parts in (self.probs, self.refined, self.latents))
        return Reading(vectors, probs, refined, latents, self.kinds)


class Reader:
    """Reads inputs with a model, batch by batch.

    Args:
        model: The model, in evaluation mode.
        processor: Its processor.
        steps: K at which the model is audited.
        batch_size: Inputs per batch.

    Raises:
        ValueError: If K is 0, or the model cannot run it.
    """

    def __init__(self, model: PlumeModel, processor: PlumeProcessor, steps: int, batch_size: int) -> None:
        if model.config.check_num_latent_steps(steps) == 0:
            raise ValueError(
                "The audit asks what latent steps are worth, and at K = 0 there are none. Choose a checkpoint with "
                "num_latent_steps >= 1, or pass --num-latent-steps."
            )
        self.model, self.processor, self.steps, self.batch_size = model, processor, steps, batch_size

    def read(self, inputs: Dataset, others: Iterable[int] = (), keep_states: bool = False, name: str = "") -> Reading:
        """Read inputs at the reader's K and at other numbers of steps, all in one rollout.

        Args:
            inputs: N inputs.
            others: Other K.
            keep_states: Whether to keep ``refined`` and ``latents``.
            name: For the progress bar.
        """
        counts = sorted({*others, self.steps})
        parts = _Parts({k: [] for k in counts})

        def read(items: list[dict[str, Any]], prepared: dict[str, torch.Tensor], rows: slice) -> None:
            with recording(self.model) as refined:
                output = self.model(**prepared, num_latent_steps=counts[-1], readout_steps=counts)
            own, kept = slice(self.steps), slice(None) if keep_states else slice(0)
            parts.kinds += [tuple(item) for item in items]
            parts.probs.append(output.router_probs[:, own].float().cpu())
            parts.refined.append(torch.stack(refined, dim=1)[kept, own].float().cpu())
            parts.latents.append(output.latent_states[kept, own].float().cpu())
            for k, vectors in zip(counts, output.readout_embeddings.unbind(dim=1), strict=True):
                parts.embeddings[k].append(vectors.cpu())

        self._each_batch(inputs, read, name)
        return parts.join()

    def read_replaced(
        self, inputs: Dataset, refined: dict[str, torch.Tensor], name: str = ""
    ) -> dict[str, torch.Tensor]:
        """Read inputs at the reader's K with the inputs of their latent steps replaced.

        Args:
            inputs: N inputs.
            refined: Replacements ``(N, K, D)``, by name.
            name: For the progress bar.

        Returns:
            Embeddings ``(N, D)``, by name.
        """
        parts: dict[str, list[torch.Tensor]] = {key: [] for key in refined}

        def read(items: list[dict[str, Any]], prepared: dict[str, torch.Tensor], rows: slice) -> None:
            for key, states_NKD in refined.items():
                with replacing(self.model, states_NKD[rows].to(self.model.device)):
                    parts[key].append(self.model(**prepared, num_latent_steps=self.steps).embeddings.cpu())

        self._each_batch(inputs, read, name)
        return {key: torch.cat(vectors) for key, vectors in parts.items()}

    @torch.inference_mode()
    def _each_batch(self, inputs: Dataset, read: Callable[..., None], name: str) -> None:
        for start in tqdm(range(0, len(inputs), self.batch_size), desc=name, unit="batch", leave=False):
            rows = slice(start, min(start + self.batch_size, len(inputs)))
            items = to_inputs(inputs[rows])
            read(items, prepare(self.model, self.processor, items), rows)

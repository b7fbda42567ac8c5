"""One side of a task, read under several conditions: every batch is prepared once and goes through all of them."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
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

    @classmethod
    def join(cls, batches: Sequence["Reading"]) -> "Reading":
        """All batches as one."""
        return cls(
            {k: torch.cat([batch.embeddings[k] for batch in batches]) for k in batches[0].embeddings},
            torch.cat([batch.probs for batch in batches]),
            torch.cat([batch.refined for batch in batches]),
            torch.cat([batch.latents for batch in batches]),
            [kind for batch in batches for kind in batch.kinds],
        )


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

    @torch.inference_mode()
    def read(self, inputs: Dataset, others: Iterable[int] = (), keep_states: bool = False, name: str = "") -> Reading:
        """Read inputs at the reader's K and at other numbers of steps, all in one rollout.

        Args:
            inputs: N inputs.
            others: Other K.
            keep_states: Whether to keep ``refined`` and ``latents``.
            name: For the progress bar.
        """
        counts = sorted({*others, self.steps})
        own, kept = slice(self.steps), slice(None) if keep_states else slice(0)
        batches = []
        for _, items, prepared in self._each_batch(inputs, name):
            with recording(self.model) as refined:
                output = self.model(**prepared, num_latent_steps=counts[-1], readout_steps=counts)
            vectors = dict(zip(counts, output.readout_embeddings.cpu().unbind(dim=1), strict=True))
            batches.append(
                Reading(
                    vectors,
                    output.router_probs[:, own].float().cpu(),
                    torch.stack(refined, dim=1)[kept, own].float().cpu(),
                    output.latent_states[kept, own].float().cpu(),
                    [tuple(item) for item in items],
                )
            )
        return Reading.join(batches)

    @torch.inference_mode()
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

        for rows, _, prepared in self._each_batch(inputs, name):
            for key, states_NKD in refined.items():
                with replacing(self.model, states_NKD[rows].to(self.model.device)):
                    parts[key].append(self.model(**prepared, num_latent_steps=self.steps).embeddings.cpu())
        return {key: torch.cat(vectors) for key, vectors in parts.items()}

    def _each_batch(
        self, inputs: Dataset, name: str
    ) -> Iterator[tuple[slice, list[dict[str, Any]], dict[str, torch.Tensor]]]:
        """Which rows, what they hold, and the model's inputs."""
        for start in tqdm(range(0, len(inputs), self.batch_size), desc=name, unit="batch", leave=False):
            rows = slice(start, min(start + self.batch_size, len(inputs)))
            items = to_inputs(inputs[rows])
            yield rows, items, prepare(self.model, self.processor, items)

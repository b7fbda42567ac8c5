"""Early exit: an input that its next steps no longer move stops thinking, and leaves the batch.

1. **Read** the embedding after the first of the steps.
2. **Think** on to the next one and read again, from the same cache.
3. **Leave**: where 1 - cosine of the two is below the threshold, the row is done; the others go on without it.

A row's vector is the read-out after the step at which it stopped, whatever else was in the batch.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch.nn.functional import normalize

from .cache_plume import CachedContext
from .checks_plume import check_finite, check_readout_steps, left_aligned
from .latent_plume import LatentTransition
from .modeling_plume import PlumeModel
from .rollout_plume import rollout, state_at


class Settled(NamedTuple):
    """Vectors of a batch and what they took.

    Attributes:
        embeddings: ``(B, D)``, fp32, unit length.
        steps: Latent steps of each row, ``(B,)``.
    """

    embeddings: torch.Tensor
    steps: torch.Tensor


class _ShrinkingContext(CachedContext):
    """A context that rows can leave."""

    _attention_mask: torch.Tensor
    _position_ids: torch.Tensor
    _shared: tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]] | None

    def keep_rows(self, rows: torch.Tensor) -> None:
        """Go on with some rows only, given by their numbers."""
        self._attention_mask, self._position_ids = self._attention_mask[rows], self._position_ids[:, rows]
        if self._shared is not None:
            mask, rotary = self._shared
            cos, sin = (part.index_select(-3, rows) for part in rotary)
            self._shared = mask[rows], (cos, sin)
        for layer, (keys, values) in self._cache.buffers.items():
            self._cache.buffers[layer] = keys[rows], values[rows]


def embed_early(
    model: PlumeModel,
    inputs: Mapping[str, Any],
    exit_threshold: float,
    *,
    num_latent_steps: int | None = None,
    task: str | None = None,
    readout_steps: Sequence[int] | None = None,
) -> Settled:
    """Embed a batch; every row takes as many latent steps as still move its embedding.

    Args:
        model: The model, in evaluation mode.
        inputs: What the processor returns, on the model's device.
        exit_threshold: A row stops when 1 - cosine of two successive read-outs is below it; between 0 and 1.
        num_latent_steps: K, the most that a row takes. Defaults to the checkpoint's for the task.
        task: ``"query"`` or ``"document"``; only for the default of K.
        readout_steps: Where to read out; K is added. Defaults to every step. Give those that the checkpoint was trained
            to be read at.

    Raises:
        ValueError: If the threshold or a step is out of range, the model is in training mode, or inputs are unusable.
    """
    reads = check_exit(model, exit_threshold, num_latent_steps, task, readout_steps)
    if model.training:
        raise ValueError("The model is in training mode, in which rows do not stop early. Call model.eval() first.")
    with torch.no_grad():
        return _settle(model, inputs, exit_threshold, reads)


def check_exit(
    model: PlumeModel,
    exit_threshold: float,
    num_latent_steps: int | None = None,
    task: str | None = None,
    readout_steps: Sequence[int] | None = None,
) -> Sequence[int]:
    """Where an early exit reads out; arguments as in :func:`embed_early`.

    Raises:
        ValueError: If the threshold or a step is out of range.
    """
    if not 0 < exit_threshold < 1:
        raise ValueError(
            f"exit_threshold={exit_threshold} must be between 0 and 1: a row stops when 1 - cosine of two "
            "read-outs is below it. Small values, such as 0.01, think longer."
        )
    most = model.config.check_num_latent_steps(num_latent_steps, task)
    return check_readout_steps(range(most + 1) if readout_steps is None else readout_steps, most)


def _settle(model: PlumeModel, inputs: Mapping[str, Any], exit_threshold: float, reads: Sequence[int]) -> Settled:
    config = model.config
    ids_BT, mask_BT = left_aligned(inputs["input_ids"], inputs.get("attention_mask"))
    closing_BS = torch.tensor(config.suffix_token_ids, device=ids_BT.device).expand(len(ids_BT), -1)
    context: Any = model.read_prefix(ids_BT, mask_BT, model.media_of(inputs), reads[-1] + closing_BS.shape[1])
    context.__class__ = _ShrinkingContext
    anchor_BD = state_at(context.hidden, ids_BT, config.anchor_token_id)
    suffix_BSD = model.get_input_embeddings()(closing_BS)
    rows = torch.arange(len(ids_BT), device=context.hidden.device)  # those that still think
    vectors_BD = torch.zeros(anchor_BD.shape, dtype=torch.float32, device=rows.device)
    steps_B, passed, before_BD = torch.zeros_like(rows), 0, None
    for step in reads:
        onward: Any = _Onward(model.latent_transition, passed)
        thought = rollout(context, onward, anchor_BD, suffix_BSD, step - passed, [step - passed])
        states_BSD = thought.readouts[:, -1]
        now_BD = normalize(
            state_at(states_BSD[:, 1:], closing_BS[: len(rows)], config.embedding_token_id).float(), dim=-1
        )
        vectors_BD[rows], steps_B[rows] = now_BD, step
        kept = torch.arange(len(rows), device=rows.device)
        if before_BD is not None:
            kept = (1 - (now_BD * before_BD).sum(dim=-1) >= exit_threshold).nonzero().flatten()
        if not len(kept):
            break
        if len(kept) < len(rows):
            context.keep_rows(kept)
            rows, anchor_BD, suffix_BSD = rows[kept], anchor_BD[kept], suffix_BSD[kept]
        context.hidden = states_BSD[kept, :1]  # z(step), from which the next rollout starts
        passed, before_BD = step, now_BD[kept]
    check_finite(vectors_BD)
    return Settled(vectors_BD, steps_B)


class _Onward:
    """The transition of a rollout that goes on after some steps."""

    def __init__(self, transition: LatentTransition, passed: int) -> None:
        self.transition, self.passed, self.num_experts = transition, passed, transition.num_experts

    def __call__(self, z_BD: torch.Tensor, step: int, anchor_BD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.transition(z_BD, self.passed + step, anchor_BD)


__all__ = ["Settled", "embed_early"]

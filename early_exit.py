"""Early exit: an input that its next steps no longer move stops thinking, and leaves the batch.

1. **Read** the embedding after the first of the steps.
2. **Think** on to the next one and read again, from the same cache.
3. **Leave**: where 1 - cosine of the two is below the threshold, the row is done; the others go on without it. An
   :class:`ExitHead` says instead, from one read-out, how probable it is that later steps still move it.

A row's vector is the read-out after the step at which it stopped, whatever else was in the batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.nn.functional import binary_cross_entropy_with_logits, normalize

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


@dataclass(frozen=True)
class ExitHead:
    """A logistic regression on a read-out: will later steps still move it?

    Attributes:
        weights: ``(D,)``.
        biases: One number per step that it was fitted at.
    """

    weights: torch.Tensor
    biases: dict[int, float]

    def moving(self, embeddings: torch.Tensor, step: int) -> torch.Tensor:
        """Probability that later steps move embeddings ``(B, D)`` that were read out after ``step``, ``(B,)``.

        Raises:
            ValueError: If the head was not fitted at this step.
        """
        if step not in self.biases:
            raise ValueError(
                f"The exit head was fitted at the steps {sorted(self.biases)}, not at {step}. Read out there."
            )
        return torch.sigmoid(embeddings @ self.weights.to(embeddings) + self.biases[step])

    @classmethod
    def fit(cls, readouts: Mapping[int, torch.Tensor], moved: float = 0.2) -> "ExitHead":
        """Fit a head to the read-outs of inputs that took all steps.

        Args:
            readouts: Embeddings ``(N, D)`` by step; the last step is what the others are compared with.
            moved: 1 - cosine to the last read-out from which on a read-out counts as still moving.
        """
        *earlier, last = sorted(readouts)
        inputs_ND = torch.cat([readouts[step] for step in earlier]).float()
        place_N = torch.arange(len(earlier)).repeat_interleave(len(readouts[last]))
        moves = [1 - (readouts[step] * readouts[last]).sum(dim=-1) >= moved for step in earlier]
        label_N = torch.cat(moves).float()
        with torch.enable_grad():
            weights_D = torch.zeros(inputs_ND.shape[1], requires_grad=True)
            biases_S = torch.zeros(len(earlier), requires_grad=True)
            solver = torch.optim.LBFGS([weights_D, biases_S], max_iter=200)

            def closure() -> torch.Tensor:
                solver.zero_grad()
                logits_N = inputs_ND @ weights_D + biases_S[place_N]
                loss = binary_cross_entropy_with_logits(logits_N, label_N) + 1e-5 * weights_D.square().sum()
                loss.backward()
                return loss

            solver.step(closure)
        return cls(weights_D.detach(), dict(zip(earlier, biases_S.tolist(), strict=True)))


class _ShrinkingContext(CachedContext):
    """A context that rows can leave."""

    attention_mask: torch.Tensor
    position_ids: torch.Tensor
    _shared: tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]] | None

    def keep_rows(self, rows: torch.Tensor) -> None:
        """Go on with some rows only, given by their numbers."""
        self.attention_mask, self.position_ids = self.attention_mask[rows], self.position_ids[:, rows]
        if self._shared is not None:
            mask, rotary = self._shared
            cos, sin = (part.index_select(-3, rows) for part in rotary)
            self._shared = mask[rows], (cos, sin)
        for piece in (*self._cache.past, self._cache):
            piece.buffers = {layer: (keys[rows], values[rows]) for layer, (keys, values) in piece.buffers.items()}


def embed_early(
    model: PlumeModel,
    inputs: Mapping[str, Any],
    exit_threshold: float,
    *,
    num_latent_steps: int | None = None,
    task: str | None = None,
    readout_steps: Sequence[int] | None = None,
    exit_head: ExitHead | None = None,
) -> Settled:
    """Embed a batch; every row takes as many latent steps as still move its embedding.

    Args:
        model: The model, in evaluation mode.
        inputs: What the processor returns, on the model's device.
        exit_threshold: A row stops when 1 - cosine of two successive read-outs is below it, or with a head the
            probability that it still moves; between 0 and 1.
        num_latent_steps: K, the most that a row takes. Defaults to the checkpoint's for the task.
        task: ``"query"`` or ``"document"``; only for the default of K.
        readout_steps: Where to read out; K is added. Defaults to every step. Give those that the checkpoint was trained
            to be read at.
        exit_head: Decides instead of the cosine, if given.

    Raises:
        ValueError: If the threshold or a step is out of range, the model is in training mode, or inputs are unusable.
    """
    reads = check_exit(model, exit_threshold, num_latent_steps, task, readout_steps)
    if model.training:
        raise ValueError("The model is in training mode, in which rows do not stop early. Call model.eval() first.")
    with torch.no_grad():
        return _settle(model, inputs, exit_threshold, reads, exit_head)


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


def _settle(
    model: PlumeModel,
    inputs: Mapping[str, Any],
    exit_threshold: float,
    reads: Sequence[int],
    head: ExitHead | None,
) -> Settled:
    config = model.config
    ids_BT, mask_BT = left_aligned(inputs["input_ids"], inputs.get("attention_mask"))
    closing_BS = torch.tensor(config.suffix_token_ids, device=ids_BT.device).expand(len(ids_BT), -1)
    suffix_BSD = model.get_input_embeddings()(closing_BS)
    ahead_BSD = suffix_BSD if reads[0] == 0 else None
    reserved = reads[-1] + closing_BS.shape[1]
    context: Any = model.read_prefix(ids_BT, mask_BT, model.media_of(inputs), reserved, ahead_BSD)
    context.__class__ = _ShrinkingContext
    anchor_BD = state_at(context.hidden, ids_BT, config.anchor_token_id)
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
        if step == reads[-1]:
            break
        kept = (_movement(now_BD, before_BD, step, head) >= exit_threshold).nonzero().flatten()
        if not len(kept):
            break
        if len(kept) < len(rows):
            context.keep_rows(kept)
            rows, anchor_BD, suffix_BSD = rows[kept], anchor_BD[kept], suffix_BSD[kept]
        context.hidden = states_BSD[kept, :1]  # z(step), from which the next rollout starts
        passed, before_BD = step, now_BD[kept]
    check_finite(vectors_BD)
    return Settled(vectors_BD, steps_B)


def _movement(now_BD: torch.Tensor, before_BD: torch.Tensor | None, step: int, head: ExitHead | None) -> torch.Tensor:
    """How much a read-out moves, ``(B,)``: as the head expects, or since the one before; the first one moves."""
    if head is not None:
        return head.moving(now_BD, step)
    return torch.ones_like(now_BD[:, 0]) if before_BD is None else 1 - (now_BD * before_BD).sum(dim=-1)


class _Onward:
    """The transition of a rollout that goes on after some steps."""

    def __init__(self, transition: LatentTransition, passed: int) -> None:
        self.transition, self.passed, self.num_experts = transition, passed, transition.num_experts

    def __call__(self, z_BD: torch.Tensor, step: int, anchor_BD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.transition(z_BD, self.passed + step, anchor_BD)


__all__ = ["ExitHead", "Settled", "embed_early"]

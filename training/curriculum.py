"""The progressive explicit-to-latent curriculum (paper section 3.6), as data and pure functions.

1. A rationale is cut into sentence segments that keep every character (:func:`split_segments`).
2. Stage s of S replaces the first s/S of the segments by round(K s / S) latent steps; what is left, and the answer,
   is supervised suffix. Stage 0 is fully explicit; stage S drops rationale and answer (:class:`Stage`).
3. The stage is a function of the optimizer step alone (:meth:`Curriculum.stage_at`), so any number of workers and
   ranks agree on it and a resumed run needs no extra state.
"""

import bisect
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

# A sentence ends at . ! ? before white space, at a line break, or at a CJK full stop; "3.5" holds no end.
_BOUNDARY = re.compile(r"(?<=[.!?])(?=\s)|(?<=[\n\u3002\uff01\uff1f])(?=.)", re.DOTALL)

PAPER_WEIGHTS = (3.0, 1 / 3, 1 / 3, 1 / 3, 1.0)


def split_segments(rationale: str) -> list[str]:
    """Cut a rationale into sentences; joined again they are the rationale, white space and decimals included.

    >>> split_segments("It stops near 3.5 m of kerb. A man waits.")
    ['It stops near 3.5 m of kerb.', ' A man waits.']
    """
    pieces = [piece for piece in _BOUNDARY.split(rationale) if piece]
    segments: list[str] = []
    for piece in pieces:
        if segments and not piece.strip():
            segments[-1] += piece
        else:
            segments.append(piece)
    return segments


@dataclass(frozen=True)
class Stage:
    """One stage of the curriculum.

    Attributes:
        index: s, from 0 (fully explicit) to S (fully latent).
        num_stages: S, the number of latent stages.
        num_latent_steps: round(K s / S).
        replaced: How many of the first segments the steps replace; the share s / S of a row's, rounded up, if None.
    """

    index: int
    num_stages: int
    num_latent_steps: int
    replaced: int | None = None

    @property
    def is_final(self) -> bool:
        """Whether rationale and answer are dropped, as at inference."""
        return self.index == self.num_stages

    def num_replaced(self, num_segments: int) -> int:
        """How many of the first segments the latent steps replace."""
        if self.replaced is not None:
            return min(num_segments, self.replaced)
        return -(-num_segments * self.index // self.num_stages)

    def rewrite(self, segments: Sequence[list[int]], answer: list[int], suffix: list[int]) -> list[int]:
        """Suffix tokens of one row at this stage.

        Args:
            segments: Token ids of the rationale, one list per segment.
            answer: Token ids between the rationale and the embedding token, answer included.
            suffix: The fully latent suffix ``<elt> ... <gen>``.
        """
        if self.is_final:
            return list(suffix)
        explicit = [token for segment in segments[self.num_replaced(len(segments)) :] for token in segment]
        return [suffix[0], *explicit, *answer, suffix[-1]]


@dataclass(frozen=True)
class Curriculum:
    """Which stage an optimizer step trains.

    Attributes:
        num_latent_steps: K of the final stage.
        weights: Share of each stage 0..S in the run, in any unit; 0 skips a stage. The paper: 3 epochs, 1 shared
            by stages 1 to 3, 1.
        mixing: Probability that a step rehearses an earlier stage, in [0, 1).
        dropout: Probability that a step of the final stage leaves the latent steps out, in [0, 1): what one pass can
            answer is then also answered without them.
        seed: Seed of both draws.
        per_segment: Latent steps for a segment: stage s replaces the first s of them, so that a step does the same
            in short and in long rationales. Equal shares of segments and steps if None.

    Raises:
        ValueError: If the weights are no schedule, or another field is out of range.
    """

    num_latent_steps: int
    weights: tuple[float, ...] = PAPER_WEIGHTS
    mixing: float = 0.0
    dropout: float = 0.0
    seed: int = 0
    per_segment: int | None = None
    stages: list[Stage] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if len(self.weights) < 2 or min(self.weights) < 0 or sum(self.weights) <= 0:
            raise ValueError(
                f"stage_weights={list(self.weights)} is no schedule: give at least two numbers >= 0, one per "
                "stage from fully explicit to fully latent, at least one above 0."
            )
        for name, share in (("stage_mixing", self.mixing), ("latent_dropout", self.dropout)):
            if not 0 <= share < 1:
                raise ValueError(f"{name} must be in [0, 1), got {share}.")
        if self.per_segment is not None and self.per_segment < 1:
            raise ValueError(f"steps_per_sentence must be at least 1, got {self.per_segment}.")
        object.__setattr__(self, "stages", [self._stage(s, len(self.weights) - 1) for s in range(len(self.weights))])

    def _stage(self, index: int, num_stages: int) -> Stage:
        if self.per_segment is None:
            return Stage(index, num_stages, round(self.num_latent_steps * index / num_stages))
        steps = min(self.num_latent_steps, self.per_segment * index)
        final = index == num_stages
        return Stage(index, num_stages, self.num_latent_steps if final else steps, steps // self.per_segment)

    def boundaries(self, max_steps: int) -> list[int]:
        """First step after each stage; the last one is ``max_steps``."""
        total, passed, ends = sum(self.weights), 0.0, []
        for weight in self.weights:
            passed += weight
            ends.append(round(max_steps * passed / total))
        return ends

    def spans(self, max_steps: int) -> list[tuple[Stage, int, int]]:
        """The stages that are trained, each with its first step and the step after its last one."""
        ends = self.boundaries(max_steps)
        spans = zip(self.stages, [0, *ends[:-1]], ends, strict=True)
        return [(stage, first, end) for stage, first, end in spans if end > first]

    def scheduled_at(self, step: int, max_steps: int) -> Stage:
        """The stage that the schedule gives optimizer step ``step`` (0-based), rehearsals aside."""
        index = bisect.bisect_right(self.boundaries(max_steps), min(step, max_steps - 1))
        return self.stages[index]

    def stage_at(self, step: int, max_steps: int) -> Stage:
        """The stage that optimizer step ``step`` trains: the scheduled one, or an earlier one to rehearse it.

        A final stage whose latent steps are left out has ``num_latent_steps`` 0.
        """
        scheduled = self.scheduled_at(step, max_steps)
        if scheduled.is_final and random.Random(f"dropout-{self.seed}-{step}").random() < self.dropout:
            return replace(scheduled, num_latent_steps=0)
        draw = random.Random(f"{self.seed}-{step}")
        earlier = [stage for stage in self.stages[: scheduled.index] if self.weights[stage.index] > 0]
        return draw.choice(earlier) if earlier and draw.random() < self.mixing else scheduled


def refuse_other_curriculum(saved: Mapping[str, Any], own: Mapping[str, Any], checkpoint: str) -> None:
    """Compare what a resumed run must share with the run that saved a checkpoint.

    Args:
        saved: Settings by name, of the run that saved it; what an older version did not save is not compared.
        own: Settings by name, of the run that resumes.
        checkpoint: Named in the message.

    Raises:
        ValueError: If one differs.
    """
    for name, value in own.items():
        if name in saved and saved[name] != value:
            raise ValueError(
                f"The checkpoint {checkpoint} was saved with {name}={saved[name]}, this run has {value}: its stages "
                "would not follow on. Resume with the same value, or start a new run from the checkpoint with "
                "--model_name_or_path."
            )

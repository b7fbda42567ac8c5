"""The learning rate over the stages: the run's schedule, shaped by the curriculum.

1. A last stage with a **schedule of its own** runs through the whole schedule, whatever its share of the run. As
   the tail of one decay it would be trained at a rate that has all but gone.
2. A **factor per stage**.
3. A **new rise** after each change of stage.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from plume.training.curriculum import Curriculum


@dataclass(frozen=True)
class StageLearningRate:
    """What the curriculum does to the learning rate.

    Attributes:
        scales: Factor per stage; all 1 if None.
        rewarm_steps: Steps over which the rate rises again after a change of stage; 0 for none.
        final_schedule: Whether the last stage has a schedule of its own.
    """

    scales: Sequence[float] | None = None
    rewarm_steps: int = 0
    final_schedule: bool = False

    def factor(self, step: int, curriculum: Curriculum, max_steps: int) -> float:
        """Factor on the run's schedule at an optimizer step, 0-based."""
        stage = curriculum.scheduled_at(step, max_steps)
        factor = 1.0 if self.scales is None else self.scales[stage.index]
        starts = [0, *curriculum.boundaries(max_steps)]
        if starts[stage.index] and self.rewarm_steps:
            factor *= min(1.0, (step - starts[stage.index] + 1) / self.rewarm_steps)
        return factor

    def place(self, step: int, curriculum: Curriculum, max_steps: int) -> float:
        """Where the run's schedule, which is laid out over ``max_steps``, is read for an optimizer step."""
        start = curriculum.boundaries(max_steps)[-2]  # of the last stage
        if not self.final_schedule or not 0 < start < max_steps:
            return step
        return step * max_steps / start if step < start else (step - start) * max_steps / (max_steps - start)


def scale_by_stage(scheduler: Any, curriculum: Curriculum, max_steps: int, shape: StageLearningRate) -> None:
    """Shape a ``LambdaLR`` by the stages; its state stays a step counter, so it resumes exactly."""

    def shaped(base: Any) -> Any:
        return lambda step: base(shape.place(step, curriculum, max_steps)) * shape.factor(step, curriculum, max_steps)

    scheduler.lr_lambdas = [shaped(base) for base in scheduler.lr_lambdas]
    groups = zip(scheduler.optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
    for group, peak, factor in groups:
        group["lr"] = peak * factor(0)

"""The learning rate over the stages: the run's schedule, times a factor per stage, rising anew after each change."""

from collections.abc import Sequence
from typing import Any

from plume.training.curriculum import Curriculum


def stage_factor(
    step: int, curriculum: Curriculum, max_steps: int, scales: Sequence[float] | None, rewarm_steps: int
) -> float:
    """Factor on the learning rate at an optimizer step.

    Args:
        step: Optimizer step, 0-based.
        curriculum: The stages.
        max_steps: Steps of the run.
        scales: Factor per stage; all 1 where None.
        rewarm_steps: Steps over which the rate rises again after a change of stage; 0 for none.
    """
    stage = curriculum.scheduled_at(step, max_steps)
    factor = 1.0 if scales is None else scales[stage.index]
    starts = [0, *curriculum.boundaries(max_steps)]
    if starts[stage.index] and rewarm_steps:
        factor *= min(1.0, (step - starts[stage.index] + 1) / rewarm_steps)
    return factor


def scale_by_stage(
    scheduler: Any, curriculum: Curriculum, max_steps: int, scales: Sequence[float] | None, rewarm_steps: int
) -> None:
    """Multiply a ``LambdaLR`` by :func:`stage_factor`; its state stays a step counter, so it resumes exactly."""

    def scaled(base: Any) -> Any:
        return lambda step: base(step) * stage_factor(step, curriculum, max_steps, scales, rewarm_steps)

    scheduler.lr_lambdas = [scaled(base) for base in scheduler.lr_lambdas]
    groups = zip(scheduler.optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
    for group, peak, factor in groups:
        group["lr"] = peak * factor(0)

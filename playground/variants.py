"""The variants that a sweep compares: the ablations of Tables 3 to 6 of the paper."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Variant:
    """One variant: ``num_stages`` latent stages to K ``steps``, ``fields`` of the configuration, whether it jumps."""

    steps: int = 8
    num_stages: int = 4
    jumps: bool = False
    fields: dict[str, Any] = field(default_factory=dict)

    def phases(self, steps: int) -> list[dict[str, Any]]:
        """Options of the trainer's runs after the explicit stage, ``steps`` together; learning rates are relative.

        The stages before the last share one half equally. The last has a run of its own, at a lower rate and with
        rehearsals of the one before: rationale and answer go at once, a shock that the steps do not survive otherwise.
        """
        between = self.num_stages - 1
        if self.jumps:
            jump = [0.0] * self.num_stages + [1.0]
            return [{"max_steps": steps, "stage_weights": jump, "learning_rate": 0.15, "latent_dropout": 0.2}]
        gradual, last = [0.0, *[1.0] * between, 0.0], [0.0] * between + [1.0, 5.0]
        first = round(0.5 * steps)
        return [
            {"max_steps": first, "stage_weights": gradual, "learning_rate": 0.5},
            {
                "max_steps": steps - first,
                "stage_weights": last,
                "learning_rate": 0.15,
                "stage_mixing": 0.4,
                "latent_dropout": 0.2,
            },
        ]


VARIANTS = {
    "full": Variant(),
    "no_latent": Variant(steps=0),
    "no_curriculum": Variant(jumps=True),
    "single_mlp": Variant(fields={"num_experts": 1, "num_active_experts": 1, "use_shared_expert": False}),
    "no_anchor": Variant(fields={"router_uses_anchor": False}),
    "no_step": Variant(fields={"router_uses_step": False}),
    "top1": Variant(fields={"num_active_experts": 1}),
    "no_shared": Variant(fields={"use_shared_expert": False}),
    "k4": Variant(steps=4),
    "k6": Variant(steps=6),
    "stages2": Variant(num_stages=2),
    "stages6": Variant(num_stages=6),
    "stages8": Variant(num_stages=8),
}

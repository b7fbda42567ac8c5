"""A plan that fits the data: what a run does where it was not told, and why.

Whatever was given stays, except a batch above the rows, which could train nothing. The rest follows from the number of
rows, the width of the model, the checkpoint and what the rows hold.
"""

import math
from collections.abc import Set
from dataclasses import dataclass
from typing import Any

from plume.training.config import PlumeTrainingConfig
from plume.training.data import Contents

LARGEST_BATCH, CHUNK_TOKENS, MOST_NEGATIVES = 64, 16_384, 4
PASSES, SHORTEST_RUN = 3, 150  # over the pairs, and optimizer steps, of the last stage
# The paper trains width 1536 at 5e-5; the rate that a width bears falls with it.
_PAPER_RATE, _PAPER_WIDTH, _LORA = 5e-5, 1536, 2.0
FINAL_ONLY, AGAIN = [0.0, 0.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 1.0, 2.0]


@dataclass(frozen=True)
class Facts:
    """What a plan follows from.

    Attributes:
        num_rows: Training pairs; None where they are streamed.
        width: Hidden size of the language model.
        is_trained: Whether the run starts from a PLUME checkpoint, not from a plain backbone.
        uses_lora: Whether only LoRA weights are trained.
        contents: What the first rows hold.
    """

    num_rows: int | None
    width: int
    is_trained: bool
    uses_lora: bool
    contents: Contents


@dataclass(frozen=True)
class Decision:
    """A setting, its value, and the reason for it."""

    name: str
    value: Any
    reason: str

    def __str__(self) -> str:
        return f"{self.name} {self.value}: {self.reason}"


def decide(args: PlumeTrainingConfig, given: Set[str], facts: Facts) -> list[Decision]:
    """Settings that were not given.

    Args:
        args: The run as it was given.
        given: Names of the settings that were given.
        facts: What it starts from.

    Raises:
        ValueError: If there are fewer rows than devices.
    """
    decisions = [*_decide_batch(args, given, facts), *_decide_stages(given, facts)]
    chosen = {decision.name: decision.value for decision in decisions}
    batch = chosen.get("per_device_train_batch_size", args.per_device_train_batch_size)
    if facts.num_rows is not None and not given & {"max_steps", "num_train_epochs"}:
        step = batch * args.world_size * args.gradient_accumulation_steps
        steps = max(math.ceil(PASSES * facts.num_rows / step), SHORTEST_RUN)
        why = f"{PASSES} passes over the pairs, at least {SHORTEST_RUN} steps"
        stages = chosen.get("stage_weights", FINAL_ONLY)
        if sum(stages) > stages[-1]:
            steps, why = math.ceil(steps * sum(stages) / stages[-1]), f"{why}, in the last stage alone"
        decisions.append(Decision("max_steps", steps, why))
    if "learning_rate" not in given:
        rate = _PAPER_RATE * _PAPER_WIDTH / facts.width * (_LORA if facts.uses_lora else 1.0)
        why = (
            f"the paper's rate at width {_PAPER_WIDTH}, for width {facts.width}"
            + ", doubled for LoRA" * facts.uses_lora
        )
        decisions.append(Decision("learning_rate", float(f"{rate:.2g}"), why))
        if not given & {"warmup_steps", "warmup_ratio"}:
            decisions.append(Decision("warmup_steps", 0.05, "share of the run over which the rate rises"))
    return [*decisions, *_decide_negatives(given, facts.contents)]


def _decide_batch(args: PlumeTrainingConfig, given: Set[str], facts: Facts) -> list[Decision]:
    rows, ranks, name = facts.num_rows, args.world_size, "per_device_train_batch_size"
    if rows is None:
        return []
    if rows < ranks:
        raise ValueError(f"There are {rows} training rows for {ranks} devices: nothing could be trained. Add rows.")
    if name in given:
        too_large = args.per_device_train_batch_size * ranks > rows
        return [Decision(name, rows // ranks, f"there are only {rows} pairs")] if too_large else []
    # At least two batches, so pools change, but no pool of one pair: it has no negative, and nothing would be learned.
    batches = min(max(math.ceil(rows / (LARGEST_BATCH * ranks)), 2), max(rows // (2 * ranks), 1))
    decisions = [Decision(name, rows // (batches * ranks), f"{rows} pairs in {batches} equal batches")]
    if not given & {"chunk_size", "chunk_tokens"}:
        decisions.append(Decision("chunk_tokens", CHUNK_TOKENS, "bounds the memory; gradients stay exact"))
    return decisions


def _decide_negatives(given: Set[str], contents: Contents) -> list[Decision]:
    if not contents.negatives:
        return []
    decisions = []
    if "num_negatives" not in given:
        most = min(contents.negatives, MOST_NEGATIVES)
        decisions.append(Decision("num_negatives", most, f"rows hold up to {contents.negatives} hard negatives"))
    if contents.scores and not given & {"teacher", "num_negatives"}:
        decisions.append(Decision("teacher", "scores", f"{contents.scores} rows hold a teacher's scores"))
    return decisions


def _decide_stages(given: Set[str], facts: Facts) -> list[Decision]:
    if "stage_weights" in given:
        return []
    if not facts.contents.rationales:
        return [Decision("stage_weights", FINAL_ONLY, "no row has rationales, so only the last stage can be trained")]
    decisions = []
    if facts.is_trained:
        why = "the checkpoint has been through the curriculum, whose last two stages are enough"
        decisions.append(Decision("stage_weights", AGAIN, why))
        if "latent_view_weight" not in given:
            # What carries over to the last stage: the look-ups are learned in the one before within some ten steps, but
            # an embedding that has only ever read the answer from the suffix has to learn to read it from the latents.
            why = "the embedding learns to do without the answer before the answer is gone"
            decisions.append(Decision("latent_view_weight", 1.0, why))
    if not given & {"final_schedule", "lr_scheduler_type"}:
        decisions.append(Decision("final_schedule", True, "the last stage is not the tail of a decay"))
    return decisions

"""What a run will do, before it does it: the stages, and one pair rewritten to each of them."""

import math
from collections.abc import Sequence
from itertools import islice
from time import perf_counter
from typing import Any

from plume import PlumeConfig, PlumeProcessor
from plume.training.collator import PairCollator
from plume.training.config import PlumeTrainingConfig
from plume.training.trainer import PlumeTrainer

_LOOKED_AT = 1_000  # rows that a timed batch is taken from


def stage_table(args: PlumeTrainingConfig, num_latent_steps: int, max_steps: int) -> list[str]:
    """One line per stage that is trained: its steps, latent steps and what stays explicit."""
    lines = [f"{'stage':>5}  {'steps':>13}  {'latent steps':>12}  explicit"]
    for stage, first, end in args.curriculum(num_latent_steps).spans(max_steps):
        left = stage.num_stages - stage.index
        kept = f"last {left}/{stage.num_stages} of the rationale"
        if stage.replaced is not None:
            kept = f"the rationale after {stage.replaced} sentences"
        explicit = "nothing" if stage.is_final else f"{kept}, answer"
        lines.append(f"{stage.index:>5}  {f'{first}..{end - 1}':>13}  {stage.num_latent_steps:>12}  {explicit}")
    return lines


def estimate_steps(args: PlumeTrainingConfig, num_rows: int | None) -> int:
    """Optimizer steps of a run on one process.

    Raises:
        ValueError: If the data are streamed and no ``max_steps`` is given.
    """
    if args.max_steps > 0:
        return args.max_steps
    if num_rows is None:
        raise ValueError("Streamed data have no length, so the stages cannot be laid out. Give --max_steps.")
    exact = num_rows / (args.per_device_train_batch_size * args.world_size)
    batches = math.floor(exact) if args.dataloader_drop_last else math.ceil(exact)
    return math.ceil(args.num_train_epochs * max(math.ceil(batches / args.gradient_accumulation_steps), 1))


def describe_run(
    args: PlumeTrainingConfig, config: PlumeConfig, processor: PlumeProcessor, rows: Any, plan: Sequence[str] = ()
) -> str:
    """The plan, the stage table and the first pair's query at every stage that is trained."""
    num_latent_steps = config.num_latent_steps if args.num_latent_steps is None else args.num_latent_steps
    num_rows = len(rows) if hasattr(rows, "__len__") else None  # a streamed dataset has no length
    steps = estimate_steps(args, num_rows)
    pool = args.per_device_train_batch_size * args.world_size
    lines = [f"{num_rows or 'streamed'} pairs, {steps} optimizer steps, {pool} pairs in a contrastive pool", *plan, ""]
    lines += stage_table(args, num_latent_steps, steps)
    row = next(iter(rows))
    batch = PairCollator.from_config(processor, args)([row])
    text, decode = batch["texts"].rows[0], processor.tokenizer.decode
    lines += ["", f"query of {row['place']}, after <slt>:"]
    for stage, _, _ in args.curriculum(num_latent_steps).spans(steps):
        suffix = stage.rewrite(text.segments, text.answer, config.suffix_token_ids)
        lines += ["", f"[stage {stage.index}] {processor.latent_token * stage.num_latent_steps}{decode(suffix)}"]
    return "\n".join(lines)


def time_steps(trainer: PlumeTrainer) -> float:
    """Seconds of a forward and backward pass of the last stage, the faster of two; changes no weight."""
    size, rows = trainer.args.per_device_train_batch_size, list(islice(trainer.train_dataset, _LOOKED_AT))
    batch = trainer.data_collator([rows[place % len(rows)] for place in range(size)])
    stages = len(trainer.curriculum.stages)
    trainer.state.max_steps, trainer.state.global_step = stages, stages - 1
    trainer.current_gradient_accumulation_steps = 1
    seconds = []
    for _ in range(2):
        start = perf_counter()
        trainer.training_step(trainer.model, batch)
        seconds.append(perf_counter() - start)
    trainer.model.zero_grad()
    return min(seconds)

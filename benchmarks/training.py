"""``python -m plume.benchmarks training``: what a training step costs in memory and time, on random weights.

1. **Memory**: peak resident memory of one step, above that of the process with its model, with a pool of 8 and of 64
   pairs at the same chunk size, each in a process of its own.
2. **Throughput**: pairs per second of a chunked step against the one-sample-at-a-time loop (every row forward alone,
   one graph over all of them, no chunks: how the authors' code trains), in one process, on the same weights and pairs.
3. **Latent steps**: milliseconds of a step at K = 0, 4 and 8 in chunks of 32 rows, measured in turns.
"""

import argparse
import multiprocessing
import resource
import time
from collections.abc import Callable, Mapping
from functools import partial
from statistics import median
from typing import Any

import psutil
import torch

from plume import PlumeConfig, PlumeModel, PlumeOutput
from plume.benchmarks.models import build_model
from plume.training.collator import Rows, split_rows
from plume.training.grad_cache import cached_backward
from plume.training.losses import Representations, Weights, pool_loss, suffix_ce

_NUM_LATENT_STEPS = 8
_TURNS = 5


def build_training_model(size: str) -> PlumeModel:
    """A random model in training mode, without dropout."""
    return build_model(size, expert_dropout=0.0)[0].train()


def build_rows(
    config: PlumeConfig, pairs: int, prefix: int, suffix: int, num_latent_steps: int = _NUM_LATENT_STEPS
) -> Rows:
    """Random text pairs at a middle stage: a prefix, K latent steps, and a supervised suffix."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(8, 256, (2 * pairs, prefix), generator=generator)
    ids[:, -2], ids[:, -1] = config.anchor_token_id, config.latent_start_token_id
    tail = torch.randint(8, 256, (2 * pairs, suffix), generator=generator)
    tail[:, 0], tail[:, -1] = config.latent_end_token_id, config.embedding_token_id
    inputs: dict[str, Any] = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "suffix_input_ids": tail,
        "suffix_mask": torch.ones_like(tail, dtype=torch.bool),
        "num_latent_steps": num_latent_steps,
    }
    return Rows(inputs, [""] * 2 * pairs, [(0, 0)] * 2 * pairs, 2 * pairs)


def _represent(output: PlumeOutput) -> Representations:
    return Representations(output.embeddings, output.anchor_embeddings, output.router_probs.mean(dim=1))


def _own_loss(output: PlumeOutput, chunk: Rows, pairs: int) -> torch.Tensor:
    return suffix_ce(output.suffix_log_probs, chunk.inputs["suffix_mask"]).sum() / pairs


def _pool_loss(local: Representations) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The contrastive part over a pool whose first half are queries."""
    pairs = len(local.tensors()[0]) // 2
    queries, targets = (
        Representations(*(tensor[part] for tensor in local.tensors())) for part in (slice(pairs), slice(pairs, None))
    )
    return pool_loss(queries, targets, torch.arange(pairs), Weights())


def train_step(model: PlumeModel, rows: Rows, chunk: int) -> None:
    """Gradients of the whole objective over a pool in chunks of so many rows, through GradCache."""
    pairs = len(rows) // 2

    def replay(part: Rows) -> tuple[Representations, torch.Tensor, dict[str, torch.Tensor]]:
        output = model(**part.inputs)
        return _represent(output), _own_loss(output, part, pairs), {}

    cached_backward(
        split_rows(rows, [chunk] * (len(rows) // chunk)),
        lambda part: _represent(model(**{**part.inputs, "suffix_mask": None})),
        replay,
        _pool_loss,
        lambda loss: loss.backward(),
        torch.enable_grad,
    )
    model.zero_grad()


def one_at_a_time(model: PlumeModel, rows: Rows) -> None:
    """The same gradients, row by row and without a cache."""
    pairs, singles = len(rows) // 2, split_rows(rows, [1] * len(rows))
    outputs = [model(**single.inputs) for single in singles]
    found = [_represent(output).tensors() for output in outputs]
    loss, _ = _pool_loss(Representations(*(torch.cat(parts) for parts in zip(*found, strict=True))))
    for output, single in zip(outputs, singles, strict=True):
        loss = loss + _own_loss(output, single, pairs)
    loss.backward()
    model.zero_grad()


def median_ms(steps: Mapping[Any, Callable[[], None]], turns: int) -> dict[Any, float]:
    """Milliseconds of several steps, measured in turns after one to warm up."""
    times: dict[Any, list[float]] = {name: [] for name in steps}
    for turn in range(turns + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if turn:
                times[name].append(1000 * (time.perf_counter() - start))
    return {name: median(values) for name, values in times.items()}


def measure_memory(size: str, pairs: int, chunk: int, prefix: int, suffix: int, results: Any) -> None:
    """Put the resident memory before a step and its peak into ``results``, in MiB."""
    model = build_training_model(size)
    before = psutil.Process().memory_info().rss
    for count in (chunk, pairs):  # the first warms up
        train_step(model, build_rows(model.config, count, prefix, suffix), chunk)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    results.put((before / 1024**2, peak / 1024))


def memory_table(size: str, prefix: int, suffix: int) -> list[dict[str, Any]]:
    """Peak memory of pools of 8 and 64 pairs in chunks of 4 rows, above that of the process with its model."""
    table, context = [], multiprocessing.get_context("spawn")
    for pairs in (8, 64):
        results = context.Queue()
        process = context.Process(target=measure_memory, args=(size, pairs, 4, prefix, suffix, results))
        process.start()
        before, peak = results.get()
        process.join()
        table.append({"pool": pairs, "chunk": 4, "model_mib": round(before), "step_mib": round(peak - before)})
    return table


def throughput_table(size: str, prefix: int, suffix: int, pairs: int = 32) -> list[dict[str, Any]]:
    """Pairs per second of one step over a pool: row by row, then by rows per chunk."""
    model = build_training_model(size)
    rows = build_rows(model.config, pairs, prefix, suffix)
    steps: dict[str, Callable[[], None]] = {"one row at a time": partial(one_at_a_time, model, rows)}
    steps |= {f"chunks of {chunk}": partial(train_step, model, rows, chunk) for chunk in (8, 32, 64)}
    return [
        {"pool": pairs, "step": name, "pairs_per_second": round(1000 * pairs / ms, 2)}
        for name, ms in median_ms(steps, 3).items()
    ]


def latent_steps_table(size: str, prefix: int, suffix: int, pairs: int = 32, chunk: int = 32) -> list[dict[str, Any]]:
    """Milliseconds of one step at K = 0, 4 and 8, in turns, and their multiples of K = 4."""
    model = build_training_model(size)
    steps = {
        latent: partial(train_step, model, build_rows(model.config, pairs, prefix, suffix, latent), chunk)
        for latent in (0, 4, 8)
    }
    found = median_ms(steps, _TURNS)
    return [
        {"latent_steps": latent, "chunk": chunk, "ms": round(ms, 1), "over_k4": round(ms / found[4], 3)}
        for latent, ms in found.items()
    ]


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure, and return the figures with their condition."""
    shape = (options.size, options.prefix, options.suffix)
    condition = {name: value for name, value in vars(options).items() if name not in ("command", "only")}
    report: dict[str, Any] = {
        "condition": {**condition, "threads": torch.get_num_threads(), "torch": torch.__version__, "device": "cpu"}
    }
    if options.only in (None, "memory"):
        report["memory"] = memory = memory_table(*shape)
        report["memory_ratio"] = round(memory[1]["step_mib"] / memory[0]["step_mib"], 3)
    if options.only in (None, "throughput"):
        report["throughput"] = table = throughput_table(*shape)
        report["speedup_of_chunk_32"] = round(table[2]["pairs_per_second"] / table[0]["pairs_per_second"], 2)
    if options.only in (None, "latent_steps"):
        report["latent_steps"] = latent_steps_table(*shape)
    return report

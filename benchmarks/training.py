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
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import Any

import psutil
import torch

from plume import PlumeForEmbedding
from plume.benchmarks.models import TOKENS, build_model
from plume.hub.random_checkpoint import SIZES
from plume.training.collator import Rows, split_rows
from plume.training.grad_cache import cached_backward
from plume.training.losses import Representations, Weights, pool_loss, suffix_ce

_NUM_LATENT_STEPS = 8
_TURNS = 5


def build_training_model(size: str) -> PlumeForEmbedding:
    """A random model in training mode, without dropout."""
    return build_model(size, expert_dropout=0.0).train()


def build_rows(pairs: int, prefix: int, suffix: int, num_latent_steps: int = _NUM_LATENT_STEPS) -> Rows:
    """Random text pairs at a middle stage: a prefix, K latent steps, and a supervised suffix."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(8, 256, (2 * pairs, prefix), generator=generator)
    ids[:, -2], ids[:, -1] = TOKENS["anchor_token_id"], TOKENS["latent_start_token_id"]
    tail = torch.randint(8, 256, (2 * pairs, suffix), generator=generator)
    tail[:, 0], tail[:, -1] = TOKENS["latent_end_token_id"], TOKENS["embedding_token_id"]
    inputs: dict[str, Any] = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "suffix_input_ids": tail,
        "suffix_mask": torch.ones_like(tail, dtype=torch.bool),
        "num_latent_steps": num_latent_steps,
    }
    return Rows(inputs, [""] * 2 * pairs, [(0, 0)] * 2 * pairs, 2 * pairs)


def train_step(model: PlumeForEmbedding, rows: Rows, chunks: Sequence[Rows]) -> None:
    """Gradients of the whole objective over a pool, through GradCache."""
    pairs = len(rows) // 2

    def represent(chunk: Rows) -> Representations:
        output = model(**{**chunk.inputs, "suffix_mask": None})
        return Representations(output.embeddings, output.anchor_embeddings, output.router_probs.mean(dim=1))

    def replay(chunk: Rows) -> tuple[Representations, torch.Tensor]:
        output = model(**chunk.inputs)
        own = suffix_ce(output.suffix_log_probs, chunk.inputs["suffix_mask"]).sum() / pairs
        routing = output.router_probs.mean(dim=1)
        return Representations(output.embeddings, output.anchor_embeddings, routing), own

    def whole(local: Representations) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        queries, targets = (
            Representations(*(t[part] for t in local.tensors())) for part in (slice(0, pairs), slice(pairs, None))
        )
        return pool_loss(queries, targets, torch.arange(pairs), Weights())

    cached_backward(list(chunks), represent, replay, whole, lambda loss: loss.backward(), torch.enable_grad)
    model.zero_grad()


def one_at_a_time(model: PlumeForEmbedding, rows: Rows) -> None:
    """The same gradients, row by row and without a cache."""
    pairs = len(rows) // 2
    singles = split_rows(rows, [1] * len(rows))
    outputs = [model(**single.inputs) for single in singles]
    embeddings = torch.cat([output.embeddings for output in outputs])
    anchors = torch.cat([output.anchor_embeddings for output in outputs])
    routing = torch.cat([output.router_probs.mean(dim=1) for output in outputs])
    queries, targets = (
        Representations(embeddings[part], anchors[part], routing[part])
        for part in (slice(0, pairs), slice(pairs, None))
    )
    loss, _ = pool_loss(queries, targets, torch.arange(pairs), Weights())
    for output, single in zip(outputs, singles, strict=True):
        loss = loss + suffix_ce(output.suffix_log_probs, single.inputs["suffix_mask"]).sum() / pairs
    loss.backward()
    model.zero_grad()


def measure_memory(size: str, pairs: int, chunk: int, prefix: int, suffix: int, results: Any) -> None:
    """Put the resident memory before a step and its peak into ``results``, in MiB."""
    model = build_training_model(size)
    warm = build_rows(chunk, prefix, suffix)
    before = psutil.Process().memory_info().rss
    rows = build_rows(pairs, prefix, suffix)
    for one in (warm, rows):
        train_step(model, one, split_rows(one, [chunk] * (len(one) // chunk)))
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
    model, rows = build_training_model(size), build_rows(pairs, prefix, suffix)
    steps: dict[str, Callable[[], None]] = {"one row at a time": partial(one_at_a_time, model, rows)}
    for chunk in (8, 32, 64):
        chunks = split_rows(rows, [chunk] * (2 * pairs // chunk))
        steps[f"chunks of {chunk}"] = partial(train_step, model, rows, chunks)
    table = []
    for name, step in steps.items():
        step()
        times = []
        for _ in range(3):
            start = time.perf_counter()
            step()
            times.append(time.perf_counter() - start)
        table.append({"pool": pairs, "step": name, "pairs_per_second": round(pairs / sorted(times)[1], 2)})
    return table


def latent_steps_table(size: str, prefix: int, suffix: int, pairs: int = 32, chunk: int = 32) -> list[dict[str, Any]]:
    """Milliseconds of one step at K = 0, 4 and 8, in turns, and their multiples of K = 4."""
    model, steps = build_training_model(size), {}
    for latent in (0, 4, 8):
        rows = build_rows(pairs, prefix, suffix, latent)
        steps[latent] = partial(train_step, model, rows, split_rows(rows, [chunk] * (2 * pairs // chunk)))
    times: dict[int, list[float]] = {latent: [] for latent in steps}
    for turn in range(_TURNS + 1):
        for latent, step in steps.items():
            start = time.perf_counter()
            step()
            if turn:  # the first turn warms up
                times[latent].append(1000 * (time.perf_counter() - start))
    middle = {latent: median(values) for latent, values in times.items()}
    return [
        {"latent_steps": latent, "chunk": chunk, "ms": round(ms, 1), "over_k4": round(ms / middle[4], 3)}
        for latent, ms in middle.items()
    ]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("--size", choices=SIZES, default="small", help="shape of the random model")
    parser.add_argument("--prefix", type=int, default=64, help="prefix tokens per row")
    parser.add_argument("--suffix", type=int, default=32, help="suffix tokens per row")
    parser.add_argument("--only", choices=["memory", "throughput", "latent_steps"], help="measure one of the three")


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

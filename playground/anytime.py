"""What one checkpoint answers at every K, width and number of look-ups: ``python -m plume.playground.anytime``.

Every side is read once, after several numbers of steps from one rollout. From these read-outs follow

1. the **curve**: queries and documents at the same K;
2. **one side cheaper**: queries at the largest K, documents at the others;
3. the **widths**: the leading dimensions of the vectors, at the largest K;
4. **early exit**: a query's read-out where its next one no longer moves, and the steps that it took. It is what
   :func:`plume.embed_early` gives, as tests show.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from matplotlib import rc_context
from matplotlib.figure import Figure
from torch.nn.functional import normalize
from tqdm import tqdm

import plume
from plume import ExitHead
from plume.arguments import ArgumentParser
from plume.evaluation.audit.data import TaskData, load_task
from plume.evaluation.audit.passes import Reader
from plume.evaluation.audit.ranking import rank
from plume.evaluation.store import write_whole
from plume.evaluation.style import PALETTE, STYLE
from plume.evaluation.table import Row, read_table
from plume.playground.tasks import TASKS

STEPS = (0, 1, 2, 3, 4, 5, 6, 7, 8)
EXIT_STEPS = (0, 2, 4, 6, 8)
_SHARES = (8, 4, 2)  # of the width
_FIT_QUERIES = 40  # per task, that an exit head is fitted to


def measure(
    reader: Reader,
    task: TaskData,
    steps: Sequence[int],
    exit_threshold: float | None,
    exit_steps: Sequence[int],
    head: ExitHead | None = None,
) -> Iterator[dict[str, Any]]:
    """Rows of one task: a condition (K of each side, width, threshold), ``n``, ``hit_at_1`` and ``mean_steps``."""
    queries = reader.read(task.queries, steps, name=f"{task.name}: queries").embeddings
    documents = reader.read(task.documents, steps, name=f"{task.name}: documents").embeddings
    most, width = max(steps), next(iter(queries.values())).shape[1]

    def row(found_ND: torch.Tensor, k_query: int, k_document: int, dim: int = width, **more: Any) -> dict[str, Any]:
        cut = (normalize(side[:, :dim], dim=-1) for side in (found_ND, documents[k_document]))
        hit = rank(*cut, task.grades, task.pool).hit.mean().item()
        told = {"k_query": k_query, "k_document": k_document, "dim": dim, "exit_threshold": None, "n": len(found_ND)}
        return {**told, "hit_at_1": hit, "mean_steps": float(k_query), **more}

    yield from (row(queries[k], k, k) for k in steps)
    yield from (row(queries[most], most, k) for k in steps if k != most)
    yield from (row(queries[most], most, most, width // share) for share in _SHARES)
    if exit_threshold is not None:
        vectors, taken = stop(queries, exit_steps, exit_threshold, head)
        by, average = "head" if head else "cosine", taken.double().mean().item()
        yield row(vectors, most, most, exit_threshold=exit_threshold, exit_by=by, mean_steps=average)


def stop(
    readouts: dict[int, torch.Tensor], steps: Sequence[int], exit_threshold: float, head: ExitHead | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The read-out where each row stops, ``(N, D)``, and its step, ``(N,)``; ``steps`` are those that are read."""
    vectors, taken = readouts[steps[-1]].clone(), torch.full((len(readouts[steps[-1]]),), steps[-1])
    for place in range(len(steps) - 2, -1 if head else 0, -1):  # the earliest stop is written last
        step = steps[place]
        if head:
            still = head.moving(readouts[step], step) < exit_threshold
        else:
            still = 1 - (readouts[steps[place - 1]] * readouts[step]).sum(dim=-1) < exit_threshold
        vectors[still], taken[still] = readouts[step][still], step
    return vectors, taken


def measure_checkpoint(
    checkpoint: str | Path,
    table: Path,
    max_queries: int | None = None,
    exit_threshold: float | None = None,
    exit_steps: Sequence[int] = EXIT_STEPS,
    fit_exit_on: Path | None = None,
    tasks: Sequence[str] = (),
    only_last: bool = False,
) -> list[dict[str, Any]]:
    """Rows of a checkpoint on all tasks of a playground's table.

    Args:
        checkpoint: Folder or repository.
        table: Of the playground, e.g. ``WORLD/test/tasks.json``.
        max_queries: Queries per task. Defaults to all.
        exit_threshold: Where a query stops. Defaults to no early exit.
        exit_steps: Where it may stop.
        fit_exit_on: Table whose queries an exit head is fitted to. Defaults to the cosine of successive read-outs.
        tasks: Playground tasks. Defaults to all.
        only_last: Whether to read at the checkpoint's K alone.
    """
    model, processor = plume.load(checkpoint)
    most = model.config.check_num_latent_steps(task="query")
    reader = Reader(model, processor, max(most, 1), batch_size=64)  # it runs a step at least; K = 0 is a read-out of it
    steps = [k for k in STEPS if k == most or (k < most and not only_last)]
    head = None
    if fit_exit_on:
        head = fit_head(reader, _rows_of(fit_exit_on, tasks), fit_exit_on.parent, exit_steps, _FIT_QUERIES)
    found = []
    for row in tqdm(_rows_of(table, tasks), desc="anytime", unit="task"):
        task = load_task(row, table.parent, max_queries=max_queries)
        facts = {"task": row.extras["playground_task"], "split": row.extras["split"], "hops": task.hops}
        found += [{**facts, **measured} for measured in measure(reader, task, steps, exit_threshold, exit_steps, head)]
    return found


def _rows_of(table: Path, tasks: Sequence[str]) -> list[Row]:
    return [row for row in read_table(table).rows if not tasks or row.extras["playground_task"] in tasks]


def fit_head(
    reader: Reader, rows: Sequence[Row], data_root: Path, exit_steps: Sequence[int], max_queries: int | None = None
) -> ExitHead:
    """A head fitted to the queries of some tasks, e.g. of the dev split."""
    tasks = [load_task(row, data_root, max_queries=max_queries) for row in rows]
    found = [reader.read(task.queries, exit_steps, name=f"{task.name}: queries").embeddings for task in tasks]
    return ExitHead.fit({step: torch.cat([readouts[step] for readouts in found]) for step in exit_steps})


def curves(rows: Sequence[dict[str, Any]]) -> dict[int, dict[int, list[float]]]:
    """Hit@1 of the chains in percent, by number of look-ups and K: one number per seed, the mean over the tasks."""
    found: dict[int, dict[int, dict[int, list[float]]]] = {}
    width = max(row["dim"] for row in rows)
    for row in rows:
        whole = row["dim"] == width and row["exit_threshold"] is None and row["k_query"] == row["k_document"]
        if whole and not TASKS[row["task"]].control:
            by_seed = found.setdefault(row["hops"], {}).setdefault(row["k_query"], {})
            by_seed.setdefault(row["seed"], []).append(100 * row["hit_at_1"])
    return {
        hops: {k: [mean(by_seed[seed]) for seed in sorted(by_seed)] for k, by_seed in sorted(by_k.items())}
        for hops, by_k in sorted(found.items())
    }


def draw(rows: Sequence[dict[str, Any]], file: Path) -> None:
    """Draw the curve over K of the chains, one line per number of look-ups: mean over seeds, in a band of all seeds."""
    with rc_context(STYLE):
        figure = Figure(figsize=(5.6, 3.4), layout="constrained")
        axes = figure.subplots()
        for (hops, by_k), color in zip(curves(rows).items(), PALETTE, strict=False):
            steps, hits = list(by_k), list(by_k.values())
            axes.plot(steps, list(map(mean, hits)), color=color, marker="o", markersize=3, label=f"{hops}")
            axes.fill_between(steps, list(map(min, hits)), list(map(max, hits)), color=color, alpha=0.2, linewidth=0)
        axes.set(xlabel="K, latent steps of queries and documents", ylabel="Hit@1 (%)", ylim=(0, 103))
        axes.legend(title="look-ups", fontsize="small")
        figure.savefig(file)


def read_rows(file: Path) -> list[dict[str, Any]]:
    """Rows of a results file; none if it is not there."""
    return list(json.loads(file.read_text("utf-8"))) if file.exists() else []


def add_rows(file: Path, found: Sequence[dict[str, Any]], named: dict[str, Any]) -> list[dict[str, Any]]:
    """Write the rows of a run into a results file, in the place of those of the same name; returns all of them."""
    rows = [row for row in read_rows(file) if not named.items() <= row.items()]
    rows += [{**named, **row} for row in found]
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(row, allow_nan=False) for row in rows)
    write_whole(file, f"[\n{lines}\n]\n")
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, measure, and add the rows to a file; rows of the same variant and seed are replaced."""
    parser = ArgumentParser(prog="python -m plume.playground.anytime", description=__doc__)
    parser.add_argument("--model", required=True, help="checkpoint")
    parser.add_argument("--table", type=Path, required=True, help="table of a playground, e.g. WORLD/test/tasks.json")
    parser.add_argument("--tasks", nargs="*", default=[], help="playground tasks; all if omitted")
    parser.add_argument("--max-queries", type=int, help="queries per task; all if omitted")
    parser.add_argument("--variant", default="anytime", help="name of the run in the rows")
    parser.add_argument("--seed", type=int, default=0, help="seed of the run in the rows")
    parser.add_argument("--exit-threshold", type=float, help="1 - cosine of two read-outs below which a query stops")
    parser.add_argument("--exit-steps", type=int, nargs="+", default=list(EXIT_STEPS), help="where it may stop")
    parser.add_argument("--fit-exit-on", type=Path, help="table whose queries an exit head is fitted to, e.g. of dev")
    parser.add_argument("--output", type=Path, required=True, help="JSON file of the rows")
    parser.add_argument(
        "--plot", type=Path, help="draw the curve over K of this variant, over its seeds, into this file"
    )
    options = parser.parse_args(arguments)
    found = measure_checkpoint(
        options.model,
        options.table,
        options.max_queries,
        options.exit_threshold,
        options.exit_steps,
        options.fit_exit_on,
        options.tasks,
    )
    rows = add_rows(options.output, found, {"variant": options.variant, "seed": options.seed})
    if options.plot:
        draw([row for row in rows if row["variant"] == options.variant], options.plot)


if __name__ == "__main__":
    main()

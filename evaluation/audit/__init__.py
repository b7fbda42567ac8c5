"""Are the latent steps used, and for what? ``python -m plume.evaluation audit --model M --data-root D --out O``.

1. **Read** each task under many conditions (``data``, ``passes``, ``intervene``), as few passes as that takes.
2. **Measure** (``measure``): what it costs to drop, exchange or blur the latent states; K; the way step by step; words;
   experts; collapse.
3. **Report** (``summary``, ``plots``, ``report``): one page with pictures, and all numbers as JSON.

A finished task is kept in ``OUT/tasks`` and not measured again, so an interrupted audit continues where it stopped. One
that fails is recorded in ``OUT/failed`` and the next one runs; the report is written when all are there.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from plume.evaluation.audit.data import load_task
from plume.evaluation.audit.measure import measure
from plume.evaluation.audit.passes import Reader
from plume.evaluation.audit.plots import draw_all
from plume.evaluation.audit.report import write_report
from plume.evaluation.embedders import ModelEmbedder
from plume.evaluation.runner import default_prompt_set
from plume.evaluation.store import Failures, read_kept, write_json, write_whole
from plume.evaluation.table import AUDIT_QUERIES, AUDIT_SWEEP, Row


def audit(
    embedder: ModelEmbedder,
    rows: Sequence[Row],
    data_root: str | Path,
    out: str | Path,
    *,
    media_root: str | Path | None = None,
    prompt_set: str | None = None,
    max_queries: int | None = AUDIT_QUERIES,
    sweep: Sequence[int] | None = None,
    batch_size: int = 8,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Audit a checkpoint on tasks and write the report.

    Args:
        embedder: Model and processor in memory, in evaluation mode, and the K to audit.
        rows: Tasks, from :func:`~plume.evaluation.table.read_table`.
        data_root: As in :func:`~plume.evaluation.tasks.make_task`.
        out: Folder of the report: ``audit.md``, its pictures, ``audit.json``, and ``tasks/`` to continue from.
        media_root: As in :func:`~plume.evaluation.tasks.make_task`.
        prompt_set: As in :func:`~plume.evaluation.runner.evaluate`.
        max_queries: Queries per task; all if None.
        sweep: Numbers of latent steps to compare. Defaults to 0, 1, 2, 4, 6, 8 as far as the model goes.
        batch_size: Inputs per forward pass.
        seed: Of the draw of queries, of shuffles and noise.

    Returns:
        One dict per task, as in ``audit.json``.

    Raises:
        ValueError: If options are unusable, or ``out`` holds an audit of another condition.
        ConnectionError: At the first task whose data must come from the Hub, if it cannot be reached.
        FailedTasksError: After the last task, if some failed, e.g. by unusable data.
    """
    config = embedder.model.config
    steps = config.check_num_latent_steps(embedder.latent_steps, "query")  # documents are audited at this K too
    reader = Reader(embedder.model, embedder.processor, steps, batch_size)
    if sweep is None:
        sweep = [k for k in AUDIT_SWEEP if k <= config.max_latent_steps]
    for k in sweep:
        config.check_num_latent_steps(k)
    prompt_set = prompt_set or default_prompt_set(embedder)
    condition = {
        **embedder.condition,
        "latent_steps": steps,
        "dtype": str(embedder.model.dtype).removeprefix("torch."),
        "prompt_set": prompt_set,
        "max_queries": max_queries,
        "sweep": list(sweep),
        "seed": seed,
    }
    folder = Path(out)
    (folder / "tasks").mkdir(parents=True, exist_ok=True)
    files = {row.id: folder / "tasks" / f"{row.id}.json" for row in rows}
    asked = {row.id: {**condition, **_identity(row)} for row in rows}
    kept = {name: read_kept(file, asked[name]) for name, file in files.items()}
    results: list[dict[str, Any]] = []
    failures = Failures(folder)
    for row in tqdm(rows, desc="audit", unit="task"):
        with failures.recorded(row.id):
            done = kept[row.id]
            if done is None:
                task = load_task(
                    row, data_root, media_root=media_root, prompt_set=prompt_set, max_queries=max_queries, seed=seed
                )
                done = {"condition": asked[row.id], "result": measure(reader, task, sweep, seed)}
                write_json(files[row.id], done)
            results.append(done["result"])
    failures.check(results)
    write_json(folder / "audit.json", {"condition": condition, "tasks": results})
    write_whole(folder / "audit.md", write_report(condition, results, draw_all(results, folder)))
    return results


def _identity(row: Row) -> dict[str, Any]:
    """What of a task must be the same for its figures to hold."""
    names = {"benchmark": row.benchmark, "version": row.version, "definition": row.definition}
    return {**names, "dataset": dict(row.dataset)}

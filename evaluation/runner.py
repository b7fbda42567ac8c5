"""Run tasks with a checkpoint: one result file per task, which says under which condition the score holds.

1. **Load** the checkpoint, or take what is given.
2. **Per task**: read its data, let mteb encode, search and score; a task with a result file of the same condition is
   skipped, one with a result of another condition is refused.
3. **Write** ``OUT/<task>.json``. A task that fails is recorded in ``OUT/failed``, and the next one runs.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mteb
from tqdm import tqdm

import plume
from plume.evaluation import baselines
from plume.evaluation.embedders import (
    EarlyEmbedder,
    Embedder,
    PooledEmbedder,
    fingerprint,
    load_embedder,
)
from plume.evaluation.encoder import PlumeEncoder, digest
from plume.evaluation.store import Failures, read_kept, write_json
from plume.evaluation.table import METRICS, Row, make_row
from plume.evaluation.tasks import TableTask, make_task
from plume.layouts import RELEASED_LAYOUT

_LIBRARIES = ("mteb", "torch", "transformers", "datasets", "pillow")


def evaluate(
    model: str | Path | Embedder,
    rows: Iterable[Row | Mapping[str, Any]],
    data_root: str | Path,
    out: str | Path | None = None,
    *,
    media_root: str | Path | None = None,
    prompt_set: str | None = None,
    latent_steps: int | None = None,
    baseline: str | None = None,
    exit_threshold: float | None = None,
    exit_steps: Sequence[int] | None = None,
    dim: int | None = None,
    num_frames: int | None = None,
    batch_size: int = 8,
    devices: Sequence[str] = (),
    dtype: str = "auto",
    revision: str | None = None,
    vectors: str | Path | None = None,
    num_workers: int | None = None,
    progress: bool = True,
    name: str | None = None,
) -> list[dict[str, Any]]:
    """Score a checkpoint on tasks.

    Args:
        model: Folder or Hub id of a checkpoint, or an embedder in memory such as
            [`~plume.evaluation.embedders.ModelEmbedder`].
        rows: Tasks, from :func:`~plume.evaluation.table.read_table` or as written in a table file.
        data_root: Folder of local copies of the data sets; what is not there comes from the Hub.
        out: Folder of the result files. Defaults to none.
        media_root: Folder of images and frames. Defaults to ``data_root``.
        prompt_set: ``"clean"`` or ``"official"``; if omitted what the checkpoint was evaluated with, which is
            ``"official"`` for checkpoints with the released prompt.
        latent_steps: K. Defaults to the checkpoint's. Not with an embedder in memory.
        baseline: ``"single-pass"`` (K = 0) or ``"explicit-cot"`` (writes the rationale, then embeds) over the same
            checkpoint. Not with an embedder in memory.
        exit_threshold: 1 - cosine of two read-outs below which an input stops thinking. Not with an embedder in memory.
        exit_steps: Where it may stop. Defaults to every step.
        dim: Leading dimensions to keep. Defaults to all.
        num_frames: Frames per clip. Defaults to the table's.
        batch_size: Inputs per forward pass.
        devices: Torch devices; several share each task.
        dtype: Of the weights.
        revision: Of a Hub checkpoint.
        vectors: Folder for vectors, from which a killed run resumes. Defaults to ``out/vectors``.
        num_workers: Processes that decode media. Defaults to this process.
        progress: Whether to show progress.
        name: Name in the results. Defaults to the checkpoint's.

    Returns:
        One result per task: ``task``, ``group``, ``metric``, ``score`` in [0, 1], ``n`` (queries),
        ``num_candidates``, ``scores``, ``condition``, ``data`` (hashes), ``vectors``, ``seconds``, ``libraries``, and
        the row's extra keys; with a threshold also ``mean_steps`` per role, of the inputs embedded in this run.

    Raises:
        ValueError: If options are unusable, or ``out`` holds results of another condition.
        ConnectionError: At the first task whose data must come from the Hub, if it cannot be reached.
        FailedTasksError: After the last task, if some failed, e.g. by unusable data; the others are in its ``results``.
    """
    embedder = _embedder(
        model,
        baseline,
        latent_steps=latent_steps,
        devices=devices,
        batch_size=batch_size,
        dtype=dtype,
        revision=revision,
        exit_threshold=exit_threshold,
        exit_steps=exit_steps,
    )
    prompt_set = prompt_set or default_prompt_set(embedder)
    out = Path(out) if out else None
    store = vectors or (out / "vectors" if out else None)
    title = name or (Path(model).name if isinstance(model, (str, Path)) else "plume")
    encoder = PlumeEncoder(embedder, name=title, dim=dim, store=store)
    made = [row if isinstance(row, Row) else make_row(row) for row in rows]
    options = (data_root, prompt_set, media_root, num_frames)
    results: list[dict[str, Any]] = []
    failures, batch = Failures(out), batch_size * max(1, len(devices))
    try:
        kept = {row.id: read_kept(_file(out, row), condition_of(encoder, make_task(row, *options))) for row in made}
        for row in tqdm(made, desc=title, unit="task", disable=not progress):
            with failures.recorded(row.id):
                result, task = kept[row.id], make_task(row, *options)
                if result is None:
                    result = run_task(encoder, task, batch_size=batch, num_workers=num_workers, progress=progress)
                    _keep(_file(out, row), result)
                results.append(result)
    finally:
        if isinstance(embedder, PooledEmbedder):
            embedder.close()
    failures.check(results)
    return results


def _file(out: Path | None, row: Row) -> Path | None:
    return out / f"{row.id}.json" if out else None


def _keep(file: Path | None, result: Mapping[str, Any]) -> None:
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, result)


def _embedder(model: str | Path | Embedder, baseline: str | None, **options: Any) -> Embedder:
    if not isinstance(model, (str, Path)):
        if baseline or options["latent_steps"] is not None or options["exit_threshold"] is not None:
            raise ValueError(
                "baseline, latent_steps and exit_threshold have no effect on an embedder in memory. Build the embedder "
                "with them."
            )
        return model
    if baseline and (options["latent_steps"] is not None or options["exit_threshold"] is not None):
        raise ValueError(
            f"The baseline {baseline} takes no latent steps, which contradicts --num-latent-steps and "
            "--exit-threshold. Drop one."
        )
    if baseline in (None, "single-pass"):
        return load_embedder(model, **{**options, **({"latent_steps": 0} if baseline else {})})
    devices, dtype, revision = options["devices"], options["dtype"], options["revision"]
    if len(devices) > 1:
        raise ValueError(f"The baseline {baseline} runs on one device; give one with --devices, or split the tasks.")
    device = devices[0] if devices else None
    loaded = plume.load(model, device=device, dtype=dtype, revision=revision or "main")
    return baselines.load(baseline, *loaded, checkpoint=fingerprint(model, revision))


def default_prompt_set(embedder: Embedder) -> str:
    """The instructions that a checkpoint was evaluated with: ``"official"`` with the released prompt."""
    return "official" if embedder.condition.get("anchor_token") == RELEASED_LAYOUT.anchor else "clean"


def condition_of(encoder: PlumeEncoder, task: TableTask) -> dict[str, Any]:
    """Everything that two scores must share to be comparable."""
    row = task.row
    return {
        "benchmark": row.benchmark,
        "version": row.version,
        "definition": row.definition,
        "page_labels": row.page_labels,
        "metric": row.metric,
        "prompt_set": task.prompt_set,
        "num_frames": task.media.num_frames,
        "dim": encoder.dim,
        "dataset": dict(row.dataset),
        **encoder.embedder.condition,
    }


def run_task(
    encoder: PlumeEncoder,
    task: TableTask,
    *,
    batch_size: int = 8,
    num_workers: int | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Score one task; arguments and result as in :func:`evaluate`."""
    started, row = time.perf_counter(), task.row
    encoder.vectors = {}
    early = encoder.embedder if isinstance(encoder.embedder, EarlyEmbedder) else None
    if early:
        early.taken.clear()
    task.load_data()
    split = row.dataset["split"]
    queries, corpus = (task.dataset["default"][split][name] for name in ("queries", "corpus"))
    done = mteb.evaluate(
        encoder,
        task,
        cache=None,
        co2_tracker=False,
        encode_kwargs={"batch_size": batch_size, "show_progress_bar": progress},
        show_progress_bar=False,
        num_proc=num_workers,
    )
    scores = done.task_results[0].scores[split][0]
    return {
        "task": row.id,
        "group": row.group,
        "modality": row.modality,
        "metric": row.metric,
        "score": scores[METRICS[row.metric]],
        "n": len(queries),
        "num_candidates": len(corpus),
        "scores": {ours: scores[theirs] for ours, theirs in METRICS.items()},
        "condition": condition_of(encoder, task),
        "data": {"queries": digest(queries), "corpus": digest(corpus)},
        "vectors": dict(encoder.vectors),
        **({"mean_steps": early.mean_steps()} if early else {}),
        "seconds": round(time.perf_counter() - started, 3),
        "libraries": {library: version(library) for library in _LIBRARIES},
        **row.extras,
    }

"""The score after several numbers of latent steps, from one rollout per input.

1. **Embed** each side of a task once, and keep the read-out after every number of steps.
2. **Score** each number of steps with its own read-outs: ``OUT/kK`` is a folder of results like that of a run at K,
   so ``plume evaluate table OUT/k*`` puts them next to each other.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from mteb.types import PromptType
from tqdm import tqdm

from plume.checks_plume import check_finite, check_readout_steps
from plume.evaluation.embedders import ModelEmbedder, load_embedder
from plume.evaluation.encoder import PlumeEncoder, describe, finish, to_inputs
from plume.evaluation.runner import condition_of, default_prompt_set, run_task
from plume.evaluation.store import Failures, read_kept, write_json
from plume.evaluation.table import Row, make_row
from plume.evaluation.tasks import TableTask, make_task

_ALLOWED = ("devices", "dtype", "revision")


class CurveEncoder(PlumeEncoder):
    """An encoder that embeds a side once and then gives its read-outs one after the other; ``step`` says which."""

    def __init__(self, embedder: ModelEmbedder, steps: Sequence[int], **options: Any) -> None:
        super().__init__(embedder, **options)
        self.steps, self.step = list(steps), steps[0]
        self.read: dict[str, np.ndarray] = {}  # (N, R, D) per role

    def encode(self, inputs: Any, *, prompt_type: PromptType | None = None, **kwargs: Any) -> np.ndarray:
        """Vectors of all inputs after the chosen step, ``(N, D)``; arguments as in :class:`PlumeEncoder`."""
        role = "query" if prompt_type == PromptType.query else "document"
        if role not in self.read:
            self.read[role] = np.concatenate([self._read(to_inputs(batch)) for batch in inputs])
        finished = finish(self.read[role][:, self.steps.index(self.step)], self.dim)
        self.vectors[role] = describe(finished)
        return finished

    def _read(self, items: list[dict[str, Any]]) -> np.ndarray:
        embedder: Any = self.embedder
        vectors = embedder.readouts(items, self.steps)
        self.num_encoded += len(items)
        check_finite(vectors)
        return vectors.numpy()


def evaluate_curve(
    model: str | Path | ModelEmbedder,
    rows: Iterable[Row | Mapping[str, Any]],
    data_root: str | Path,
    out: str | Path | None = None,
    *,
    steps: Sequence[int],
    media_root: str | Path | None = None,
    prompt_set: str | None = None,
    dim: int | None = None,
    num_frames: int | None = None,
    batch_size: int = 8,
    num_workers: int | None = None,
    progress: bool = True,
    name: str | None = None,
    **options: Any,
) -> list[dict[str, Any]]:
    """Score a checkpoint after several numbers of latent steps, queries and documents at the same one.

    Args:
        model: Folder or Hub id of a checkpoint, or an embedder in memory.
        rows: Tasks.
        data_root: Folder of local copies of the data sets.
        out: Folder of the result folders. Defaults to none.
        steps: Numbers of steps, increasing.
        media_root: As in :func:`~plume.evaluation.runner.evaluate`, and so on.
        prompt_set: Instructions.
        dim: Leading dimensions to keep.
        num_frames: Frames per clip.
        batch_size: Inputs per forward pass.
        num_workers: Processes that decode media.
        progress: Whether to show progress.
        name: Name in the results.
        **options: ``devices`` (one), ``dtype`` and ``revision``.

    Returns:
        Results, by number of steps and then by task.

    Raises:
        ValueError: If options are unusable, or ``out`` holds results of another condition.
        FailedTasksError: After the last task, if some failed.
    """
    if refused := sorted(name for name, value in options.items() if value and name not in _ALLOWED):
        raise ValueError(
            f"{', '.join(refused)}: not with several numbers of latent steps. Give one K, or leave it out."
        )
    if isinstance(model, (str, Path)):
        if len(options.get("devices", ())) > 1:
            raise ValueError("The curve over K runs on one device: give one with --devices, or a single K.")
        embedder: Any = load_embedder(model, **{name: options[name] for name in _ALLOWED if name in options})
    else:
        embedder = copy(model)  # whose condition says another K with every step
    most = embedder.model.config.check_num_latent_steps(max(steps))
    check_readout_steps(steps, most)
    title = name or (Path(model).name if isinstance(model, (str, Path)) else "plume")
    encoder = CurveEncoder(embedder, steps, name=title, dim=dim)
    made = [row if isinstance(row, Row) else make_row(row) for row in rows]
    task_options = (data_root, prompt_set or default_prompt_set(embedder), media_root, num_frames)
    found: list[dict[str, Any]] = []
    folder = Path(out) if out else None
    failures, running = Failures(folder), {"batch_size": batch_size, "num_workers": num_workers, "progress": progress}
    for row in tqdm(made, desc=title, unit="task", disable=not progress):
        with failures.recorded(row.id):
            found += _score(encoder, partial(make_task, row, *task_options), folder, running)
    failures.check(found)
    return sorted(found, key=lambda result: result["condition"]["latent_steps"])


def _score(
    encoder: CurveEncoder, make: Callable[[], TableTask], folder: Path | None, running: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Results of one task at every number of steps; those that are there already are read."""
    results = []
    encoder.read.clear()
    for step in encoder.steps:
        encoder.step, task = step, make()
        encoder.embedder.condition = {**encoder.embedder.condition, "latent_steps": step}
        file = folder / f"k{step}" / f"{task.row.id}.json" if folder else None
        result = read_kept(file, condition_of(encoder, task))
        if result is None:
            result = run_task(encoder, task, **running)
            if file:
                file.parent.mkdir(parents=True, exist_ok=True)
                write_json(file, result)
        results.append(result)
    return results

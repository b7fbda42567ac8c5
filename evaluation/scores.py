"""From results to means: all or nothing, one data version at a time.

- A mean over a group, a modality or all tasks exists only if every task of it has a score.
- Means are unweighted over tasks (not over queries, not over group means), in percent.
- Scores of different data versions meet only on the tasks that are the same in both: the page labels of two tasks and
  the clips of a third changed (``incomparable`` in the table's ``meta``), and these are set apart.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plume.evaluation.table import Row, Table

REFERENCES = Path(__file__).with_name("mmeb_v2_reference_scores.json")
_OF_A_TASK = ("definition", "page_labels", "metric", "num_frames", "dataset")  # the rest all results must share
GIVE_TABLE = "Pass --table FILE, the table that they were made with (of a playground: WORLD/test/tasks.json)."
MODALITIES = ("image", "video", "visdoc")


@dataclass(frozen=True)
class Column:
    """The scores of one model under one data version.

    Attributes:
        model: Name.
        version: Data version.
        page_labels: Which labels the page tasks had; empty if there are none.
        scores: Percent per task; none if there is no score.
        printed: Means as their source prints them.
        condition: What the scores depend on, for our own.
        source: Where they come from.
        note: What a reader must know.
    """

    model: str
    version: str
    page_labels: str
    scores: Mapping[str, float | None]
    printed: Mapping[str, float] = field(default_factory=dict)
    condition: Mapping[str, Any] = field(default_factory=dict)
    source: str = "measured here"
    note: str | None = None

    @property
    def protocol(self) -> str:
        """Data version and page labels: columns are comparable on all tasks if they share it."""
        labels = f", pages {self.page_labels.split(' ')[0]}" if self.page_labels else ""
        return self.version.split("-")[0] + labels


def mean(scores: Mapping[str, float | None], tasks: Iterable[str]) -> float | None:
    """Unweighted mean over tasks; none unless every one has a score."""
    values = [scores.get(task) for task in tasks]
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def means(column: Column, rows: Sequence[Row], without: Sequence[str] = ()) -> dict[str, float | None]:
    """Means of a column: per group, per modality, and ``all``.

    Args:
        column: The scores.
        rows: All tasks of the table.
        without: Tasks that no mean includes.
    """
    kept = [row for row in rows if row.id not in without]
    keys = [*dict.fromkeys(row.group for row in rows), *MODALITIES, "all"]
    return {
        key: mean(column.scores, [row.id for row in kept if key in (row.group, row.modality, "all")]) for key in keys
    }


def check_same_version(columns: Sequence[Column]) -> None:
    """Refuse columns of different data versions.

    Raises:
        ValueError: If there are several.
    """
    protocols = sorted({column.protocol for column in columns})
    if len(protocols) > 1:
        raise ValueError(
            f"The scores belong to different data versions ({'; '.join(protocols)}), so means that include the changed "
            "tasks cannot be compared. Compare one version, or leave the changed tasks out."
        )


def read_results(folder: str | Path) -> list[dict[str, Any]]:
    """Result files of a folder.

    Raises:
        ValueError: If there are none, or a file is no result.
    """
    files = sorted(Path(folder).glob("*.json"))
    results = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    for file, result in zip(files, results, strict=True):
        if not isinstance(result, dict) or not {"task", "score", "condition"} <= result.keys():
            raise ValueError(f"{str(file)!r} is no result of an evaluation. Keep other files out of this folder.")
    if not results:
        raise ValueError(f"The folder {str(folder)!r} holds no result. Run `plume evaluate run --output` there.")
    return results


def read_failures(folder: str | Path) -> dict[str, str]:
    """Tasks that failed in a run, and why."""
    records = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(Path(folder, "failed").glob("*.json"))]
    return {record["task"]: record["reason"] for record in records}


def shared_keys(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """What of their conditions the results of one folder must share to be one column of a table."""
    return sorted({key for result in results for key in result["condition"] if key not in _OF_A_TASK})


def results_column(folder: str | Path, table: Table) -> Column:
    """Our results as a column.

    Raises:
        ValueError: If the results do not share one condition, one names a task twice, or they belong to another table.
    """
    results = read_results(folder)
    tasks = [result["task"] for result in results]
    if len(set(tasks)) < len(tasks):
        raise ValueError(f"The folder {str(folder)!r} holds a task twice, so it is unclear which score counts.")
    for key in shared_keys(results):
        values = {json.dumps(result["condition"].get(key), sort_keys=True) for result in results}
        if len(values) > 1:
            raise ValueError(
                f"The results in {str(folder)!r} differ in {key} ({', '.join(sorted(values))}), so no mean over them "
                "means anything. Keep one condition per folder."
            )
    condition = {key: results[0]["condition"].get(key) for key in shared_keys(results)}
    if (condition["benchmark"], condition["version"]) != (table.meta.get("benchmark"), table.meta.get("version")):
        raise ValueError(
            f"The results in {str(folder)!r} are of {condition['benchmark']} {condition['version']}, the table is "
            f"{table.meta.get('benchmark')} {table.meta.get('version')}. {GIVE_TABLE}"
        )
    failed = read_failures(folder)
    return Column(
        f"{Path(folder).name} ({_describe(condition)})",
        str(condition["version"]),
        table.meta.get("page_labels") or "",
        {result["task"]: 100 * result["score"] for result in results},
        condition=condition,
        note=f"failed, so no mean includes them: {', '.join(sorted(failed))}" if failed else None,
    )


def _describe(condition: Mapping[str, Any]) -> str:
    parts = [condition.get("baseline") or f"K={condition['latent_steps']}"]
    parts += [f"dim {condition['dim']}"] if condition.get("dim") else []
    return ", ".join([*parts, f"{condition['prompt_set']} prompts"])


def reference_columns(path: Path = REFERENCES) -> list[Column]:
    """Published scores, each with its data version."""
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    return [
        Column(
            row["model"],
            row["version"],
            row["page_labels"],
            row["scores"],
            printed=row.get("printed", {}),
            source=row["source"],
            note=row.get("errata"),
        )
        for row in rows
    ]


def choose_references(names: Sequence[str], columns: Sequence[Column] | None = None) -> list[Column]:
    """Published columns by ``MODEL`` or ``MODEL@VERSION``; a version is the beginning of its name, or ``paper``.

    Raises:
        ValueError: If a name matches none.
    """
    columns = reference_columns() if columns is None else columns
    chosen = []
    for name in names:
        model, _, version = name.partition("@")
        found = [c for c in columns if c.model == model and (version in c.version or not version)]
        if not found:
            raise ValueError(f"There are no published scores {name!r}. Known: {sorted({c.model for c in columns})}.")
        chosen += found
    return chosen


def read_vlm2vec(path: str | Path) -> tuple[Column, dict[str, dict[str, float]]]:
    """A score file in the VLM2Vec layout ``{"metadata": ..., "metrics": {modality: {task: {metric: value}}}}``.

    Returns:
        The column (headline metrics in percent, names without ``-fixed``), and all metrics per task.

    Raises:
        ValueError: If the file has another layout.
    """
    content = json.loads(Path(path).read_text(encoding="utf-8"))
    if not isinstance(content, dict) or not {"metadata", "metrics"} <= content.keys():
        raise ValueError(f"{str(path)!r} is not in the VLM2Vec layout: it needs 'metadata' and 'metrics'.")
    metrics = {
        task: values
        for modality in MODALITIES
        for task, values in content["metrics"].get(modality, {}).items()
        if isinstance(values, dict)
    }
    headline = {
        task.removesuffix("-fixed"): 100
        * values["ndcg_linear@5" if task in content["metrics"].get("visdoc", {}) else "hit@1"]
        for task, values in metrics.items()
    }
    fixed = any(task.endswith("-page-fixed") for task in metrics)
    labels = "fixed" if fixed else "unknown"
    return Column(content["metadata"].get("model_name", Path(path).stem), "unknown", labels, headline), metrics

"""Is a score what it says? Checks of a result folder of ours, or of a file in the VLM2Vec layout.

A **fault** makes the score wrong or incomparable; a **warning** needs a look; the rest is fine. Every finding says what
was seen and what it means.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plume.evaluation.scores import (
    GIVE_TABLE,
    Column,
    read_failures,
    read_results,
    read_vlm2vec,
    reference_columns,
    shared_keys,
)
from plume.evaluation.table import Row, Table

_COLLAPSED = 0.98  # mean cosine of pairs above which vectors have nearly one direction
_FEW_DISTINCT = 0.5  # share of distinct vectors below which most inputs look alike
_COPIED = 12  # tasks with equal non-trivial scores that no two runs share by chance
# Old labels put every released model below these; with fixed labels the same models are far above.
_WRONG_LABELS = {"ViDoSeek-page": 24.0, "MMLongBench-page": 17.0}
_OLD_MOMENTSEEKER, _TOLERANCE = 1800, 1e-4


@dataclass(frozen=True)
class Finding:
    """What a check found: ``level`` is ``"fault"``, ``"warning"`` or ``"ok"``."""

    level: str
    check: str
    detail: str


def diagnose(path: str | Path, table: Table) -> list[Finding]:
    """All findings about a result folder or a VLM2Vec score file.

    Raises:
        ValueError: If ``path`` is neither.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"There are no results to check: {str(path)!r} does not exist. Name the --output of a run.")
    found = list(diagnose_folder(read_results(path), table) if path.is_dir() else diagnose_vlm2vec(path, table))
    if path.is_dir():
        found += [Finding("fault", "failed", f"{task}: {reason}") for task, reason in read_failures(path).items()]
    return sorted(found, key=lambda finding: ("fault", "warning", "ok").index(finding.level))


def diagnose_folder(results: Sequence[Mapping[str, Any]], table: Table) -> Iterator[Finding]:
    """Findings about our own results; of another table's results no more than that."""
    made_with = {(result["condition"].get("benchmark"), result["condition"].get("version")) for result in results}
    given = (table.meta.get("benchmark"), table.meta.get("version"))
    if given not in made_with and not {result["task"] for result in results} & {row.id for row in table.rows}:
        names = [" ".join(map(str, name)) for name in (*sorted(made_with, key=str), given)]
        yield Finding("fault", "table", f"results of {', '.join(names[:-1])}, the table is {names[-1]}. {GIVE_TABLE}")
        return
    yield from _check_tasks([result["task"] for result in results], table)
    yield from _check_shared(results)
    yield from _check_version(results, table)
    rows = {row.id: row for row in table.rows}
    checks: tuple[Callable[[Mapping[str, Any], Row], Iterator[Finding]], ...] = (
        _check_metric,
        _check_size,
        _check_vectors,
    )
    for result in results:
        if result["task"] in rows:
            for check in checks:
                yield from check(result, rows[result["task"]])
    yield from _check_copies({result["task"]: 100 * result["score"] for result in results}, None)


def _check_tasks(tasks: Sequence[str], table: Table) -> Iterator[Finding]:
    known = [row.id for row in table.rows]
    missing, unknown = [t for t in known if t not in tasks], sorted({t for t in tasks if t not in known})
    twice = sorted({task for task in tasks if list(tasks).count(task) > 1})
    if missing:
        shown = ", ".join(missing[:5]) + (" ..." if len(missing) > 5 else "")
        yield Finding(
            "warning", "tasks", f"{len(missing)} of {len(known)} tasks are missing ({shown}): no mean over them"
        )
    if unknown:
        yield Finding("fault", "tasks", f"tasks that are not in the table: {', '.join(unknown)}")
    if twice:
        yield Finding("fault", "duplicates", f"tasks with two scores: {', '.join(twice)}")
    if not (missing or unknown or twice):
        yield Finding("ok", "tasks", f"all {len(known)} tasks, each once")


def _check_shared(results: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    differing = False
    for key in shared_keys(results):
        by_value: dict[str, list[str]] = defaultdict(list)
        for result in results:
            by_value[json.dumps(result["condition"].get(key), sort_keys=True)].append(result["task"])
        if len(by_value) > 1:
            differing = True
            seen = "; ".join(f"{value}: {len(tasks)} tasks, e.g. {tasks[0]}" for value, tasks in by_value.items())
            yield Finding("fault", key, f"differs between tasks, so no mean means anything ({seen})")
    if not differing:
        condition = results[0]["condition"]
        shown = f"K={condition.get('latent_steps')}, {condition.get('prompt_set')} prompts"
        yield Finding("ok", "condition", f"one condition for all tasks: {shown}, dim {condition.get('dim') or 'all'}")


def _check_version(results: Sequence[Mapping[str, Any]], table: Table) -> Iterator[Finding]:
    for key, name in (("version", "version"), ("page_labels", "page labels")):
        expected = table.meta.get(key)
        wrong = [result["task"] for result in results if result["condition"].get(key) != expected]
        if wrong:
            values = sorted({str(result["condition"].get(key)) for result in results})
            yield Finding("fault", name, f"{', '.join(values)} where the table has {expected} ({len(wrong)} tasks)")


def _check_metric(result: Mapping[str, Any], row: Row) -> Iterator[Finding]:
    condition = result["condition"]
    if result["metric"] != row.metric:
        yield Finding("fault", "metric", f"{row.id}: {result['metric']} instead of {row.metric}")
    if condition["definition"] != row.definition:
        yield Finding("fault", "task", f"{row.id}: scored under another wording, pool or parser than the table has")
    if condition["num_frames"] != row.num_frames:
        yield Finding(
            "fault", "frames", f"{row.id}: {condition['num_frames']} per clip, the table has {row.num_frames}"
        )
    if condition["dataset"] != dict(row.dataset):
        yield Finding("fault", "data", f"{row.id}: scored on {condition['dataset']}, the table has {dict(row.dataset)}")


def _check_size(result: Mapping[str, Any], row: Row) -> Iterator[Finding]:
    if row.num_queries and result["n"] != row.num_queries:
        yield Finding("fault", "queries", f"{row.id}: {result['n']} queries instead of {row.num_queries}")
    pool, whole = row.pool_size, row.pool == "global" and isinstance(row.pool_size, int)
    if whole and result["num_candidates"] != pool:
        yield Finding("fault", "candidates", f"{row.id}: {result['num_candidates']} candidates instead of {pool}")
    if result["n"] >= 50 and result["score"] in (0, 1):
        yield Finding("warning", "score", f"{row.id}: exactly {100 * result['score']:.0f} over {result['n']} queries")


def _check_vectors(result: Mapping[str, Any], row: Row) -> Iterator[Finding]:
    for role, seen in result["vectors"].items():
        if seen["count"] < 2:
            continue
        if seen["distinct"] == 1:
            yield Finding("fault", "vectors", f"{row.id}: all {seen['count']} {role} vectors are the same")
        elif seen["mean_cosine"] > _COLLAPSED:
            yield Finding(
                "warning",
                "vectors",
                f"{row.id}: {role} vectors nearly collapsed, mean cosine {seen['mean_cosine']:.4f}",
            )
        elif seen["distinct"] < _FEW_DISTINCT * seen["count"]:
            share = f"{seen['distinct']} of {seen['count']}"
            yield Finding("warning", "vectors", f"{row.id}: only {share} {role} vectors are distinct")


def diagnose_vlm2vec(path: Path, table: Table) -> Iterator[Finding]:
    """Findings about a score file in the VLM2Vec layout."""
    column, metrics = read_vlm2vec(path)
    extra = {"MomentSeeker_1k8"}  # released in addition to the 78
    yield from _check_tasks([task for task in column.scores if task not in extra], table)
    yield from _check_labels(column)
    rows = metrics.get("MomentSeeker", {}).get("num_data")
    if rows == _OLD_MOMENTSEEKER:
        detail = "1,800 queries, the data before 2025-07-31: not comparable with the 1,602 of today"
        yield Finding("fault", "version", f"MomentSeeker: {detail}")
    for task, values in metrics.items():
        linear, exponential = values.get("ndcg_linear@5"), values.get("ndcg_exponential@5")
        if task.endswith("-doc") and linear is not None and linear != exponential:
            detail = "graded labels, which VLM2Vec pairs with the wrong pages: the published nDCG cannot be reproduced"
            yield Finding("warning", "metric", f"{task}: {detail}")
        if values.get("num_data", 0) >= 50 and values.get("hit@1") in (0, 1):
            yield Finding(
                "warning", "score", f"{task}: hit@1 is exactly {values['hit@1']}; a collapsed model scores 1 there"
            )
    yield from _check_copies(column.scores, column.model)


def _check_labels(column: Column) -> Iterator[Finding]:
    for task, limit in _WRONG_LABELS.items():
        score = column.scores.get(task)
        if score is not None and score <= limit:
            yield Finding(
                "fault", "page labels", f"{task}: {score:.1f} is what the wrong labels before 2025-11-03 give"
            )
    if column.page_labels == "fixed":
        yield Finding("ok", "page labels", "the page tasks are named -page-fixed")


def _check_copies(scores: Mapping[str, float | None], model: str | None) -> Iterator[Finding]:
    """Scores that equal a published row of another model task by task."""
    for reference in reference_columns():
        if reference.model == model:
            continue
        same = [
            task
            for task, score in scores.items()
            if score not in (None, 0, 100)
            and reference.scores.get(task) is not None
            and abs((score or 0) - (reference.scores[task] or 0)) < _TOLERANCE
        ]
        if len(same) >= _COPIED:
            detail = f"{len(same)} scores equal those published for {reference.model} ({reference.version})"
            yield Finding("fault", "duplicates", f"{detail}: whose are they?")

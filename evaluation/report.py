"""Score tables in the paper's layout, as Markdown.

- **Per group** (the paper's Table 1): one line per model, means per group, per modality and over all tasks.
- **Per task** (Tables 7 and 8): one line per task, one column per model.

Full means are in one table per data version. Where versions differ, one more table compares what is comparable: all
tasks but the changed ones, which are then listed by themselves.
"""

from collections.abc import Sequence

from plume.evaluation.scores import MODALITIES, Column, check_same_version, means
from plume.evaluation.table import Row, Table


def report(columns: Sequence[Column], table: Table, per_task: bool = False) -> str:
    """The whole report.

    Args:
        columns: The models.
        table: The tasks.
        per_task: Also print every task.
    """
    changed = [row.id for row in table.rows if row.id in table.meta.get("incomparable", ())]
    title = f"{table.meta.get('benchmark')} {table.meta.get('version')}"
    if table.meta.get("page_labels"):
        title += f", {table.meta['page_labels']} pages"
    parts = [f"# {title}", "hit@1 for images and videos, nDCG@5 for documents, in percent. `-`: a task is missing."]
    by_version: dict[str, list[Column]] = {}
    for column in columns:
        by_version.setdefault(column.protocol, []).append(column)
    for protocol, members in by_version.items():
        parts += [f"## All {len(table.rows)} tasks: {protocol}", group_table(members, table.rows)]
    if len(by_version) > 1 and changed:
        kept = len(table.rows) - len(changed)
        parts += [
            f"## The {kept} tasks that are the same in all versions",
            group_table(columns, table.rows, without=changed),
            f"## Not comparable between versions: {', '.join(changed)}",
            task_table(columns, [row for row in table.rows if row.id in changed]),
        ]
    if per_task:
        parts += ["## Every task", task_table(columns, table.rows)]
    parts += [_notes(columns, table.rows)]
    return "\n\n".join(part for part in parts if part) + "\n"


def group_table(columns: Sequence[Column], rows: Sequence[Row], without: Sequence[str] = ()) -> str:
    """Means per group, modality and all tasks, one line per model.

    Args:
        columns: The models.
        rows: All tasks.
        without: Tasks that no mean includes; where given, data versions may differ.

    Raises:
        ValueError: If data versions differ and no task is left out.
    """
    if not without:
        check_same_version(columns)
    groups = {modality: list(dict.fromkeys(r.group for r in rows if r.modality == modality)) for modality in MODALITIES}
    keys = [key for modality in MODALITIES for key in (*groups[modality], modality) if groups[modality]] + ["all"]
    kept = [row for row in rows if row.id not in without]
    counts = {key: sum(key in (row.group, row.modality, "all") for row in kept) for key in keys}
    head = ["model", "data", *(f"{key} ({counts[key]})" for key in keys)]
    body = []
    for column in columns:
        values = means(column, rows, without)
        body.append([column.model, column.protocol, *(_number(values[key]) for key in keys)])
    return markdown(head, body, aligned=True)


def task_table(columns: Sequence[Column], rows: Sequence[Row]) -> str:
    """Scores per task, one column per model."""
    head = ["task", "group", *(f"{column.model} [{column.protocol}]" for column in columns)]
    return markdown(
        head, [[row.id, row.group, *(_number(c.scores.get(row.id)) for c in columns)] for row in rows], aligned=True
    )


def _notes(columns: Sequence[Column], rows: Sequence[Row]) -> str:
    lines = []
    for column in columns:
        values = means(column, rows)
        wrong = [
            f"{key} {printed} (recomputed {values[key]:.2f})"
            for key, printed in column.printed.items()
            if values.get(key) is not None and abs(printed - round(values[key] or 0, 2)) > 0.1
        ]
        if wrong:
            lines.append(f"- {column.model}, {column.version}: printed {', '.join(wrong)} from its own rows.")
        if column.note:
            lines.append(f"- {column.model}, {column.version}: {column.note}.")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def markdown(head: Sequence[str], body: Sequence[Sequence[str]], aligned: bool = False) -> str:
    """A Markdown table; ``aligned`` pads the columns, for reading in a terminal."""
    lines = [list(head), *map(list, body)]
    widths = [max(map(len, column)) if aligned else 0 for column in zip(*lines, strict=True)]
    lines = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
    rule = ["-" * max(3, width) for width in widths]
    return "\n".join(f"| {' | '.join(line)} |" for line in [lines[0], rule, *lines[1:]])

"""What a result file says: a table, the ratios that the page claims, a chart."""

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from plume.evaluation.report import markdown

Row = dict[str, Any]

# Names of the systems in the chart, in its order.
_LABELS = {
    "single_pass": "single pass",
    "plume_k4": "PLUME K = 4",
    "plume_k8": "PLUME K = 8",
    "one_at_a_time": "one sample at a time, K = 8",
    "explicit_cot": "explicit reasoning, 403 tokens",
}

_COLOURS = ("#7a8793", "#7fb2c8", "#1f6f8b", "#c9a66b", "#b5654a")
_INPUTS = {
    "query12": "query of 12 words",
    "text64": "text of 64 tokens",
    "text512": "text of 512 tokens",
    "image448": "picture of 448 px with 64 tokens",
    "page896": "page of 896 x 1267 px with 64 tokens",
    "video8": "clip of 8 frames with 64 tokens",
}
_CHARTED = 4  # cells in the chart, the first ones

_IMAGE = ("2b", "bf16", 1, "image448")
_TEXTS = ("0.2b", "fp32", 32, "text64")
_QUERY = ("2b", "bf16", 1, "query12")
# Milliseconds of one system over another in a cell, and the target. Throughput is the inverse of the milliseconds.
_CLAIMS = {
    "cpu": [
        ("plume_k8", "single_pass", _IMAGE, "<= 1.25"),
        ("plume_k8", "single_pass", ("2b", "bf16", 8, "text64"), "<= 1.35"),
        ("single_pass", "plume_k8", _TEXTS, ">= 0.85"),
        ("one_at_a_time", "plume_k8", _TEXTS, ">= 5"),
        ("explicit_cot", "plume_k8", _IMAGE, ">= 20"),
        ("plume_k8_int8", "plume_k8", _QUERY, "<= 0.55"),
        ("plume_k8_int8", "single_pass", _QUERY, "<= 1.5"),
    ],
    "gpu": [
        ("plume_k8", "single_pass", _IMAGE, "<= 1.15"),
        ("plume_k8", "single_pass", ("2b", "bf16", 32, "image448"), "<= 1.10"),
        ("plume_k8", "single_pass", ("2b", "bf16", 32, "text64"), "<= 1.10"),
        ("explicit_cot", "plume_k8", _IMAGE, ">= 40"),
    ],
}


def _cell(row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("size", "dtype", "batch", "input"))


def by_cell(rows: list[Row]) -> Iterator[tuple[tuple[Any, ...], dict[str, Row]]]:
    """Cells with the rows of their systems, in the order of the file."""
    order = {cell: place for place, cell in reversed(list(enumerate(map(_cell, rows))))}
    for cell, found in groupby(sorted(rows, key=lambda row: order[_cell(row)]), key=_cell):
        yield cell, {row["system"]: row for row in found}


def format_table(rows: list[Row]) -> str:
    """A table per cell, one line per system, with its multiple of the single pass."""
    parts = []
    for (size, dtype, batch, kind), systems in by_cell(rows):
        single, body = systems.get("single_pass"), []
        for name, row in systems.items():
            ratio = f"{row['ms_median'] / single['ms_median']:.3f}" if single else "-"
            spread = "-" if row["ms_iqr"] is None else f"{row['ms_iqr']:.1f}"
            body.append([name, f"{row['ms_median']:.1f}", spread, f"{row['per_second']:.2f}", ratio])
        table = markdown(["system", "ms", "spread", "per second", "/ single pass"], body, aligned=True)
        parts.append(f"{size} {dtype}, batch {batch}, {kind}\n\n{table}")
    return "\n\n".join(parts)


def _claims_of(device: str) -> list[tuple[str, str, tuple[Any, ...], str]]:
    return _CLAIMS["cpu" if device == "cpu" else "gpu"]


def claims(rows: list[Row]) -> list[tuple[str, float, str]]:
    """Ratios of the run and what they should be, as (name, value, target), if the run has them."""
    cells = dict(by_cell(rows))
    device = rows[0]["device"] if rows else "cpu"
    found = []
    for over, under, cell, target in _claims_of(device):
        systems = cells.get(cell, {})
        if {over, under} <= set(systems):
            ratio = systems[over]["ms_median"] / systems[under]["ms_median"]
            found.append((f"{over} / {under}, {' '.join(map(str, cell))}", round(ratio, 3), target))
    return found


def claimed(device: str) -> dict[tuple[Any, ...], set[str]]:
    """The cells of the claims on a device, and the systems that each needs."""
    needed: dict[tuple[Any, ...], set[str]] = {}
    for over, under, cell, _ in _claims_of(device):
        needed.setdefault(cell, set()).update((over, under))
    return needed


def draw(rows: list[Row], header: dict[str, Any], path: Path) -> None:
    """Draw the first cells as bars, multiples of a single pass, each in the dtype in which that is faster."""
    from matplotlib.figure import Figure

    cells = [(cell, systems) for cell, systems in by_cell(rows) if set(_LABELS) <= set(systems) and cell[0] != "tiny"]
    if not cells:
        raise ValueError("No cell of the result has all systems of the chart: run the comparison to its end first.")
    fastest: dict[tuple[Any, ...], tuple[Any, Any]] = {}
    for (size, dtype, batch, kind), systems in cells:
        kept = fastest.setdefault((size, batch, kind), ((size, dtype, batch, kind), systems))
        if systems["single_pass"]["ms_median"] < kept[1]["single_pass"]["ms_median"]:
            fastest[size, batch, kind] = ((size, dtype, batch, kind), systems)
    cells = list(fastest.values())[:_CHARTED]
    figure = Figure(figsize=(8, 0.9 + 1.6 * len(cells)), layout="constrained")
    for axes, (cell, systems) in zip(figure.subplots(len(cells), 1, squeeze=False)[:, 0], cells, strict=True):
        seconds = [systems[name]["ms_median"] / 1000 for name in _LABELS]
        multiples = [each / seconds[0] for each in seconds]
        bars = axes.barh(list(_LABELS.values()), multiples, color=_COLOURS, height=0.72)
        labels = [f" \u00d7 {times:.3g}   ({each:.3g} s)" for times, each in zip(multiples, seconds, strict=True)]
        axes.bar_label(bars, labels, fontsize=8)
        axes.axvline(1, color="#7a8793", linewidth=0.8, linestyle=":")
        axes.set_xlim(0, max(multiples) * 1.18)
        axes.invert_yaxis()
        axes.tick_params(labelsize=8)
        axes.tick_params(axis="x", bottom=False, labelbottom=False)
        axes.spines[["top", "right", "bottom"]].set_visible(False)
        size, dtype, batch, kind = cell
        axes.set_title(f"{batch} \u00d7 {_INPUTS[kind]}, {size} shape, {dtype}", fontsize=9, loc="left")
    machine = header["machine"]
    figure.supxlabel(
        f"time as a multiple of a single pass, random weights; {machine['device']}, {machine['threads']} threads",
        fontsize=8,
    )
    figure.savefig(path, dpi=130)

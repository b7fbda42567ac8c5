"""Costs as a table in the shape of Table 2 and as a picture."""

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

from plume.evaluation.efficiency.protocol import EXPLICIT, SINGLE_PASS, SYSTEMS, Cell
from plume.evaluation.style import BLACK, BLUE, GREEN, SKY, STYLE, VERMILION


def summarize(cells: Sequence[Cell]) -> list[Cell]:
    """Mean and standard deviation over the draws, per system and modality and over all modalities.

    Returns:
        Rows with ``system``, ``modality`` (``"all"`` too), ``latency_ms``, ``prepare_ms``, ``model_ms``, ``throughput``
        and ``reasoning`` as ``{"mean", "std"}``, ``std`` None with one draw, and the ratios of mean latencies
        ``over_single_pass`` and ``faster_than_explicit`` where those systems were measured.
    """
    rows = []
    modalities = list(dict.fromkeys(cell["modality"] for cell in cells))
    for modality in [*modalities, "all"]:
        for system in dict.fromkeys(cell["system"] for cell in cells):
            chosen = [c for c in cells if c["system"] == system and modality in (c["modality"], "all")]
            rows.append({"system": system, "modality": modality, **_over_draws(chosen)})
    for row in rows:
        others = {other["system"]: other for other in rows if other["modality"] == row["modality"]}
        latency = row["latency_ms"]["mean"]
        if SINGLE_PASS in others:
            row["over_single_pass"] = latency / others[SINGLE_PASS]["latency_ms"]["mean"]
        if EXPLICIT in others:
            row["faster_than_explicit"] = others[EXPLICIT]["latency_ms"]["mean"] / latency
    return rows


def _over_draws(cells: Sequence[Cell]) -> Cell:
    """Per draw the mean over its inputs, then mean and standard deviation over draws."""
    draws: dict[int, list[Cell]] = {}
    for cell in cells:
        draws.setdefault(cell["draw"], []).append(cell)
    row = {}
    for key in ("latency_ms", "prepare_ms", "model_ms", "throughput", "reasoning"):
        if key == "throughput":  # of a whole set: its inputs over its time
            values = [sum(c["n"] for c in d) / sum(c["n"] / c[key] for c in d) for d in draws.values()]
        else:
            values = [statistics.mean(c[key] for c in d) for d in draws.values()]
        row[key] = {"mean": statistics.mean(values), "std": statistics.stdev(values) if len(values) > 1 else None}
    return row


def table(rows: Sequence[Cell]) -> str:
    """The summary as a Markdown table in the shape of Table 2, a block of rows per modality."""
    header = ["inputs", "system", "steps or tokens", "latency (ms)", "of it model (ms)", "inputs/s"]
    lines = [[*header, "/ single pass", "faster than CoT"]]
    lines.append(["---"] * len(lines[0]))
    for row in rows:
        ratios = [f"{row[key]:.2f}" if key in row else "" for key in ("over_single_pass", "faster_than_explicit")]
        figures = [_figure(row[key]) for key in ("latency_ms", "model_ms", "throughput")]
        lines.append([row["modality"], row["system"], f"{row['reasoning']['mean']:.0f}", *figures, *ratios])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _figure(value: Mapping[str, float | None]) -> str:
    mean, std = value["mean"], value["std"]
    assert mean is not None
    digits = max(0, 2 - math.floor(math.log10(mean)))
    return f"{mean:.{digits}f}" + ("" if std is None else f" ± {std:.{digits}f}")


def draw(rows: Sequence[Cell], file: Path) -> None:
    """Latency per modality and system, logarithmic, with the standard deviation over draws."""
    systems = list(dict.fromkeys(row["system"] for row in rows))
    modalities = list(dict.fromkeys(row["modality"] for row in rows))
    colors = dict(zip(SYSTEMS, (BLACK, SKY, BLUE, GREEN, VERMILION), strict=True))
    grey: dict[str, Any] = {"color": "#666666", "fontsize": 7, "va": "center"}
    with rc_context(STYLE):
        figure = Figure(figsize=(6.8, 0.9 + 0.18 * len(rows)))
        axes = figure.subplots()
        for row in rows:
            place = modalities.index(row["modality"]) * (len(systems) + 1) + systems.index(row["system"])
            mean, std = row["latency_ms"]["mean"], row["latency_ms"]["std"] or 0.0
            color = colors[row["system"]]
            axes.plot([max(mean - std, 0.1 * mean), mean + std], [place, place], color=color, linewidth=1.2)
            axes.scatter(
                mean, place, color=color, s=24, label=row["system"] if row["modality"] == modalities[0] else None
            )
            axes.annotate(f"{mean:.3g}", (mean + std, place), (6, 0), textcoords="offset points", **grey)
        middle = (len(systems) - 1) / 2
        axes.set_yticks([index * (len(systems) + 1) + middle for index in range(len(modalities))], modalities)
        axes.invert_yaxis()
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.set_xlabel("latency per batch (ms, logarithmic): mean and standard deviation over draws")
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x", color="#eeeeee")
        axes.set_axisbelow(True)
        axes.legend(ncols=len(systems), loc="lower left", bbox_to_anchor=(-0.02, 1), columnspacing=1, handletextpad=0.2)
        figure.savefig(file)

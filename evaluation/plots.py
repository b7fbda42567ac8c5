"""Two pictures: means by group as a radar, and accuracy against latency (Fig. 1 of the paper)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from plume.evaluation.scores import Column, means
from plume.evaluation.table import Table

_COLORS = ("#2166ac", "#b2182b", "#1b7837", "#e08214", "#762a83", "#4d4d4d")


def radar(columns: Sequence[Column], table: Table, file: str | Path) -> list[str]:
    """Draw means by group, one polygon per model; groups without a mean for every model are left out.

    Args:
        columns: Up to six models.
        table: The tasks.
        file: Where to, e.g. a PNG.

    Returns:
        The groups that are left out.

    Raises:
        ValueError: If fewer than three groups are complete, or there are more models than colours.
    """
    values = {column.model: means(column, table.rows) for column in columns}
    groups = [group for group in table.groups() if all(v[group] is not None for v in values.values())]
    if len(groups) < 3 or len(columns) > len(_COLORS):
        raise ValueError(
            f"A radar needs at least 3 groups that every model completed and at most {len(_COLORS)} models; there are "
            f"{len(groups)} and {len(columns)}. Run the missing tasks, or give fewer models."
        )
    angles = np.linspace(0, 2 * np.pi, len(groups), endpoint=False)
    figure = Figure(figsize=(6.4, 6.4), layout="constrained")
    axes: Any = figure.add_subplot(projection="polar")
    for column, color in zip(columns, _COLORS, strict=False):
        heights = [values[column.model][group] or 0.0 for group in groups]
        closed = ([*angles, angles[0]], [*heights, heights[0]])
        axes.plot(*closed, color=color, linewidth=1.8, label=column.model)
        axes.fill(*closed, color=color, alpha=0.06)
    axes.set_theta_offset(np.pi / 2)
    axes.set_theta_direction(-1)
    axes.set_xticks(angles, groups)
    axes.tick_params(axis="x", pad=10)
    axes.set_ylim(bottom=0)
    axes.set_rlabel_position(180 / len(groups))
    axes.tick_params(axis="y", labelsize=8, colors="#777777")
    axes.grid(color="#dddddd")
    axes.spines["polar"].set_visible(False)
    figure.legend(loc="outside lower center", ncols=min(len(columns), 3), frameon=False)
    figure.savefig(file, dpi=160)
    return [group for group in table.groups() if group not in groups]


def tradeoff(points: Sequence[Mapping[str, Any]], file: str | Path, score: str = "mean score (%)") -> None:
    """Draw accuracy against latency, on a logarithmic time axis.

    Args:
        points: Dicts of ``name``, ``latency_ms`` and ``score``, and optionally ``kind``: points of a kind share a
            colour and are joined in the order of their latency.
        file: Where to.
        score: What the scores are.

    Raises:
        ValueError: If there is no point, or a latency is not positive.
    """
    if not points or min(point["latency_ms"] for point in points) <= 0:
        raise ValueError("The picture needs points with a positive latency. Measure them with the efficiency command.")
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    kinds = list(dict.fromkeys(point.get("kind", point["name"]) for point in points))
    for index, kind in enumerate(kinds):
        members = sorted((p for p in points if p.get("kind", p["name"]) == kind), key=lambda point: point["latency_ms"])
        axes.plot(
            [p["latency_ms"] for p in members],
            [p["score"] for p in members],
            "o-",
            color=_COLORS[index % len(_COLORS)],
            markersize=7,
            linewidth=1.2,
        )
        for member in members:
            axes.annotate(
                member["name"], (member["latency_ms"], member["score"]), xytext=(7, 5), textcoords="offset points"
            )
    axes.set_xscale("log")
    axes.margins(x=0.2, y=0.2)
    axes.set_xlabel("latency per input (ms, log scale)")
    axes.set_ylabel(score)
    axes.grid(color="#e5e5e5", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=160)

"""Two pictures: means by group as a radar, and accuracy against latency (Fig. 1 of the paper)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from plume.evaluation.scores import Column, means
from plume.evaluation.style import PALETTE
from plume.evaluation.table import Table


def radar(columns: Sequence[Column], table: Table, file: str | Path) -> list[str]:
    """Draw means by group, one polygon per model; groups without a mean for every model are left out.

    Where data versions differ, the changed tasks are left out; the number of tasks stands at each group.

    Args:
        columns: Up to six models.
        table: The tasks.
        file: Where to, e.g. a PNG.

    Returns:
        The groups that are left out.

    Raises:
        ValueError: If fewer than three groups are complete, or there are more models than colours.
    """
    several = len({column.protocol for column in columns}) > 1
    without = table.meta.get("incomparable", ()) if several else ()
    values = [means(column, table.rows, without) for column in columns]
    groups = [group for group in table.groups() if all(found[group] is not None for found in values)]
    sizes = [sum(row.id not in without for row in table.groups()[group]) for group in groups]
    if len(groups) < 3 or len(columns) > len(PALETTE):
        raise ValueError(
            f"A radar needs at least 3 groups that every model completed and at most {len(PALETTE)} models; there are "
            f"{len(groups)} and {len(columns)}. Run the missing tasks, or give fewer models."
        )
    angles = np.linspace(0, 2 * np.pi, len(groups), endpoint=False)
    figure = Figure(figsize=(6.4, 6.8), layout="constrained")
    title = f"{table.meta.get('benchmark')}, mean per group (tasks), percent"
    figure.suptitle(title + (f"\nwithout {', '.join(without)}" if without else ""), fontsize=10)
    axes: Any = figure.add_subplot(projection="polar")
    for column, found, color in zip(columns, values, PALETTE, strict=False):
        heights = [found[group] or 0.0 for group in groups]
        axes.plot([*angles, angles[0]], [*heights, heights[0]], color=color, linewidth=1.8, label=column.model)
    axes.set_theta_offset(np.pi / 2)
    axes.set_theta_direction(-1)
    axes.set_xticks(angles, [f"{group} ({size})" for group, size in zip(groups, sizes, strict=True)])
    axes.tick_params(axis="x", pad=10)
    axes.set_ylim(bottom=0)
    axes.set_rlabel_position(180 / len(groups))
    axes.tick_params(axis="y", labelsize=8, colors="#777777")
    axes.grid(color="#dddddd")
    axes.spines["polar"].set_visible(False)
    figure.legend(loc="outside lower center", ncols=min(len(columns), 3), frameon=False)
    figure.savefig(file, dpi=160)
    return [group for group in table.groups() if group not in groups]


def measured_points(
    columns: Sequence[Column], table: Table, costs: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Points for :func:`tradeoff`: the mean over all tasks of each column with the time per input of its system.

    Args:
        columns: Our results, whose condition says which system they are.
        table: The tasks.
        costs: ``rows`` of the efficiency command: ``system``, ``modality``, ``throughput`` with a ``mean`` (inputs per
            second).

    Raises:
        ValueError: If a column lacks a task or its system has no cost.
    """
    latencies = {row["system"]: 1000 / row["throughput"]["mean"] for row in costs if row["modality"] == "all"}
    points = []
    for column in columns:
        steps = column.condition.get("latent_steps")
        system = column.condition.get("baseline") or (f"plume-k{steps}" if steps else "single-pass")
        score = means(column, table.rows)["all"]
        if score is None or system not in latencies:
            raise ValueError(
                f"{column.model} cannot be placed: it needs a score for every task and a latency of {system!r} (there "
                f"are {sorted(latencies)}). Run what is missing, or leave it out."
            )
        kind = "PLUME" if system.startswith("plume-k") else system
        points.append({"name": system, "kind": kind, "latency_ms": latencies[system], "score": score})
    return points


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
            color=PALETTE[index % len(PALETTE)],
            markersize=7,
            linewidth=1.2,
        )
        for member in members:
            place = (member["latency_ms"], member["score"])
            axes.annotate(member["name"], place, xytext=(0, 9), textcoords="offset points", ha="center")
    axes.set_xscale("log")
    axes.margins(x=0.25, y=0.2)
    axes.set_xlabel("latency per input (ms, log scale)")
    axes.set_ylabel(score)
    axes.grid(color="#e5e5e5", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=160)

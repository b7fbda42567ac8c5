"""Two pictures: means by group as a radar, and accuracy against latency (Fig. 1 of the paper)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from plume.evaluation.scores import Column, means
from plume.evaluation.style import PALETTE
from plume.evaluation.table import Table

_FEWEST_GROUPS = 3


def radar(columns: Sequence[Column], table: Table, file: str | Path) -> list[str]:
    """Draw means by group, one polygon per model; groups without a mean for every model are left out.

    Where data versions differ, the changed tasks are left out; the number of tasks is given at each group.

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
    lacking = {
        group: [column.model for column, found in zip(columns, values, strict=True) if found[group] is None]
        for group in table.groups()
    }
    groups = [group for group, models in lacking.items() if not models]
    _check_radar(columns, lacking)
    sizes = [sum(row.id not in without for row in table.groups()[group]) for group in groups]
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


def _check_radar(columns: Sequence[Column], lacking: Mapping[str, Sequence[str]]) -> None:
    if len(columns) > len(PALETTE):
        raise ValueError(
            f"A radar has at most {len(PALETTE)} models, there are {len(columns)}. Give fewer folders, or name fewer "
            "with --reference."
        )
    if len(lacking) < _FEWEST_GROUPS:
        raise ValueError(
            f"A radar needs at least {_FEWEST_GROUPS} groups, and this table has {', '.join(lacking)}. Drop --radar."
        )
    incomplete = {group: models for group, models in lacking.items() if models}
    if len(lacking) - len(incomplete) < _FEWEST_GROUPS:
        told = "; ".join(f"{group}: {', '.join(models)}" for group, models in incomplete.items())
        raise ValueError(
            f"A radar needs at least {_FEWEST_GROUPS} groups that every model completed. These lack tasks: {told}. Run "
            f"what is missing (run --tasks {' '.join(incomplete)}), or leave that folder out; --reference without "
            "names leaves the published models out."
        )


def measured_points(
    columns: Sequence[Column], table: Table, costs: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Points for :func:`tradeoff`: the mean over all tasks of each column with the time per input of its system.

    Args:
        columns: Our results, whose condition says which system they are.
        table: The tasks.
        costs: ``rows`` of ``python -m plume.benchmarks compare``: milliseconds per system and cell. The time per input
            is the mean over the cells that have all these systems, ``prepare`` included where it was measured.

    Raises:
        ValueError: If a column lacks a task, or no cell has all their systems.
    """
    cells: dict[tuple[Any, ...], dict[str, float]] = {}
    for row in costs:
        cell = tuple(row[name] for name in ("size", "device", "dtype", "batch", "input"))
        cells.setdefault(cell, {})[row["system"]] = row["ms_median"] / row["batch"]
    systems = [_system_of(column) for column in columns]
    shared = [times for times in cells.values() if set(systems) <= times.keys()]
    points = []
    for column, system in zip(columns, systems, strict=True):
        score = means(column, table.rows)["all"]
        if score is None or not shared:
            known = sorted({name for times in cells.values() for name in times})
            raise ValueError(
                f"{column.model} cannot be placed: it needs a score for every task, and {sorted(set(systems))} must be "
                f"measured together (there are {known}). Run what is missing, or leave it out."
            )
        latency = mean(times[system] + times.get("prepare", 0.0) for times in shared)
        kind = "PLUME" if system.startswith("plume") else system
        points.append({"name": system, "kind": kind, "latency_ms": latency, "score": score})
    return points


def _system_of(column: Column) -> str:
    """The benchmark's name of the system that made a column."""
    steps, baseline = column.condition.get("latent_steps"), column.condition.get("baseline")
    return str(baseline).replace("-", "_") if baseline else f"plume_k{steps}" if steps else "single_pass"


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
        raise ValueError(
            "The picture needs points with a positive latency. Measure them with python -m plume.benchmarks."
        )
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

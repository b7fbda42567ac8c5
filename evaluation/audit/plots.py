"""Pictures of an audit, one function each, drawn without any global state."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from plume.evaluation.audit.routing import by_modality, pool
from plume.evaluation.audit.summary import Result, by_kind, mean_over, series
from plume.evaluation.style import BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY, STYLE, VERMILION

VARIANTS = {
    "as is": (BLACK, "|"),
    "drop": (VERMILION, "X"),
    "shuffle": (PURPLE, "s"),
    "noise": (ORANGE, "^"),
    "first": (SKY, "D"),
    "mean": (GREEN, "v"),
}
_KINDS = (BLUE, VERMILION, GREEN)
_MANY_TASKS = 24


def draw_all(results: Sequence[Result], folder: Path) -> dict[str, str]:
    """Draw every picture that the results allow.

    Returns:
        File names by picture.
    """
    pictures: dict[str, Callable[[Sequence[Result]], Figure]] = {
        "interventions": interventions,
        "sweep": sweep,
        "trajectory": trajectory,
    }
    if any(result["experts"]["queries"] for result in results):
        pictures["experts"] = experts
    files = {}
    for name, draw in pictures.items():
        with rc_context(STYLE):
            draw(results).savefig(folder / f"{name}.png")
        files[name] = f"{name}.png"
    return files


def interventions(results: Sequence[Result]) -> Figure:
    """Hit@1 of every task as it is (bar) and what each intervention leaves of it; of every group if tasks are many."""
    rows = _rows(results)
    figure = Figure(figsize=(7, 1.2 + 0.5 * len(rows)))
    axes = figure.subplots()
    for place, (_, members) in enumerate(rows):
        scores = {name: 100 * mean_over(members, partial(_hit, variant=name)) for name in VARIANTS}
        whole = scores.pop("as is")
        axes.plot([whole, whole], [place - 0.36, place + 0.36], color=BLACK, linewidth=2.4, solid_capstyle="butt")
        for index, (name, score) in enumerate(scores.items()):
            color, marker = VARIANTS[name]
            height = place + 0.14 * (index - (len(scores) - 1) / 2)
            axes.plot([score, whole], [height, height], color=color, linewidth=1, alpha=0.6)
            axes.scatter(score, height, s=20, color=color, marker=marker, zorder=3)
    axes.set_yticks(range(len(rows)), [label for label, _ in rows])
    axes.set(xlim=(-3, 103), ylim=(len(rows) - 0.5, -0.5), xlabel="Hit@1 (%)")
    axes.set_title("What is left when the queries' latent states are replaced", pad=26)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", color="#eeeeee")
    axes.set_axisbelow(True)
    handles = [
        Line2D([], [], color=color, marker=marker, linewidth=0, markeredgewidth=2.4 if marker == "|" else 1)
        for color, marker in VARIANTS.values()
    ]
    axes.legend(
        handles,
        list(VARIANTS),
        ncols=len(VARIANTS),
        loc="lower left",
        bbox_to_anchor=(-0.02, 1),
        columnspacing=1,
        handletextpad=0.1,
    )
    return figure


def _hit(result: Result, variant: str) -> float:
    return result["interventions"][variant]["hit_at_1"]


def sweep(results: Sequence[Result]) -> Figure:
    """Hit@1 against the number of latent steps of queries and documents."""
    figure = Figure(figsize=(4.6, 3.2))
    axes = figure.subplots()
    _lines(axes, results, "sweep", "hit_at_1", scale=100)
    axes.set(xlabel="latent steps K, queries and documents", ylabel="Hit@1 (%)", ylim=(-3, 103))
    axes.set_title("More or fewer steps")
    _end_labels(axes)
    return figure


def trajectory(results: Sequence[Result]) -> Figure:
    """What the steps do: cosine to the positive with its spread, and the reciprocal rank, read out after each step."""
    figure = Figure(figsize=(8.4, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    _lines(left, results, "trajectory", "cosine", spread="cosine_std")
    left.set(xlabel="latent step read out", ylabel="cosine (mean ± 1 std)")
    left.set_title("Similarity to the target")
    _lines(right, results, "trajectory", "mean_reciprocal_rank")
    right.set(xlabel="latent step read out", ylabel="mean reciprocal rank", ylim=(-0.03, 1.03))
    right.set_title("Rank of the target")
    _end_labels(right)
    return figure


def experts(results: Sequence[Result]) -> Figure:
    """How often each specialised expert is selected: by task (queries), by modality and by step (both sides)."""
    routed = [result for result in results if result["experts"]["queries"]]
    sides = [row for result in routed for side in result["experts"].values() for row in side]
    tables = {
        "by task": [
            (label, pool([row for r in members for row in r["experts"]["queries"]]).mean(dim=0))
            for label, members in _rows(routed)
        ],
        "by modality": [(name, pool(rows).mean(dim=0)) for name, rows in by_modality(sides).items()],
        "by step": [(f"{step}", values) for step, values in enumerate(pool(sides), start=1)],
    }
    heights = [len(table) for table in tables.values()]
    figure = Figure(figsize=(11, 1.2 + 0.3 * max(heights)), layout="constrained")
    panels = figure.subplots(1, 3, squeeze=False)[0]
    for axes, (title, table) in zip(panels, tables.items(), strict=True):
        image = _heatmap(axes, [label for label, _ in table], torch.stack([values for _, values in table]))
        axes.set_title(title)
    panels[-1].set_ylabel("latent step")
    figure.colorbar(image, ax=panels, label="selected (%)", shrink=0.8, pad=0.01)
    return figure


def _rows(results: Sequence[Result]) -> list[tuple[str, list[Result]]]:
    """Rows of a picture: tasks, multi-hop first; groups if there are many tasks."""
    if len(results) > _MANY_TASKS:
        groups: dict[str, list[Result]] = {}
        for result in results:
            groups.setdefault(result["group"], []).append(result)
        return list(groups.items())
    rows = [(result, kind) for kind, members in by_kind(results).items() for result in members]
    several = len({kind for _, kind in rows}) > 1
    return [(r["task"] + (" (control)" if several and r["control"] else ""), [r]) for r, _ in rows]


def _lines(
    axes: Axes, results: Sequence[Result], part: str, key: str, scale: float = 1, spread: str | None = None
) -> None:
    """A thin line per task, a thick one per kind of task."""
    for (kind, members), color in zip(by_kind(results).items(), _KINDS, strict=False):
        for member in members if len(members) <= _MANY_TASKS else ():
            steps, values = series([member], part, key)
            axes.plot(steps, [scale * value for value in values], color=color, linewidth=0.7, alpha=0.35)
        steps, values = series(members, part, key)
        axes.plot(
            steps, [scale * value for value in values], color=color, linewidth=2.2, marker="o", markersize=4, label=kind
        )
        if spread:
            _, width = series(members, part, spread)
            low, high = ([v + sign * w for v, w in zip(values, width, strict=True)] for sign in (-1, 1))
            axes.fill_between(steps, low, high, color=color, alpha=0.12, linewidth=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y", color="#eeeeee")
    axes.set_axisbelow(True)


def _end_labels(axes: Axes) -> None:
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))


def _heatmap(axes: Axes, labels: Sequence[str], values_RE: torch.Tensor) -> Any:
    percent = (100 * values_RE).tolist()
    image = axes.imshow(percent, cmap="Blues", vmin=0, vmax=100, aspect="auto")
    for y, row in enumerate(percent):
        for x, value in enumerate(row):
            axes.text(x, y, f"{value:.0f}", ha="center", va="center", color="white" if value > 55 else "#333333")
    axes.set_xticks(range(len(percent[0])), [f"expert {index + 1}" for index in range(len(percent[0]))])
    axes.set_yticks(range(len(labels)), labels)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return image

"""The results of a sweep as files: rows, tasks, a plot and a table, with mean and spread over the seeds."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, pstdev
from typing import Any

from plume.playground.tasks import TASKS

ROWS, TASK_FILE, PLOT, PAGE = "ablations.json", "tasks.json", "ablations.png", "ablations.md"
_MULTI, _CONTROL = "multi-hop", "controls"


def summarize(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, list[float]]]:
    """Mean Hit@1 per seed, in [0, 1]: variant -> ``"multi-hop"`` or ``"controls"`` -> one number per seed."""
    found: dict[str, dict[str, dict[int, list[float]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for row in rows:
        if row["split"] == "test":
            kind = _CONTROL if TASKS[row["task"]].control else _MULTI
            found[row["variant"]][kind][row["seed"]].append(row["hit_at_1"])
    return {
        variant: {kind: [mean(scores) for _, scores in sorted(seeds.items())] for kind, seeds in kinds.items()}
        for variant, kinds in found.items()
    }


def write_report(rows: Sequence[Mapping[str, Any]], plan: Mapping[str, Any], folder: Path) -> None:
    """Write ``ablations.json``, ``tasks.json``, ``ablations.png`` and ``ablations.md``.

    Args:
        rows: Result rows, with variant, seed, task, split, hops, n and hit_at_1.
        plan: The condition of the sweep.
        folder: Where to.

    Raises:
        ValueError: If there are no rows.
    """
    if not rows:
        raise ValueError("No run of the sweep has finished, so there is nothing to report. Run it first.")
    folder.mkdir(parents=True, exist_ok=True)
    tasks = {
        name: {"control": TASKS[name].control, "hops": TASKS[name].hops, "description": TASKS[name].description}
        for name in plan["tasks"]
    }
    for name, content in ((ROWS, list(rows)), (TASK_FILE, tasks)):
        (folder / name).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    summary = summarize(rows)
    (folder / PAGE).write_text(_page(rows, summary, plan), encoding="utf-8")
    _plot(summary, folder / PLOT)


def _number(scores: Sequence[float]) -> str:
    if not scores:
        return "-"
    return f"{100 * mean(scores):.1f}" + (f" ± {100 * pstdev(scores):.1f}" if len(scores) > 1 else "")


def _page(
    rows: Sequence[Mapping[str, Any]], summary: Mapping[str, Mapping[str, list[float]]], plan: Mapping[str, Any]
) -> str:
    lines = [
        "# Ablations on the playground",
        "",
        f"Written by `python -m plume.playground.ablate`. {plan['explicit_steps']} explicit and {plan['latent_steps']} "
        f"latent steps of {plan['batch_size']} pairs, {plan['queries']} queries per task. Hit@1 in percent, mean over "
        "tasks, then mean and population standard deviation over seeds where there are several.",
        "",
        "| variant | multi-hop | controls | seeds |",
        "|---|---|---|---|",
    ]
    for variant, kinds in summary.items():
        multi, control = kinds.get(_MULTI, []), kinds.get(_CONTROL, [])
        lines.append(f"| {variant} | {_number(multi)} | {_number(control)} | {max(len(multi), len(control))} |")
    grouped: dict[tuple[str, int], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        grouped[row["task"], row["hops"]][row["variant"]].append(row["hit_at_1"])
    names = list(summary)
    lines += ["", "By task and number of look-ups (look-ups other than those of the training are extrapolation):", ""]
    lines += [f"| task | look-ups | {' | '.join(names)} |", "|---|---|" + "---|" * len(names)]
    for (task, hops), scores in sorted(grouped.items()):
        lines.append(f"| {task} | {hops} | " + " | ".join(_number(scores.get(name, [])) for name in names) + " |")
    return "\n".join([*lines, ""])


def _plot(summary: Mapping[str, Mapping[str, list[float]]], file: Path) -> None:
    from matplotlib.figure import Figure

    names = list(summary)[::-1]
    figure = Figure(figsize=(7, 0.42 * len(names) + 1.4), layout="constrained")
    axes = figure.subplots()
    for offset, kind, color in ((0.19, _MULTI, "#3060c0"), (-0.19, _CONTROL, "#b8b8b8")):
        means = [100 * mean(summary[name].get(kind) or [0.0]) for name in names]
        places = [index + offset for index in range(len(names))]
        axes.barh(places, means, height=0.36, color=color, label=kind)
        for name, place in zip(names, places, strict=True):
            scores = summary[name].get(kind, [])
            axes.plot([100 * score for score in scores], [place] * len(scores), ".", color="#202020", markersize=4)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("Hit@1, percent (dots: seeds)")
    axes.set_xlim(0, 100)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, 1.12), ncols=2)
    figure.savefig(file, dpi=150)

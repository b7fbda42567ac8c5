"""The results of a sweep as files: rows, tasks, a plot and a page, with mean and spread over the seeds."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, pstdev
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from plume.evaluation.style import BLACK, BLUE, ORANGE, SKY, STYLE
from plume.playground.tasks import TASKS

ROWS, TASK_FILE, PLOT, PAGE = "ablations.json", "tasks.json", "ablations.png", "results.md"
MAIN = ("full", "no_latent", "no_curriculum")
# Difference to the full model in points, all modalities: Tables 3 to 6 of the paper.
PAPER = {
    "no_latent": -2.8,
    "no_curriculum": -6.8,
    "single_mlp": -2.4,
    "no_anchor": -1.5,
    "no_step": -1.2,
    "top1": -0.8,
    "no_shared": -1.3,
    "k4": -1.7,
    "k6": -0.5,
    "stages2": -2.6,
    "stages6": -0.2,
    "stages8": -0.7,
}
Rows = Sequence[Mapping[str, Any]]


def scores(rows: Rows, variant: str, task: str, hops: int) -> list[float]:
    """Hit@1 in percent, one number per seed, in the order of the seeds."""
    found = [r for r in rows if (r["variant"], r["task"], r["hops"]) == (variant, task, hops)]
    return [100 * row["hit_at_1"] for row in sorted(found, key=lambda row: row["seed"])]


def write_report(rows: Rows, folder: Path) -> None:
    """Write ``results.md`` and, under ``results/``, ``ablations.json``, ``tasks.json`` and ``ablations.png``.

    Args:
        rows: Result rows, with variant, seed, task, split, hops, n, hit_at_1, explicit_steps and latent_steps.
        folder: Where to.

    Raises:
        ValueError: If there are no rows.
    """
    if not rows:
        raise ValueError("No run of the sweep has finished, so there is nothing to report. Run it first.")
    results = folder / "results"
    results.mkdir(parents=True, exist_ok=True)
    names = _names(rows)
    tasks = {
        name: {"control": TASKS[name].control, "hops": TASKS[name].hops, "description": TASKS[name].description}
        for name in names
    }
    for name, content in ((ROWS, list(rows)), (TASK_FILE, tasks)):
        (results / name).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    (folder / PAGE).write_text(_page(rows, names), encoding="utf-8")
    with rc_context(STYLE):
        _plot(rows, names, results / PLOT)


def _number(values: Sequence[float]) -> str:
    if not values:
        return "-"
    return f"{mean(values):.1f}" + (f" ± {pstdev(values):.1f}" if len(values) > 1 else "")


def over_chains(rows: Rows, variant: str) -> list[float]:
    """Mean Hit@1 in percent over the tasks of several look-ups, one number per seed."""
    names = [name for name in _names(rows) if not TASKS[name].control]
    return [mean(seeds) for seeds in zip(*(scores(rows, variant, n, TASKS[n].hops) for n in names), strict=True)]


def reproduces(full: Sequence[float], variant: Sequence[float]) -> str:
    """Whether the full model is above a variant by more than both spreads together, as every one in the paper."""
    apart, spread = mean(full) - mean(variant), pstdev(full) + pstdev(variant)
    if abs(apart) <= spread:
        return "within spread"
    return "yes" if apart > 0 else "no"


def _names(rows: Rows) -> list[str]:
    return list(dict.fromkeys(row["task"] for row in rows))


def _page(rows: Rows, names: Sequence[str]) -> str:
    explicit = " or ".join(map(str, sorted({row["explicit_steps"] for row in rows})))
    latent, queries = rows[0]["latent_steps"], rows[0]["n"]
    conditions = f"{explicit} explicit steps, until mastered, then {latent} latent ones; {queries} queries per task"
    lines = [
        "# Results on the playground",
        "",
        "Written by `python -m plume.playground.ablate`; what the tasks are is told in [the playground](playground.md), "
        "what a variant is in [variants.py](../playground/variants.py). One model per variant and seed for all tasks "
        f"({conditions}). Hit@1 in percent: mean and population standard deviation over seeds, their number in "
        "brackets.",
        "",
        "![Hit@1 of every variant](results/ablations.png)",
        "",
        "## Does the thinking help?",
        "",
        f"| task | look-ups | {' | '.join(MAIN)} |",
        "|---|---|" + "---|" * len(MAIN),
    ]
    for name in names:
        cells = [_with_seeds(scores(rows, variant, name, TASKS[name].hops)) for variant in MAIN]
        kind = "control, " if TASKS[name].control else ""
        lines.append(f"| {name} | {kind}{TASKS[name].hops} | {' | '.join(cells)} |")
    lines += _variants(rows, names)
    lines += ["", "## Other numbers of look-ups, never trained", "", f"| task | look-ups | {' | '.join(MAIN)} |"]
    lines += ["|---|---|" + "---|" * len(MAIN)]
    others = sorted({(row["task"], row["hops"]) for row in rows if row["split"] == "extrapolation"})
    for name, hops in others:
        lines.append(f"| {name} | {hops} | {' | '.join(_number(scores(rows, v, name, hops)) for v in MAIN)} |")
    return "\n".join([*lines, ""])


def _variants(rows: Rows, names: Sequence[str]) -> list[str]:
    lines = ["", "## Every variant, mean of the tasks of several look-ups", ""]
    lines += ["| variant | Hit@1 | over full, here | in the paper | here as in the paper? |", "|---|---|---|---|---|"]
    full = over_chains(rows, "full")
    for variant in ("full", *PAPER):
        values = over_chains(rows, variant)
        apart = f"{mean(values) - mean(full):+.1f}" if values and full and variant != "full" else ""
        paper = f"{PAPER[variant]:+.1f}" if variant in PAPER else ""
        verdict = reproduces(full, values) if apart else ""
        lines.append(f"| {variant} | {_with_seeds(values)} | {apart} | {paper} | {verdict} |")
    lines += [
        "",
        "The paper's full model is above every variant. *Yes*: so it is here, by more than both standard deviations "
        "together. *No*: it is below by as much. *Within spread*: neither.",
    ]
    lines += ["", "## Every variant, by task", "", f"| variant | {' | '.join(names)} |", "|---|" + "---|" * len(names)]
    for variant in ("full", *PAPER):
        cells = [_number(scores(rows, variant, name, TASKS[name].hops)) for name in names]
        lines.append(f"| {variant} | {' | '.join(cells)} |")
    return lines


def _with_seeds(values: Sequence[float]) -> str:
    return f"{_number(values)} ({len(values)})" if values else "not run"


def _plot(rows: Rows, names: Sequence[str], file: Path) -> None:
    figure = Figure(figsize=(9, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    colors = (BLUE, "#bbbbbb", ORANGE)
    for offset, variant, color in zip((0.27, 0.0, -0.27), MAIN, colors, strict=True):
        for place, name in enumerate(names[::-1]):
            _bar(left, place + offset, scores(rows, variant, name, TASKS[name].hops), color, 0.25)
        left.barh([-9], [0], color=color, label=variant)
    labels = [f"{name}{' (control)' if TASKS[name].control else ''}" for name in names[::-1]]
    left.set_yticks(range(len(names)), labels)
    left.set_ylim(-0.5, len(names) - 0.5)
    left.legend(loc="upper center", bbox_to_anchor=(0.5, 1.14), ncols=3)
    variants = [v for v in ("full", *PAPER) if over_chains(rows, v)][::-1]
    for place, variant in enumerate(variants):
        _bar(right, place, over_chains(rows, variant), BLUE if variant == "full" else SKY, 0.7)
    right.set_yticks(range(len(variants)), variants)
    right.set_title("every variant, mean of the multi-hop tasks")
    for axes in (left, right):
        axes.set_xlabel("Hit@1, percent (dots: seeds)")
        axes.set_xlim(0, 102)
    figure.savefig(file)


def _bar(axes: Any, place: float, values: Sequence[float], color: str, height: float) -> None:
    if values:
        axes.barh([place], [mean(values)], height=height, color=color)
        axes.plot(values, [place] * len(values), ".", color=BLACK, markersize=4)

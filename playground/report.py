"""The results of a sweep as files: rows, tasks, a plot and a page, with mean and spread over the seeds."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, pstdev
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from plume.evaluation.embedders import fingerprint
from plume.evaluation.report import markdown
from plume.evaluation.store import check_condition, write_json, write_whole
from plume.evaluation.style import BLACK, BLUE, ORANGE, SKY, STYLE
from plume.playground.tasks import TASKS
from plume.playground.variants import VARIANTS

ROWS, TASK_FILE, PLAN, PLOT, PAGE = "ablations.json", "tasks.json", "plan.json", "ablations.png", "results.md"
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
_MEND = "Give another --results."
Rows = Sequence[Mapping[str, Any]]


def collect(folder: Path, results: Path) -> list[dict[str, Any]]:
    """Result rows of all finished runs: those reported before, and those of a sweep's folder.

    Args:
        folder: Of the sweep. Rows found there get ``explicit``, a hash of the weights that their seed continued from.
        results: Folder that :func:`write_report` was given.

    Raises:
        ValueError: If the two have other plans, or a seed has two explicit stages.
    """
    kept, plan = results / "results", json.loads((folder / PLAN).read_text("utf-8"))
    rows = json.loads((kept / ROWS).read_text("utf-8")) if (kept / ROWS).exists() else []
    if rows:
        told = json.loads((kept / PLAN).read_text("utf-8"))
        check_condition(kept / PLAN, told, plan, f"It is another plan than that of {folder}. {_MEND}")
    stages = {int(stage.name.partition("-")[2]): stage for stage in folder.glob("explicit-*[0-9]")}
    starts = {seed: fingerprint(stage)["hash"] for seed, stage in stages.items()}
    for row in rows:
        if starts.get(row["seed"], row["explicit"]) != row["explicit"]:
            raise ValueError(
                f"Runs of seed {row['seed']} in {kept / ROWS} continue from other weights than {stages[row['seed']]}, "
                f"so variants would differ in their start too. {_MEND}"
            )
    found = [row for file in folder.glob("*-*.json") for row in json.loads(file.read_text("utf-8"))]
    if lost := sorted({row["seed"] for row in found} - set(starts)):
        raise ValueError(
            f"{folder} has runs of seeds {lost} but not the explicit stage that they continued from, so nothing tells "
            "whether variants started alike. Restore its folder explicit-SEED, or remove these runs."
        )
    rows += [{**row, "explicit": starts[row["seed"]]} for row in found]
    newest = {(row["variant"], row["task"], row["seed"], row["hops"]): row for row in rows}
    order = [list(VARIANTS), list(TASKS)]
    return sorted(newest.values(), key=lambda r: (order[0].index(r["variant"]), order[1].index(r["task"]), r["seed"]))


def scores(rows: Rows, variant: str, task: str, hops: int) -> list[float]:
    """Hit@1 in percent, one number per seed, in the order of the seeds."""
    found = [r for r in rows if (r["variant"], r["task"], r["hops"]) == (variant, task, hops)]
    return [100 * row["hit_at_1"] for row in sorted(found, key=lambda row: row["seed"])]


def write_report(rows: Rows, plan: Path, folder: Path) -> None:
    """Write ``results.md`` and, under ``results/``, ``ablations.json``, ``tasks.json``, ``plan.json`` and the plot.

    Args:
        rows: Result rows, with variant, seed, task, split, hops, n, hit_at_1, explicit_steps and latent_steps.
        plan: The sweep's plan file.
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
    page = _page(rows, names)
    for name, content in ((ROWS, list(rows)), (TASK_FILE, tasks), (PLAN, json.loads(plan.read_text("utf-8")))):
        write_json(results / name, content)
    write_whole(folder / PAGE, page)
    with rc_context(STYLE):
        _plot(rows, names, results / PLOT)


def _number(values: Sequence[float]) -> str:
    if not values:
        return "-"
    return f"{mean(values):.1f}" + (f" ± {pstdev(values):.1f}" if len(values) > 1 else "")


def _signed(differences: Sequence[float]) -> str:
    return ("+" if mean(differences) > 0 else "") + _number(differences)


def over_chains(rows: Rows, variant: str) -> dict[int, float]:
    """Mean Hit@1 in percent over the tasks of several look-ups, by seed."""
    found: dict[int, list[float]] = defaultdict(list)
    for row in rows:
        if row["variant"] == variant and row["split"] == "test" and not TASKS[row["task"]].control:
            found[row["seed"]].append(100 * row["hit_at_1"])
    return {seed: mean(values) for seed, values in sorted(found.items())}


def compare(full: Mapping[int, float], variant: Mapping[int, float]) -> tuple[list[float], str]:
    """Points of a variant over the full model, one number per common seed, and whether their sign is the paper's.

    In the paper the full model is above every variant. No verdict is given on fewer than three seeds.
    """
    apart = [variant[seed] - full[seed] for seed in variant if seed in full]
    if len(apart) < 3:
        return apart, "too few seeds"
    if abs(mean(apart)) <= pstdev(apart):
        return apart, "within spread"
    return apart, "yes" if mean(apart) < 0 else "no"


def _names(rows: Rows) -> list[str]:
    return list(dict.fromkeys(row["task"] for row in rows))


def _page(rows: Rows, names: Sequence[str]) -> str:
    explicit = " or ".join(map(str, sorted({row["explicit_steps"] for row in rows})))
    latent, queries = rows[0]["latent_steps"], rows[0]["n"]
    conditions = f"{explicit} explicit steps, until mastered, then {latent} latent ones; {queries} queries per task"
    rows_by_task = []
    for name in names:
        kind = "control, " if TASKS[name].control else ""
        cells = [_with_seeds(scores(rows, variant, name, TASKS[name].hops)) for variant in MAIN]
        rows_by_task.append([name, f"{kind}{TASKS[name].hops}", *cells])
    others = sorted({(row["task"], row["hops"]) for row in rows if row["split"] == "extrapolation"})
    never_trained = [
        [name, str(hops), *(_number(scores(rows, variant, name, hops)) for variant in MAIN)] for name, hops in others
    ]
    parts = [
        "# Results on the playground",
        "Written by `python -m plume.playground.ablate`; what the tasks are is told in [the playground](playground.md) "
        "and what a variant is in [variants.py](../playground/variants.py). One model per variant and seed for all "
        f"tasks ({conditions}); all variants of a seed continue from one explicit stage. Hit@1 in percent: mean and "
        "population standard deviation over seeds, their number in brackets.",
        "![Hit@1 of every variant](results/ablations.png)",
        "## Does the thinking help?",
        markdown(["task", "look-ups", *MAIN], rows_by_task),
        *_variants(rows, names),
        "## Other numbers of look-ups, never trained",
        markdown(["task", "look-ups", *MAIN], never_trained),
    ]
    return "\n\n".join(parts) + "\n"


def _variants(rows: Rows, names: Sequence[str]) -> list[str]:
    full = over_chains(rows, "full")
    body = [["full", _with_seeds(list(full.values())), "", "", ""]]
    for variant, paper in PAPER.items():
        values = over_chains(rows, variant)
        apart, verdict = compare(full, values)
        here = [_signed(apart), f"{paper:+.1f}", verdict] if apart else ["", f"{paper:+.1f}", ""]
        body.append([variant, _with_seeds(list(values.values())), *here])
    by_task = [
        [variant, *(_number(scores(rows, variant, name, TASKS[name].hops)) for name in names)]
        for variant in ("full", *PAPER)
    ]
    return [
        "## Every variant, mean of the tasks of several look-ups",
        markdown(["variant", "Hit@1", "over full, here", "in the paper", "here as in the paper?"], body),
        "The paper's full model is above every variant. *Yes*: so it is here, by more than the standard deviation of "
        "the difference over seeds. *No*: it is below by as much. *Within spread*: neither. Seeds differ in first "
        "weights and order of the pairs; world and test queries are the same. `no_latent` reads the embedding at "
        "`<gen>` here, at the last token of the prefix in the paper.",
        "## Every variant, by task",
        markdown(["variant", *names], by_task),
    ]


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
        _bar(right, place, list(over_chains(rows, variant).values()), BLUE if variant == "full" else SKY, 0.7)
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

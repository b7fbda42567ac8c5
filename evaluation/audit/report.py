"""The audit as one Markdown page, next to its pictures."""

from collections.abc import Mapping, Sequence
from typing import Any

from plume.evaluation.audit.plots import VARIANTS
from plume.evaluation.audit.summary import Result, by_kind, mean_cost, mean_over, series
from plume.evaluation.report import markdown

_WHAT = {
    "as is": "the checkpoint's own latent states",
    "drop": "no latent steps at all (K = 0)",
    "shuffle": "the whole latent trace of another query of the task",
    "noise": "Gaussian directions of the same norms",
    "first": "the query's first refined state at every step",
    "mean": "the mean over the task's queries at each step",
}


def write_report(condition: Mapping[str, Any], results: Sequence[Result], pictures: Mapping[str, str]) -> str:
    """The page.

    Args:
        condition: What the numbers hold for.
        results: Of :func:`~plume.evaluation.audit.measure.measure`, one per task.
        pictures: File names, from :func:`~plume.evaluation.audit.plots.draw_all`.
    """
    parts = [
        "# Latent-use audit",
        "Does this checkpoint use its latent steps, and for what? How to read each measure: `docs/audit.md`.",
        markdown(["condition", ""], [[name, f"`{value}`"] for name, value in condition.items()]),
        "## In short",
        *_headline(results),
        _costs(results),
        "## Interventions",
        "Documents stay as they are; the input of every latent step of the *queries* is replaced by:",
        "\n".join(f"- **{name}**: {what}" for name, what in _WHAT.items()),
        _picture(pictures, "interventions", "Hit@1 per task and intervention"),
        _interventions(results),
        "## Number of steps",
        "Queries and documents both at K.",
        _picture(pictures, "sweep", "Hit@1 against K"),
        _steps(results, "sweep", "hit_at_1", "K", percent=True),
        "## Step by step",
        "The embedding read out after each step of the queries, against the documents at the checkpoint's K (Fig. 6).",
        _picture(pictures, "trajectory", "cosine and rank per step"),
        _steps(results, "trajectory", "cosine", "cosine to the positive, step"),
        _steps(results, "trajectory", "state_cosine", "cosine of the latent state itself, step"),
        _steps(results, "trajectory", "median_rank", "median rank, step"),
        "## Experts",
        *_experts(results, pictures),
        "## Words",
        "The LM head's likeliest word at each latent step: the most frequent one over the queries, with its share.",
        _words(results),
        "## Collapse",
        "1 is collapse for the cosines; the rank lies between 1 and K, the expert mass between 1 / experts and 1.",
        _collapse(results),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def headline(results: Sequence[Result]) -> list[str]:
    """One sentence per kind of task: what dropping and shuffling cost."""
    sentences = []
    for kind, members in by_kind(results).items():
        drop, shuffle = (_points(*mean_cost(members, variant)) for variant in ("drop", "shuffle"))
        tasks = kind.removesuffix("s") if len(members) == 1 else kind
        sentences.append(
            f"On {len(members)} {tasks}, dropping the latents costs {drop} points of Hit@1, "
            f"shuffling them between queries {shuffle}."
        )
    return sentences


def _headline(results: Sequence[Result]) -> list[str]:
    note = (
        "Plus or minus: standard error over the queries, paired. A cost below twice that is not distinguishable from 0."
    )
    return ["\n".join(f"- {sentence}" for sentence in headline(results)), note]


def _costs(results: Sequence[Result]) -> str:
    rows = []
    for kind, members in by_kind(results).items():
        as_is = mean_over(members, lambda result: result["interventions"]["as is"]["hit_at_1"])
        costs = [_points(*mean_cost(members, name)) for name in VARIANTS if name != "as is"]
        rows.append([kind, str(len(members)), f"{100 * as_is:.1f}", *costs])
    return markdown(["", "tasks", "Hit@1 as is", *(f"cost of {name}" for name in VARIANTS if name != "as is")], rows)


def _interventions(results: Sequence[Result]) -> str:
    rows = []
    for result in results:
        variants = [result["interventions"][name] for name in VARIANTS]
        cells = [f"{100 * row['hit_at_1']:.1f} / {100 * row['ndcg_at_5']:.1f}" for row in variants]
        rows.append([*_task(result), str(result["n"]), f"{result['pool_size']:.0f}", *cells])
    return "Hit@1 / nDCG@5, in percent.\n\n" + markdown(["task", "hops", "queries", "pool", *VARIANTS], rows)


def _steps(results: Sequence[Result], part: str, key: str, title: str, percent: bool = False) -> str:
    kinds = by_kind(results)
    shared = sorted({step for members in kinds.values() for step in series(members, part, key)[0]})
    rows = []
    for kind, members in kinds.items():
        values = dict(zip(*series(members, part, key), strict=True))
        cells = [values.get(step) for step in shared]
        rows.append([kind, *("" if v is None else f"{100 * v:.1f}" if percent else f"{v:.3g}" for v in cells)])
    return markdown([title, *map(str, shared)], rows)


def _experts(results: Sequence[Result], pictures: Mapping[str, str]) -> list[str]:
    if "experts" not in pictures:
        return ["This checkpoint has one expert: nothing is routed."]
    legend = "T text, I image, V video, D page image, TI, TV and TD text with one of them (Fig. 5 and 9)."
    return [
        f"Share of inputs that select each specialised expert. {legend}",
        _picture(pictures, "experts", "expert use"),
    ]


def _words(results: Sequence[Result]) -> str:
    count = max(len(result["words"]["steps"]) for result in results)
    rows = []
    for result in results:
        cells = [f"{_code(step[0][0])} {100 * step[0][1]:.0f} %" for step in result["words"]["steps"]]
        rows.append([result["task"], *cells])
    return markdown(["task", *(f"step {step}" for step in range(1, count + 1))], rows)


def _collapse(results: Sequence[Result]) -> str:
    names = {
        "latent_cosine": "between steps",
        "latent_rank": "rank of the steps",
        "expert_mass": "largest expert mass",
        "query_cosine": "between queries",
        "document_cosine": "between documents",
    }
    rows = []
    for result in results:
        values = [result["collapse"].get(name) for name in names]
        alike = result["collapse"]["input_cosine"]
        cells = ["" if value is None else f"{value:.3f}" for value in [*values, alike[0], alike[-1]]]
        rows.append([result["task"], *cells])
    return markdown(["task", *names.values(), "between inputs, first step", "last step"], rows)


def _task(result: Result) -> list[str]:
    name = result["task"] + (" (control)" if result["control"] else "")
    return [name, "" if result["hops"] is None else str(result["hops"])]


def _points(value: float, error: float) -> str:
    return f"{100 * value:.1f} ± {100 * error:.1f}"


def _picture(pictures: Mapping[str, str], name: str, description: str) -> str:
    return f"![{description}]({pictures[name]})"


def _code(word: str) -> str:
    """A token as inline code, safe inside a table."""
    visible = repr(word)[1:-1].replace("|", "\\|").replace("`", "'")
    return f"`{visible}`"

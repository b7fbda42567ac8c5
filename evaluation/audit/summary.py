"""Means over tasks: those that need several hops, the controls, or all where the table does not say."""

from collections.abc import Callable, Sequence
from typing import Any

Result = dict[str, Any]
MULTI_HOP, CONTROL, ALL = "multi-hop tasks", "control tasks", "tasks"


def by_kind(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Results of multi-hop tasks and of controls; of tasks without the flag ``control`` apart."""
    kinds: dict[str, list[Result]] = {}
    for name, control in ((MULTI_HOP, False), (CONTROL, True), (ALL, None)):
        members = [result for result in results if result["control"] is control]
        if members:
            kinds["other tasks" if name == ALL and kinds else name] = members
    return kinds


def mean_over(results: Sequence[Result], value: Callable[[Result], float]) -> float:
    """Unweighted mean over tasks."""
    return sum(map(value, results)) / len(results)


def mean_cost(results: Sequence[Result], variant: str) -> tuple[float, float]:
    """Mean cost in Hit@1 of an intervention, and its standard error over the queries of these tasks; in [0, 1]."""
    rows = [result["interventions"][variant] for result in results]
    error = sum(row["cost_error"] ** 2 for row in rows) ** 0.5 / len(rows)
    return sum(row["cost"] for row in rows) / len(rows), error


def series(results: Sequence[Result], part: str, key: str) -> tuple[list[int], list[float]]:
    """Mean over tasks of a number of ``trajectory`` or ``sweep``, by its step; steps that some task lacks are left out.

    Args:
        results: Of one kind.
        part: ``"trajectory"`` or ``"sweep"``.
        key: Name of the number.
    """
    x = "step" if part == "trajectory" else "num_latent_steps"
    tables = [{row[x]: row[key] for row in result[part] if key in row} for result in results]
    shared = sorted(set.intersection(*(set(table) for table in tables)))
    return shared, [sum(table[step] for table in tables) / len(tables) for step in shared]

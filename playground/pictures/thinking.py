"""Does the thinking help on pictures and words? ``python -m plume.playground.pictures.thinking WORLD PARTS OUTPUT``.

Every run starts from the state of a warm-up after its parts, and trains the whole with as many steps. What differs is
K: 8, 4 or 0 all the time, or 0 in the first half and 8 from then on. Each variant is run at three learning rates; then,
at the best by the dev style, with two further seeds. The same command goes on with the runs that OUTPUT lacks.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import matplotlib
import torch
from matplotlib.figure import Figure

import plume
from plume.arguments import ArgumentParser
from plume.evaluation.style import PALETTE, STYLE
from plume.playground.pictures.develop import dev_scores
from plume.playground.pictures.warmup import Phase, Pictures, Plan, Warmup, Words
from plume.playground.pictures.world import World, read_world

VARIANTS: dict[str, tuple[int, int]] = {"K = 8": (8, 8), "K = 4": (4, 4), "K = 0": (0, 0), "abrupt": (0, 8)}
RATES = (4e-4, 8e-4, 1.6e-3)
SEEDS = (0, 1, 2)
LANGUAGES = ("en", "de", "ar", "zh")
_SIZES = (128, 32, 8)  # words, pictures and those with skin tones, per step
Row = dict[str, Any]


def read_student(world: World) -> tuple[Any, Any]:
    """The fresh model of a world and its processor."""
    return plume.load(world.folder / "student")


class Lab:
    """Trains and scores variants.

    Args:
        world: What was built.
        parts: State of a warm-up after its parts.
        steps: Steps of every run.
    """

    def __init__(self, world: World, parts: dict[str, Any], steps: int) -> None:
        self.world, self.parts, self.steps = world, parts, steps
        self.data: tuple[Pictures, Words] | None = None

    def run(self, variant: str, rate: float, seed: int) -> Row:
        """Train one variant at a learning rate and score it."""
        halves = tuple(Phase(True, self.steps // 2, *_SIZES, rate, k) for k in VARIANTS[variant])
        model, processor = read_student(self.world)
        run = Warmup(self.world, model, processor, Plan(halves, seed=seed), self.data)
        self.data = run.pictures, run.words
        run.start_from(self.parts)
        for _ in range(run.plan.steps):
            losses = run.train_step()
        last = VARIANTS[variant][1]
        dev = {k: dev_scores(self.world, model, processor, LANGUAGES, k) for k in {last, 0}}
        row = {"variant": variant, "rate": rate, "seed": seed, "steps": run.plan.steps, "losses": losses}
        return {**row, "dev": dev[last], "dev_without_steps": dev[0]}


def best_rate(rows: Sequence[Row], variant: str) -> float:
    """The learning rate with the highest mean of Hit@10 in the first seed."""
    first = [row for row in rows if row["variant"] == variant and row["seed"] == SEEDS[0]]
    return max(first, key=lambda row: row["dev"]["mean"]["hit@10"])["rate"]


def missing(rows: Sequence[Row], variants: Sequence[str]) -> Iterator[tuple[str, float, int]]:
    """Variant, rate and seed of the next runs; rates first, since they decide what follows."""
    done = {(row["variant"], row["rate"], row["seed"]) for row in rows}
    rates = [(variant, rate, SEEDS[0]) for rate in RATES for variant in variants]
    if left := [run for run in rates if run not in done]:
        yield from left
        return
    seeds = [(variant, best_rate(rows, variant), seed) for seed in SEEDS[1:] for variant in variants]
    yield from (run for run in seeds if run not in done)


def draw(rows: Sequence[Row], file: Path) -> None:
    """Hit@10 on dev, two panels: by learning rate in the first seed, and of all seeds at each variant's best rate."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.5, 2.8), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        variants = [variant for variant in VARIANTS if any(row["variant"] == variant for row in rows)]
        for place, (variant, color) in enumerate(zip(variants, PALETTE, strict=False)):
            own = sorted((row for row in rows if row["variant"] == variant), key=lambda row: row["rate"])
            first = [row for row in own if row["seed"] == SEEDS[0]]
            scores = lambda some: [row["dev"]["mean"]["hit@10"] for row in some]  # noqa: E731
            left.plot([row["rate"] for row in first], scores(first), "o-", color=color, label=variant)
            seeds = scores(row for row in own if row["rate"] == best_rate(rows, variant))
            right.plot([place] * len(seeds), seeds, "o", color=color)
            right.hlines(mean(seeds), place - 0.2, place + 0.2, color=color)
        left.set(xscale="log", xlabel="learning rate", ylabel="Hit@10 (%)", title="one seed")
        left.set_xticks(RATES, [f"{rate:g}" for rate in RATES])
        left.minorticks_off()
        left.legend()
        right.set_xticks(range(len(variants)), variants)
        right.set(title="at the best rate, every seed and their mean")
        figure.savefig(file)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and run what is missing.

    Args:
        arguments: Command line without the program; ``sys.argv`` if omitted.
    """
    parser = ArgumentParser(prog="python -m plume.playground.pictures.thinking", description=__doc__)
    parser.add_argument("world", type=Path, help="folder that plume.playground.pictures wrote")
    parser.add_argument("parts", type=Path, help="parts.pt of a warm-up")
    parser.add_argument("output", type=Path, help="file of the results")
    parser.add_argument("--steps", type=int, default=120, help="steps of every run")
    parser.add_argument("--variants", nargs="*", choices=VARIANTS, default=list(VARIANTS), help="only these")
    args = parser.parse_args(arguments)
    lab = Lab(read_world(args.world), torch.load(args.parts, weights_only=False), args.steps)
    rows: list[Row] = json.loads(args.output.read_text(encoding="utf-8")) if args.output.exists() else []
    while left := list(missing(rows, args.variants)):
        rows.append(lab.run(*left[0]))
        args.output.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    draw(rows, args.output.with_suffix(".png"))


if __name__ == "__main__":
    main()

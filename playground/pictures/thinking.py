"""Does the thinking help on pictures and words? ``python -m plume.playground.pictures.thinking WORLD PARTS OUTPUT``.

Every run starts from the state of a warm-up after its parts, and trains the whole with as many steps. What differs is
K: 8, 4 or 0 all the time, or 0 in the first half and 8 from then on. Each variant is run at three learning rates; then,
at the best by the dev style, with two further seeds. The same command goes on with the runs that OUTPUT lacks.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

import plume
from plume.arguments import ArgumentParser
from plume.playground.pictures.develop import dev_scores
from plume.playground.pictures.warmup import Phase, Plan, Warmup
from plume.playground.pictures.world import World, read_world

VARIANTS: dict[str, tuple[int, int]] = {"K = 8": (8, 8), "K = 4": (4, 4), "K = 0": (0, 0), "abrupt": (0, 8)}
RATES = (4e-4, 8e-4, 1.6e-3)
SEEDS = (0, 1, 2)
LANGUAGES = ("en", "de", "fi", "ar", "hi", "th", "zh", "es")
Row = dict[str, Any]


def train(
    world: World, parts: dict[str, Any], latent_steps: tuple[int, int], rate: float, seed: int, steps: int
) -> Row:
    """Train one variant and score it.

    Args:
        world: What was built.
        parts: State of a warm-up after its parts.
        latent_steps: K of the first and of the second half.
        rate: Highest learning rate of both halves.
        seed: Seed of what is drawn.
        steps: Steps of both halves together.
    """
    halves = tuple(Phase(True, steps // 2, 192, 48, 12, rate, k) for k in latent_steps)
    model, processor = plume.load(world.folder / "student")
    run = Warmup(world, model, processor, Plan(halves, seed=seed))
    run.start_from(parts)
    for _ in range(steps // 2 * 2):
        losses = run.train_step()
    last = latent_steps[1]
    scores = {"dev": dev_scores(world, model, processor, LANGUAGES, last)}
    if last:
        scores["dev_without_steps"] = dev_scores(world, model, processor, LANGUAGES, 0)
    return {**scores, "losses": losses}


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


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and run what is missing.

    Args:
        arguments: Command line without the program; ``sys.argv`` if omitted.
    """
    parser = ArgumentParser(prog="python -m plume.playground.pictures.thinking", description=__doc__)
    parser.add_argument("world", type=Path, help="folder that plume.playground.pictures wrote")
    parser.add_argument("parts", type=Path, help="parts.pt of a warm-up")
    parser.add_argument("output", type=Path, help="file of the results")
    parser.add_argument("--steps", type=int, default=160, help="steps of every run")
    parser.add_argument("--variants", nargs="*", choices=VARIANTS, default=list(VARIANTS), help="only these")
    args = parser.parse_args(arguments)
    world, parts = read_world(args.world), torch.load(args.parts, weights_only=False)
    rows: list[Row] = json.loads(args.output.read_text(encoding="utf-8")) if args.output.exists() else []
    while left := list(missing(rows, args.variants)):
        variant, rate, seed = left[0]
        scores = train(world, parts, VARIANTS[variant], rate, seed, args.steps)
        rows.append({"variant": variant, "rate": rate, "seed": seed, "steps": args.steps, **scores})
        args.output.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

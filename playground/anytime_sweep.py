"""Trained for every K, for one or for none, in the same steps: ``python -m plume.playground.anytime_sweep``.

1. **World**: chains of one to four look-ups, so that the number of steps needed differs from row to row.
2. **Explicit stage**, once for all runs, from plume-tiny: all variants and seeds continue from the same weights.
3. **Three phases** per variant and seed, each a run of ``training/train.py``: :data:`PHASES`, :data:`VARIANTS`. The
   first seed tries several learning rates; the best on the dev split is that of the other seeds too.
4. **Rows** of the test split by :mod:`plume.playground.anytime`.

A run whose rows are in the results, or a phase whose checkpoint is there, is not run again.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import mean
from typing import Any

from tqdm import tqdm

from plume.arguments import ArgumentParser
from plume.evaluation.store import check_condition, write_json
from plume.playground import anytime
from plume.playground.__main__ import main as write_world
from plume.playground.ablate import Plan

HOPS = ("1", "2", "3", "4")
_RECIPE = "training/recipes/playground.yaml"
_EXPLICIT_SEED = 42
_DEV_QUERIES = 40

# A sentence is two look-up tokens, so two latent steps stand for it and stage 4 has all eight; the last stage is 5.
# "readouts_weight" is what all read-outs weigh together.
PHASES: tuple[dict[str, Any], ...] = (
    {"stage_weights": [0, 3, 1, 0, 0, 0], "learning_rate": 1e-3, "max_steps": 200, "readouts_weight": 0.25},
    {
        "stage_weights": [0, 0, 1, 2, 2, 0],
        "learning_rate": 7e-4,
        "max_steps": 400,
        "readouts_weight": 0.25,
        "per_device_train_batch_size": 32,
    },
    {
        "stage_weights": [0, 0, 0, 0, 1, 9],
        "learning_rate": 5e-4,
        "max_steps": 220,
        "readouts_weight": 0.5,
        "per_device_train_batch_size": 32,
        "stage_mixing": 0.3,
        "lr_scheduler_type": "linear",
    },
)

_VIEW = {"latent_view_weight": 0.3}
VARIANTS: dict[str, dict[str, Any]] = {
    "anytime": {
        **_VIEW,
        "steps_per_sentence": 2,
        "readout_steps": list(range(9)),
        "matryoshka_dims": [16, 64],
        "matryoshka_weights": [0.2, 0.2],
    },
    "fixed_k8": {"steps_per_sentence": 2},
    "fixed_k8_view": {**_VIEW, "steps_per_sentence": 2},
    # The rationale goes sentence by sentence as in the others, and nothing comes in its place.
    "no_latent": {"num_latent_steps": 0},
}


def phase_options(variant: str, place: int, rate: float, steps: int) -> dict[str, Any]:
    """Options of the trainer for one phase of a variant.

    Args:
        variant: One of :data:`VARIANTS`.
        place: Of the phase, from 0.
        rate: Factor on the learning rate.
        steps: Optimizer steps of the phase.
    """
    phase, own = dict(PHASES[place]), VARIANTS[variant]
    weight = phase.pop("readouts_weight")
    count = len(own.get("readout_steps", ()))
    read = {"readout_weights": [weight / count] * count} if count else {}
    scales = [1.0] * len(phase["stage_weights"])
    rates = {"learning_rate": phase["learning_rate"] * rate, "stage_lr_scales": scales}
    return {**phase, **own, **read, **rates, "max_steps": steps}


@dataclass(frozen=True)
class AnytimeSweep:
    """All runs in one folder.

    Attributes:
        folder: Where worlds and checkpoints are.
        start: Checkpoint that the explicit stage starts from.
        tasks: What the one model learns.
        rows: Training pairs.
        queries: Queries per evaluation task.
        explicit_steps: Optimizer steps of the explicit stage.
        steps: Optimizer steps of the three phases.
        rates: Factors on the learning rate that the first seed tries.
    """

    folder: Path
    start: str = "checkpoints/plume-tiny"
    tasks: tuple[str, ...] = Plan().tasks
    rows: int = 24000
    queries: int = 200
    explicit_steps: int = 400
    steps: tuple[int, ...] = tuple(phase["max_steps"] for phase in PHASES)
    rates: tuple[float, ...] = (1.0, 0.5, 2.0)

    def __post_init__(self) -> None:
        names = ("start", "tasks", "rows", "queries", "explicit_steps")
        file, asked = self.folder / "plan.json", {name: vars(self)[name] for name in names}
        if file.exists():
            check_condition(file, json.loads(file.read_text("utf-8")), asked, "Give another --output.")
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(file, asked)

    def table(self, split: str) -> Path:
        """Table of a split; the world is written if it is missing."""
        world = self.folder / "world"
        if not (world / "student/config.json").exists():
            sizes = ["--rows", str(self.rows), "--queries", str(self.queries)]
            write_world(["--output", str(world), *sizes, "--hops", *HOPS, "--tasks", *self.tasks])
        return world / split / "tasks.json"

    def explicit(self) -> Path:
        """Checkpoint after the explicit stage."""
        options = {"stage_weights": [1, 0], "stage_lr_scales": [1, 1], "learning_rate": 1e-3}
        return self._train(self.start, "explicit", _EXPLICIT_SEED, {**options, "max_steps": self.explicit_steps})

    def run(self, variant: str, seed: int, rate: float) -> Path:
        """The checkpoint of a variant, seed and rate; what is missing of it is trained."""
        last = self.explicit()
        for place, steps in enumerate(self.steps):
            options = phase_options(variant, place, rate, steps)
            last = self._train(
                str(last), f"{self._name(variant)}-{seed}-x{rate:g}/phase-{place + 1}", seed + place, options
            )
        return last

    def choose_rate(self, variant: str, seed: int) -> float:
        """The rate whose checkpoint of this seed is best on the dev split; scores are kept in ``*-rates.json``."""
        if len(self.rates) == 1:
            return self.rates[0]
        file = self.folder / f"{self._name(variant)}-rates.json"
        scores = json.loads(file.read_text("utf-8")) if file.exists() else {}
        for rate in tqdm([rate for rate in self.rates if f"{rate:g}" not in scores], desc=variant, unit="rate"):
            rows = anytime.measure_checkpoint(
                self.run(variant, seed, rate), self.table("dev"), _DEV_QUERIES, only_last=True
            )
            scores[f"{rate:g}"] = mean(row["hit_at_1"] for row in rows)
            write_json(file, scores)
        return max(self.rates, key=lambda rate: scores[f"{rate:g}"])

    def _name(self, variant: str) -> str:
        return f"{variant}-{'-'.join(map(str, self.steps))}"

    def _train(self, start: str, name: str, seed: int, options: dict[str, Any]) -> Path:
        """One run of the training script, continued where it was stopped, unless its checkpoint is there."""
        from plume.training.train import main  # slow, and not needed where nothing is trained

        self.table("dev")
        output, pairs = self.folder / name, self.folder / "world/train"
        common = {
            "config": _RECIPE,
            "train_files": pairs / "pairs.jsonl",
            "media_root": pairs / "media",
            "model_name_or_path": start,
            "output_dir": output,
            "seed": seed,
            "save_strategy": "steps",
            "save_steps": 50,
            "save_total_limit": 1,
            "resume_from_checkpoint": "true",
            "verdict_pairs": 0,
        }
        if not (output / "model.safetensors").exists():
            main([word for name, value in {**common, **options}.items() for word in (f"--{name}", *_words(value))])
        return output


def _words(value: Any) -> list[str]:
    return [str(one) for one in value] if isinstance(value, list) else [str(value)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, run what is missing, add its rows to the results."""
    parser = ArgumentParser(prog="python -m plume.playground.anytime_sweep", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("outputs/anytime"), help="folder of worlds and checkpoints")
    parser.add_argument("--results", type=Path, help="JSON file of the rows; OUTPUT/anytime.json if omitted")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[42, 142, 242], help="the first one tries the rates")
    parser.add_argument("--exit-threshold", type=float, default=0.05, help="probability below which the head stops")
    parser.add_argument("--max-queries", type=int, default=100, help="queries per test task that are read")
    plan: dict[str, Any] = {field.name: field.default for field in fields(AnytimeSweep) if field.name != "folder"}
    for name, value in plan.items():
        several = isinstance(value, tuple)
        kind = type(value[0] if several else value)
        count = len(PHASES) if name == "steps" else "+" if several else None
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, nargs=count, default=value)
    args = parser.parse_args(arguments)
    given: dict[str, Any] = {name: tuple(v) if isinstance(v := vars(args)[name], list) else v for name in plan}
    sweep, results = AnytimeSweep(args.output, **given), args.results or args.output / "anytime.json"
    for variant in args.variants:
        for seed in args.seeds:
            named = {"variant": variant, "seed": seed, "latent_steps": sum(sweep.steps)}
            if any(named.items() <= row.items() for row in anytime.read_rows(results)):
                continue
            rate = sweep.choose_rate(variant, args.seeds[0])
            model = sweep.run(variant, seed, rate)
            early: dict[str, Any] = {}
            if "readout_steps" in VARIANTS[variant]:
                early = {"exit_threshold": args.exit_threshold, "fit_exit_on": sweep.table("dev")}
            found = anytime.measure_checkpoint(model, sweep.table("test"), args.max_queries, **early)
            anytime.add_rows(results, found, {**named, "rate": rate})


if __name__ == "__main__":
    main()

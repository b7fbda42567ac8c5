"""Does the thinking help? Every variant on the same world, with the same steps: Tables 3 to 6 of the paper.

Every task has a model of its own, so that one thing is learned at a time and a run takes some minutes of one core.

1. **Explicit stage**, once per task and seed, until it is mastered: the adapter takes no part in it, so all variants
   go on from the same weights.
2. **Latent stages**, per task, seed and variant: the same number of steps whatever the variant. ``no_curriculum`` goes
   to the last stage at once; ``no_latent`` loses its rationale stage by stage like the others, but gets no latent
   steps. Both have the best of several learning rates, chosen on the dev split with the first seed. These two and
   ``full`` are run on every task, the other variants on ``--ablated`` ones.
3. **Test**: by the evaluation that scores everything else, per task and number of look-ups.

Settings are those of ``training/recipes/playground.yaml``. A run that is in the results or has its file is not run
again, so a sweep can be stopped and resumed, and several processes can share a folder when each is given other tasks,
variants or seeds: ``python -m plume.playground.ablate --help``.
"""

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl

from plume import PlumeForEmbedding
from plume.evaluation.embedders import ModelEmbedder
from plume.evaluation.runner import evaluate
from plume.evaluation.store import write_json
from plume.evaluation.table import read_table
from plume.playground.corpora import TABLE, conditions, write_evaluation, write_training
from plume.playground.report import MAIN, ROWS, write_report
from plume.playground.student import build_processor, build_student
from plume.playground.tasks import TASKS
from plume.playground.variants import VARIANTS, Variant
from plume.training.collator import PairCollator
from plume.training.config import PlumeTrainingConfig
from plume.training.data import load_rows
from plume.training.trainer import PlumeTrainer

PLAN, HISTORY = "plan.json", "history.json"


@dataclass(frozen=True)
class Plan:
    """The common condition of a sweep.

    Attributes:
        rows: Training pairs per task.
        queries: Queries per evaluation task.
        explicit_steps: Most optimizer steps of the explicit stage.
        mastered: Cross entropy of the rationales at which the explicit stage ends.
        latent_steps: Optimizer steps of the latent stages together.
        batch_size: Pairs per step.
        rates: Learning rates of the variants that choose theirs, relative to the others'.
    """

    rows: int = 12000
    queries: int = 200
    explicit_steps: int = 1200
    mastered: float = 0.005
    latent_steps: int = 550
    batch_size: int = 64
    rates: tuple[float, ...] = (1.0, 3.0)


class UntilMastered(TrainerCallback):
    """Ends a run when the cross entropy since the last log is low enough."""

    def __init__(self, cross_entropy: float) -> None:
        self.cross_entropy = cross_entropy

    def on_log(
        self, args: Any, state: Any, control: TrainerControl, logs: dict[str, float] | None = None, **_: Any
    ) -> None:
        """Stop where it is."""
        if (logs or {}).get("loss_ce", math.inf) <= self.cross_entropy:
            control.should_training_stop = True


class Remembering(PairCollator):
    """Encodes a batch once: runs of one task and seed differ in their variant alone and see the same batches."""

    batches: dict[tuple[str, ...], dict[str, Any]] = {}
    run: tuple[str, int] | None = None

    @classmethod
    def switch(cls, run: tuple[str, int]) -> None:
        """Forget the batches of another task or seed."""
        if cls.run != run:
            cls.run = run
            cls.batches.clear()

    def __call__(self, rows: Sequence[dict[str, str]]) -> dict[str, Any]:
        """As :meth:`PairCollator.__call__`."""
        key = tuple(row["place"] for row in rows)
        if key not in self.batches:
            self.batches[key] = super().__call__(rows)
        return self.batches[key]


class Sweep:
    """All runs of a plan in one folder."""

    def __init__(self, plan: Plan, folder: Path, recipe: Path) -> None:
        self.plan, self.folder, self.processor = plan, folder, build_processor()
        self.settings = _settings(recipe)
        folder.mkdir(parents=True, exist_ok=True)
        file, described = folder / PLAN, json.loads(json.dumps({**asdict(plan), "settings": self.settings}))
        if file.exists() and json.loads(file.read_text("utf-8")) != described:
            raise ValueError(f"{file} was written for another plan: its runs would mix. Give another --output.")
        file.write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")

    def world(self, task: str) -> Path:
        """Training pairs and evaluation tasks of one task; written where they are missing."""
        folder = self.folder / task
        for split in ("dev", "test"):
            if not (folder / split / TABLE).exists():
                wanted = conditions(split, [task], extrapolate=split == "test")
                write_evaluation(folder / split, wanted, self.plan.queries, 0, progress=False)
        if not (folder / "train/pairs.jsonl").exists():
            write_training(folder / "train", self.plan.rows, 0, [task], progress=False)
        return folder

    def explicit(self, task: str, seed: int) -> Path:
        """Checkpoint behind the explicit stage of a task and seed; trained where it is missing."""
        folder = self.folder / task / f"explicit-{seed}"
        if not (folder / HISTORY).exists():
            model = build_student(self.processor, seed)
            history = self._train(model, task, seed, stage_weights=[1.0, 0.0], max_steps=self.plan.explicit_steps)
            self._keep(model, folder, history)
        return folder

    def run(self, name: str, task: str, seed: int) -> None:
        """Train and test a variant on a task with a seed, unless its result file is there; the checkpoint is kept."""
        file = self.folder / task / f"{name}-{seed}.json"
        if file.exists():
            return
        self.world(task)
        tried = [(rate, self._continue(VARIANTS[name], task, seed, rate)) for rate in self._rates(name, task)]
        if len(tried) > 1:
            tried.sort(key=lambda pair: -sum(result["score"] for result in self._score(pair[1][0], task, "dev")))
        rate, (model, history) = tried[0]
        explicit = json.loads((self.explicit(task, seed) / HISTORY).read_text("utf-8"))
        rows = [
            {
                "variant": name,
                "seed": seed,
                "task": task,
                "split": "test" if result["hops"] == TASKS[task].hops else "extrapolation",
                "hops": result["hops"],
                "n": result["n"],
                "hit_at_1": result["score"],
                "learning_rate": rate * self.settings["learning_rate"],
                "explicit_steps": explicit[-1]["step"],
                "latent_steps": self.plan.latent_steps,
            }
            for result in self._score(model, task, "test")
        ]
        self._keep(model, file.with_suffix(""), history)
        write_json(file, rows)

    def _keep(self, model: PlumeForEmbedding, folder: Path, history: list[dict[str, float]]) -> None:
        self.processor.save_pretrained(folder)
        model.save_pretrained(folder)
        write_json(folder / HISTORY, history)

    def _rates(self, name: str, task: str) -> tuple[float, ...]:
        """Learning rates to try, relative to the others': one where another seed has chosen already."""
        if name not in MAIN[1:]:
            return (1.0,)
        chosen = sorted((self.folder / task).glob(f"{name}-*.json"))
        if not chosen:
            return self.plan.rates
        return (json.loads(chosen[0].read_text("utf-8"))[0]["learning_rate"] / self.settings["learning_rate"],)

    def _continue(
        self, variant: Variant, task: str, seed: int, rate: float
    ) -> tuple[PlumeForEmbedding, list[dict[str, float]]]:
        """The model behind the latent stages, and the logs of its training."""
        start = PlumeForEmbedding.from_pretrained(self.explicit(task, seed)).state_dict()
        model = build_student(self.processor, seed, num_latent_steps=variant.steps, **variant.fields)
        model.load_state_dict({k: v for k, v in start.items() if "latent_transition" not in k}, strict=False)
        history: list[dict[str, float]] = []
        for phase in variant.phases(self.plan.latent_steps):
            peak = rate * phase.pop("learning_rate") * self.settings["learning_rate"]
            behind = history[-1]["step"] if history else 0
            logs = self._train(model, task, seed, **phase, num_latent_steps=variant.steps, learning_rate=peak)
            history += [{**log, "step": log["step"] + behind} for log in logs]
        return model, history

    def _train(self, model: PlumeForEmbedding, task: str, seed: int, **options: Any) -> list[dict[str, float]]:
        """Run a trainer; returns its logs."""
        folder = self.world(task)
        fixed = {
            "output_dir": str(folder / "trainer"),
            "media_root": str(folder / "train/media"),
            "per_device_train_batch_size": self.plan.batch_size,
            "seed": seed,
            "save_strategy": "no",
            "logging_steps": 25,
            "disable_tqdm": True,
        }
        args = PlumeTrainingConfig(**{**self.settings, **fixed, **options})
        rows = load_rows([str(folder / "train/pairs.jsonl")])
        trainer = PlumeTrainer(model=model, args=args, train_dataset=rows, processing_class=self.processor)
        Remembering.switch((task, seed))
        if len(args.stage_weights) > 2:
            trainer.data_collator = Remembering.from_config(self.processor, args)
        else:  # the explicit stage, trained once: nothing to remember
            trainer.add_callback(UntilMastered(self.plan.mastered))
        trainer.train()
        return trainer.state.log_history

    def _score(self, model: PlumeForEmbedding, task: str, split: str) -> list[dict[str, Any]]:
        table = read_table(self.folder / task / split / TABLE)
        embedder = ModelEmbedder(model, self.processor)
        return evaluate(embedder, table.rows, self.folder / task / split, batch_size=64, progress=False)


def _settings(recipe: Path) -> dict[str, Any]:
    """Settings of a recipe, less what a plan decides."""
    decided = ("max_steps", "stage_weights", "stage_lr_scales", "output_dir", "per_device_train_batch_size")
    return {k: v for k, v in yaml.safe_load(recipe.read_text("utf-8")).items() if k not in decided}


def collect(folder: Path, results: Path) -> list[dict[str, Any]]:
    """Result rows of all finished runs: those reported in ``results`` before, and those of a sweep's folder.

    Raises:
        ValueError: If both were not run with equally many latent steps and queries.
    """
    file, plan = results / "results" / ROWS, json.loads((folder / PLAN).read_text("utf-8"))
    rows = json.loads(file.read_text("utf-8")) if file.exists() else []
    for found in folder.glob("*/*-*.json"):
        rows += json.loads(found.read_text("utf-8"))
    if {(row["latent_steps"], row["n"]) for row in rows} - {(plan["latent_steps"], plan["queries"])}:
        raise ValueError(
            f"{file} holds runs of another number of latent steps or queries: one table cannot hold both. Give another "
            "--results."
        )
    newest = {(row["variant"], row["task"], row["seed"], row["hops"]): row for row in rows}
    order = [list(VARIANTS), list(TASKS)]
    return sorted(newest.values(), key=lambda r: (order[0].index(r["variant"]), order[1].index(r["task"]), r["seed"]))


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line, run what is missing, write results and report."""
    parser = argparse.ArgumentParser(prog="python -m plume.playground.ablate", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("outputs/ablate"), help="folder of the sweep")
    parser.add_argument("--results", type=Path, default=Path("docs"), help="folder of results.md and results/")
    parser.add_argument("--recipe", type=Path, default=Path("training/recipes/playground.yaml"), help="settings")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--ablated", nargs="*", default=["image-chain"], help="tasks that get all variants")
    for name, value in asdict(Plan()).items():
        several = isinstance(value, tuple)
        parser.add_argument(
            f"--{name}", type=float if several else type(value), nargs="+" if several else None, default=value
        )
    parser.add_argument("--report_only", action="store_true", help="run nothing, report the finished runs")
    args = parser.parse_args(argv)
    plan = Plan(**{name: getattr(args, name) for name in asdict(Plan())})
    sweep = Sweep(plan, args.output, args.recipe)
    done = {(row["variant"], row["task"], row["seed"]) for row in collect(args.output, args.results)}
    runs = [
        (name, task, seed)
        for seed in args.seeds
        for task in args.tasks
        for name in args.variants
        if (name in MAIN or task in args.ablated) and (name, task, seed) not in done
    ]
    for name, task, seed in tqdm([] if args.report_only else runs, unit="run"):
        sweep.run(name, task, seed)
    write_report(collect(args.output, args.results), args.results)


if __name__ == "__main__":
    main()

"""Does the thinking help? Every variant on the same world, with the same steps: Tables 3 to 6 of the paper.

1. **Explicit stage**, once per seed: the adapter takes no part in it, so all variants go on from the same weights.
2. **Latent stages**, per variant and seed: the same number of steps whatever the variant. ``no_curriculum`` goes to the
   last stage at once; ``no_latent`` loses its rationale stage by stage like the others, but gets no latent steps, and
   has the best of several learning rates, chosen on the dev split.
3. **Test**: by the evaluation that scores everything else, per task and number of look-ups.

A run that has its file is not run again, so a sweep can be stopped and resumed:
``python -m plume.playground.ablate --help``.
"""

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from plume import PlumeForEmbedding
from plume.evaluation.embedders import ModelEmbedder
from plume.evaluation.runner import evaluate
from plume.evaluation.table import read_table
from plume.playground.corpora import TABLE, conditions, write_evaluation, write_training
from plume.playground.report import write_report
from plume.playground.student import build_processor, build_student
from plume.playground.tasks import TASKS
from plume.training.config import PlumeTrainingConfig
from plume.training.data import load_rows
from plume.training.trainer import PlumeTrainer

_RATES = (0.5, 1.0, 2.0)  # of the single pass, relative to the others' learning rate


@dataclass(frozen=True)
class Variant:
    """One variant: ``num_stages`` latent stages to K ``steps``, ``fields`` of the configuration, whether it jumps."""

    steps: int = 8
    num_stages: int = 4
    jumps: bool = False
    fields: dict[str, Any] = field(default_factory=dict)

    def weights(self) -> list[float]:
        """Shares of the stages behind the explicit one: equal, the last one twice; or all in the last."""
        if self.jumps:
            return [0.0] * self.num_stages + [1.0]
        return [0.0] + [1.0] * (self.num_stages - 1) + [2.0]


VARIANTS = {
    "full": Variant(),
    "no_latent": Variant(steps=0),
    "no_curriculum": Variant(jumps=True),
    "single_mlp": Variant(fields={"num_experts": 1, "num_active_experts": 1, "use_shared_expert": False}),
    "no_anchor": Variant(fields={"router_uses_anchor": False}),
    "no_step": Variant(fields={"router_uses_step": False}),
    "top1": Variant(fields={"num_active_experts": 1}),
    "no_shared": Variant(fields={"use_shared_expert": False}),
    "k4": Variant(steps=4),
    "k6": Variant(steps=6),
    "stages2": Variant(num_stages=2),
    "stages6": Variant(num_stages=6),
    "stages8": Variant(num_stages=8),
}


@dataclass(frozen=True)
class Plan:
    """The common condition of a sweep.

    Attributes:
        tasks: Names of the tasks.
        rows: Training pairs.
        queries: Queries per evaluation task.
        explicit_steps: Optimizer steps of the explicit stage.
        latent_steps: Optimizer steps of the latent stages together.
        batch_size: Pairs per step.
        learning_rate: Of the explicit stage; the latent stages take half of it.
    """

    tasks: tuple[str, ...]
    rows: int = 24000
    queries: int = 100
    explicit_steps: int = 600
    latent_steps: int = 600
    batch_size: int = 64
    learning_rate: float = 2e-3


class Sweep:
    """All runs of a plan in one folder."""

    def __init__(self, plan: Plan, folder: Path) -> None:
        self.plan, self.folder, self.processor = plan, folder, build_processor()
        (folder / "runs").mkdir(parents=True, exist_ok=True)
        self._check_plan()
        if not (folder / "train/pairs.jsonl").exists():
            write_training(folder / "train", plan.rows, 0, plan.tasks)
        for split in ("dev", "test"):
            if not (folder / split / TABLE).exists():
                wanted = conditions(split, plan.tasks, extrapolate=split == "test")
                write_evaluation(folder / split, wanted, plan.queries, 0)
        self.rows = load_rows([str(folder / "train/pairs.jsonl")])

    def _check_plan(self) -> None:
        file, described = self.folder / "plan.json", json.loads(json.dumps(vars(self.plan)))
        if file.exists() and json.loads(file.read_text("utf-8")) != described:
            raise ValueError(f"{file} was written for another plan: its runs would mix. Give another --output.")
        file.write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")

    def explicit(self, seed: int) -> Path:
        """Checkpoint behind the explicit stage of a seed; trained where it is missing."""
        folder = self.folder / f"explicit-{seed}"
        if not (folder / "model.safetensors").exists():
            model = build_student(self.processor, seed)
            self._train(model, seed, [1.0, 0.0], self.plan.explicit_steps, self.plan.learning_rate, 1)
            model.save_pretrained(folder)
            self.processor.save_pretrained(folder)
        return folder

    def run(self, name: str, seed: int) -> list[dict[str, Any]]:
        """Result rows of a variant and a seed; trained where they are missing."""
        file, variant = self.folder / "runs" / f"{name}-{seed}.json", VARIANTS[name]
        if file.exists():
            return json.loads(file.read_text("utf-8"))
        rates = _RATES if name == "no_latent" else (1.0,)
        tried = [(rate, self._continue(variant, seed, rate)) for rate in rates]
        if len(tried) > 1:
            tried.sort(key=lambda pair: -self._mean_on_dev(pair[1]))
        rate, model = tried[0]
        rows = [
            {
                "variant": name,
                "seed": seed,
                "task": result["playground_task"],
                "split": "test" if result["hops"] == TASKS[result["playground_task"]].hops else "extrapolation",
                "hops": result["hops"],
                "n": result["n"],
                "hit_at_1": result["score"],
                "learning_rate": rate * self.plan.learning_rate / 2,
            }
            for result in self._score(model, "test")
        ]
        temporary = file.with_suffix(".tmp")
        temporary.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, file)
        return rows

    def _continue(self, variant: Variant, seed: int, rate: float) -> PlumeForEmbedding:
        start = PlumeForEmbedding.from_pretrained(self.explicit(seed)).state_dict()
        model = build_student(self.processor, seed, num_latent_steps=variant.steps, **variant.fields)
        model.load_state_dict({k: v for k, v in start.items() if "latent_transition" not in k}, strict=False)
        self._train(
            model, seed, variant.weights(), self.plan.latent_steps, rate * self.plan.learning_rate / 2, variant.steps
        )
        return model

    def _train(
        self, model: PlumeForEmbedding, seed: int, weights: list[float], steps: int, rate: float, latent: int
    ) -> None:
        args = PlumeTrainingConfig(
            output_dir=str(self.folder / "trainer"),
            media_root=str(self.folder / "train/media"),
            per_device_train_batch_size=self.plan.batch_size,
            sub_batch_size=16,
            max_steps=steps,
            stage_weights=weights,
            num_latent_steps=latent,
            learning_rate=rate,
            seed=seed,
            **TRAINING,
        )
        PlumeTrainer(model=model, args=args, train_dataset=self.rows, processing_class=self.processor).train()

    def _score(self, model: PlumeForEmbedding, split: str) -> list[dict[str, Any]]:
        embedder = ModelEmbedder(model, self.processor)
        table = read_table(self.folder / split / TABLE)
        return evaluate(embedder, table.rows, self.folder / split, batch_size=64, progress=False)

    def _mean_on_dev(self, model: PlumeForEmbedding) -> float:
        scores = [result["score"] for result in self._score(model, "dev")]
        return sum(scores) / len(scores)


# What all runs share; `training/recipes/playground.yaml` says the same for the command line.
TRAINING: dict[str, Any] = {
    "use_cpu": True,
    "bf16": False,
    "lr_scheduler_type": "constant_with_warmup",
    "warmup_steps": 20,
    "adam_beta2": 0.98,
    "weight_decay": 0.0,
    "temperature": 0.05,
    "ce_weight": 4.0,
    "embedding_weight": 0.3,
    "anchor_weight": 0.01,
    "save_strategy": "no",
    "report_to": "none",
    "logging_steps": 50,
    "disable_tqdm": True,
}


def collect(folder: Path) -> list[dict[str, Any]]:
    """Result rows of all finished runs of a sweep."""
    files = sorted((folder / "runs").glob("*.json"))
    return [row for file in files for row in json.loads(file.read_text("utf-8"))]


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line, run what is missing, write results and report."""
    parser = argparse.ArgumentParser(prog="python -m plume.playground.ablate", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("outputs/ablate"), help="folder of the sweep")
    parser.add_argument("--results", type=Path, default=Path("docs/results"), help="folder of the results")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--explicit_steps", type=int, default=Plan.explicit_steps)
    parser.add_argument("--latent_steps", type=int, default=Plan.latent_steps)
    parser.add_argument("--queries", type=int, default=Plan.queries, help="queries per evaluation task")
    parser.add_argument("--rows", type=int, default=Plan.rows, help="training pairs")
    parser.add_argument("--report_only", action="store_true", help="run nothing, report the finished runs")
    args = parser.parse_args(argv)
    if not args.report_only:
        plan = Plan(
            tuple(args.tasks),
            rows=args.rows,
            queries=args.queries,
            explicit_steps=args.explicit_steps,
            latent_steps=args.latent_steps,
        )
        sweep = Sweep(plan, args.output)
        for seed, name in tqdm([(seed, name) for seed in args.seeds for name in args.variants], unit="run"):
            sweep.run(name, seed)
    write_report(collect(args.output), json.loads((args.output / "plan.json").read_text("utf-8")), args.results)


if __name__ == "__main__":
    main()

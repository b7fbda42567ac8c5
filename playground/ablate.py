"""Does the thinking help? Every variant on the same world, with the same steps: Tables 3 to 6 of the paper.

One model learns all tasks of the sweep.

1. **Explicit stage**, once per seed, until every task is mastered: the adapter takes no part in it, so all variants of
   a seed continue from the same weights.
2. **Latent stages**, per seed and variant: the same number of steps and pairs whatever the variant, and the same
   batches but for ``no_curriculum``, which goes to the last stage at once. ``no_latent`` loses its rationale stage by
   stage like the others, but gets no latent steps. These two have the best of several learning rates, chosen on the
   dev split with the first seed; the others have that of ``full``.
3. **Test**: by the evaluation that scores everything else, per task and number of look-ups.

Settings are those of ``training/recipes/playground.yaml``. A run that is in the results or has its file is not run
again, so a sweep can be stopped and resumed, and several processes can share a folder when each is given other variants
or seeds and the explicit stages are there: ``python -m plume.playground.ablate --help``. Results of another plan or
that began from other weights of the explicit stage are refused.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from tqdm import tqdm
from transformers import AutoModel

from plume import PlumeModel
from plume.arguments import ArgumentParser
from plume.evaluation.embedders import ModelEmbedder
from plume.evaluation.runner import evaluate
from plume.evaluation.store import check_condition, write_json
from plume.evaluation.table import read_table
from plume.playground.corpora import TABLE, conditions, write_evaluation, write_training
from plume.playground.report import MAIN, PLAN, collect, write_report
from plume.playground.student import build_processor, build_student
from plume.playground.tasks import TASKS
from plume.playground.variants import VARIANTS, Variant
from plume.training.collator import PairCollator, rewrite
from plume.training.config import PlumeTrainingConfig
from plume.training.curriculum import Curriculum
from plume.training.data import load_rows
from plume.training.losses import suffix_ce
from plume.training.trainer import PlumeTrainer

HISTORY = "history.json"
_EXPLICIT_RUNS, _SAMPLED = 7, 32
_ORDER = 42  # seed 0 sees its pairs in the order of plume-tiny, whose explicit stage it shares


@dataclass(frozen=True)
class Plan:
    """The common condition of a sweep.

    Attributes:
        tasks: What the one model learns.
        rows: Training pairs, all tasks together.
        queries: Queries per evaluation task.
        explicit_steps: Optimizer steps of the explicit stage. Where they do not suffice, runs of a third of them
            follow, at most six.
        explicit_rate: Learning rate of the explicit stage, relative to the recipe's.
        mastered: Cross entropy of the queries' rationales, on the hardest task, that suffices.
        latent_steps: Optimizer steps of the latent stages together.
        batch_size: Pairs per step.
        rates: Learning rates of the variants that choose theirs, relative to the others'.
    """

    tasks: tuple[str, ...] = ("image-chain", "document-chain", "text-chain", "video-track", "image-look", "image-name")
    rows: int = 24000
    queries: int = 200
    explicit_steps: int = 1200
    explicit_rate: float = 1.0
    mastered: float = 0.02
    latent_steps: int = 900
    batch_size: int = 64
    rates: tuple[float, ...] = (1.0, 3.0)


class Remembering(PairCollator):
    """Encodes a batch once: runs of one seed differ in their variant alone and see the same batches."""

    batches: dict[tuple[str, ...], dict[str, Any]] = {}
    seed: int | None = None

    @classmethod
    def switch(cls, seed: int) -> None:
        """Forget the batches of another seed."""
        if cls.seed != seed:
            cls.seed = seed
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
        file, described = folder / PLAN, {**asdict(plan), "settings": self.settings}
        if file.exists():
            kept = json.loads(file.read_text("utf-8"))
            written = json.loads(json.dumps(asdict(Plan())))  # an older file lacks newer fields
            check_condition(file, {**written, **kept}, described, "It is another plan: give another --output.")
        write_json(file, described)

    def write_world(self) -> None:
        """Write training pairs and evaluation tasks where they are missing."""
        for split in ("dev", "test"):
            if not (self.folder / split / TABLE).exists():
                wanted = conditions(split, self.plan.tasks, extrapolate=split == "test")
                write_evaluation(self.folder / split, wanted, self.plan.queries, 0)
        if not self.pairs.exists() or self._count_pairs() != self.plan.rows:
            write_training(self.folder / "train", self.plan.rows, 0, self.plan.tasks)

    def _count_pairs(self) -> int:
        with self.pairs.open("rb") as opened:
            return sum(1 for _ in opened)

    @property
    def pairs(self) -> Path:
        """Training pairs."""
        return self.folder / "train/pairs.jsonl"

    def explicit(self, seed: int) -> Path:
        """Checkpoint after the explicit stage of a seed; trained as far as it is missing.

        Raises:
            ValueError: If a task is not mastered after all runs.
        """
        folder = _restored(self.folder / f"explicit-{seed}")
        history = json.loads((folder / HISTORY).read_text("utf-8")) if (folder / HISTORY).exists() else []
        while len(done := [log for log in history if "hardest_ce" in log]) < _EXPLICIT_RUNS:
            if done and done[-1]["hardest_ce"] <= self.plan.mastered:
                break
            behind = done[-1]["step"] if done else 0
            model = AutoModel.from_pretrained(folder) if done else build_student(self.processor, seed)
            steps = self.plan.explicit_steps // 3 if done else self.plan.explicit_steps
            order = _ORDER + seed + 1000 * len(done)  # not the pairs of the run before once more
            peak = self.plan.explicit_rate * self.settings["learning_rate"]
            logs = self._train(
                model,
                seed,
                stage_weights=[1.0, 0.0],
                max_steps=steps,
                learning_rate=peak,
                data_seed=order,
                dataloader_num_workers=1,  # encodes the next batch meanwhile
            )
            history += [{**log, "step": log["step"] + behind} for log in logs]
            history.append({"step": behind + steps, "hardest_ce": self.hardest_ce(model)})
            self._keep(model, folder, history)
        if history[-1]["hardest_ce"] > self.plan.mastered:
            raise ValueError(
                f"After {history[-1]['step']} explicit steps a task of seed {seed} is at a cross entropy of "
                f"{history[-1]['hardest_ce']:.3f}, not {self.plan.mastered}: what follows would fail on it. Give more "
                "explicit steps, or another seed."
            )
        return folder

    @torch.no_grad()
    def hardest_ce(self, model: PlumeModel) -> float:
        """Cross entropy of written rationales and answers of some training queries, on the hardest task."""
        rows = load_rows([str(self.pairs)])
        collate = PairCollator(self.processor, str(self.folder / "train/media"))
        entropies = []
        for task in self.plan.tasks:
            pairs = [row for row in rows if row["dataset"] == task][:_SAMPLED]
            batch = collate(pairs)
            written = rewrite(batch, Curriculum(0).stages[0], list(model.config.suffix_token_ids))
            output = model.eval()(**written.inputs)
            per_row = suffix_ce(output.suffix_log_probs, written.inputs["suffix_mask"])
            entropies.append(per_row[: len(pairs)].mean().item())
        return max(entropies)

    def run(self, name: str, seed: int) -> list[dict[str, Any]]:
        """Train and test a variant with a seed, unless its result file is there; the checkpoint is kept.

        Returns:
            Its result rows, one per task and number of look-ups. ``learning_rate`` is the one that the phases of
            :mod:`~plume.playground.variants` multiply.
        """
        file = self.folder / f"{name}-{seed}.json"
        if file.exists():
            return list(json.loads(file.read_text("utf-8")))
        tried = [(rate, *self._continue(VARIANTS[name], seed, rate)) for rate in self._rates(name)]
        if len(tried) > 1:
            tried.sort(key=lambda run: -sum(result["score"] for result in self._score(run[1], "dev")))
        rate, model, history = tried[0]
        explicit = json.loads((self.explicit(seed) / HISTORY).read_text("utf-8"))
        rows = [
            {
                "variant": name,
                "seed": seed,
                "task": result["playground_task"],
                "split": "test" if result["hops"] == TASKS[result["playground_task"]].hops else "extrapolation",
                "hops": result["hops"],
                "n": result["n"],
                "hit_at_1": result["score"],
                "learning_rate": rate * self.settings["learning_rate"],
                "explicit_steps": explicit[-1]["step"],
                "latent_steps": self.plan.latent_steps,
            }
            for result in self._score(model, "test")
        ]
        self._keep(model, file.with_suffix(""), history)
        write_json(file, rows)
        return rows

    def _keep(self, model: PlumeModel, folder: Path, history: list[dict[str, float]]) -> None:
        """Save checkpoint and logs; a kill leaves the earlier ones, or the complete new ones next to them."""
        partial, before = folder.with_suffix(".partial"), folder.with_suffix(".before")
        for leftover in (partial, before):
            shutil.rmtree(leftover, ignore_errors=True)
        self.processor.save_pretrained(partial)
        model.save_pretrained(partial)
        write_json(partial / HISTORY, history)  # last: what has it is whole
        if folder.exists():
            folder.rename(before)
        partial.rename(folder)
        shutil.rmtree(before, ignore_errors=True)

    def _rates(self, name: str) -> tuple[float, ...]:
        """Learning rates to try, relative to the others': one where another seed has chosen already."""
        if name not in MAIN[1:]:
            return (1.0,)
        chosen = sorted(self.folder.glob(f"{name}-*.json"))
        if not chosen:
            return self.plan.rates
        return (json.loads(chosen[0].read_text("utf-8"))[0]["learning_rate"] / self.settings["learning_rate"],)

    def _continue(self, variant: Variant, seed: int, rate: float) -> tuple[PlumeModel, list[dict[str, float]]]:
        """The model after the latent stages, and the logs of its training."""
        start = AutoModel.from_pretrained(self.explicit(seed)).state_dict()
        model = build_student(self.processor, seed, num_latent_steps=variant.steps, **variant.fields)
        model.load_state_dict({k: v for k, v in start.items() if "latent_transition" not in k}, strict=False)
        history: list[dict[str, float]] = []
        for phase in variant.phases(self.plan.latent_steps):
            peak = rate * phase.pop("learning_rate") * self.settings["learning_rate"]
            behind = max((log["step"] for log in history), default=0)
            logs = self._train(model, seed, **phase, num_latent_steps=variant.steps, learning_rate=peak)
            history += [{**log, "step": log["step"] + behind} for log in logs]
        return model, history

    def _train(self, model: PlumeModel, seed: int, **options: Any) -> list[dict[str, float]]:
        """Run a trainer; returns its logs."""
        self.write_world()
        fixed = {
            "output_dir": str(self.folder / "trainer"),
            "media_root": str(self.folder / "train/media"),
            "per_device_train_batch_size": self.plan.batch_size,
            "seed": _ORDER + seed,
            "save_strategy": "no",
            "logging_steps": 25,
            "disable_tqdm": True,
        }
        args = PlumeTrainingConfig(**{**self.settings, **fixed, **options})
        rows = load_rows([str(self.pairs)])
        trainer = PlumeTrainer(model=model, args=args, train_dataset=rows, processing_class=self.processor)
        Remembering.switch(seed)
        if len(args.stage_weights) > 2:  # the explicit stage is trained once: nothing to remember
            trainer.data_collator = Remembering.from_config(self.processor, args)
        trainer.train()
        return trainer.state.log_history

    def _score(self, model: PlumeModel, split: str) -> list[dict[str, Any]]:
        table = read_table(self.folder / split / TABLE)
        embedder = ModelEmbedder(model, self.processor)
        return evaluate(embedder, table.rows, self.folder / split, batch_size=64, progress=False)


def _restored(folder: Path) -> Path:
    """A checkpoint's folder; where a kill came between the renames of its saving, the new one takes its place."""
    partial = folder.with_suffix(".partial")
    if not folder.exists() and (partial / HISTORY).exists():
        partial.rename(folder)
    return folder


def _settings(recipe: Path) -> dict[str, Any]:
    """Settings of a recipe, less what a plan decides."""
    decided = ("max_steps", "stage_weights", "stage_lr_scales", "output_dir", "per_device_train_batch_size")
    return {k: v for k, v in yaml.safe_load(recipe.read_text("utf-8")).items() if k not in decided}


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line, run what is missing, write results and report."""
    parser = ArgumentParser(prog="python -m plume.playground.ablate", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("outputs/ablate"), help="folder of the sweep")
    parser.add_argument("--results", type=Path, help="folder of results.md and results/; OUTPUT/report if omitted")
    parser.add_argument("--recipe", type=Path, default=Path("training/recipes/playground.yaml"), help="settings")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    for name, value in asdict(Plan()).items():
        several = isinstance(value, tuple)
        kind = type(value[0] if several else value)
        choices = list(TASKS) if name == "tasks" else None
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=kind, nargs="+" if several else None, default=value, choices=choices
        )
    parser.add_argument("--report-only", action="store_true", help="run nothing, report the finished runs")
    args = parser.parse_args(argv)
    given = {name: getattr(args, name) for name in asdict(Plan())}
    fields: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in given.items()}
    sweep, results = Sweep(Plan(**fields), args.output, args.recipe), args.results or args.output / "report"
    done = {(row["variant"], row["seed"]) for row in collect(args.output, results)}
    runs = [(name, seed) for seed in args.seeds for name in args.variants if (name, seed) not in done]
    for name, seed in tqdm([] if args.report_only else runs, unit="run"):
        sweep.explicit(seed)
        collect(args.output, results)  # refuses results from another start before hours are spent
        sweep.run(name, seed)
    write_report(collect(args.output, results), args.output / PLAN, results)


if __name__ == "__main__":
    main()

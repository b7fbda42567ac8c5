"""The verdict on a run: what it reached, whether that can be trusted, and what to change, in plain sentences.

1. **Measure** (:func:`measure`) retrieval before and after, with and without latent steps, per dataset.
2. **Judge** (:func:`find_alarms`): each alarm names the cause and the flag that mends it.
3. **Write** (:func:`write_report`): ``report.md`` and ``curves.png`` in the output folder; the card shows the verdict.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from transformers import EvalPrediction

from plume.training.config import PlumeTrainingConfig
from plume.training.curriculum import Curriculum
from plume.training.diagnostics import retrieval_metrics
from plume.training.trainer import PlumeTrainer

Logs = Sequence[Mapping[str, Any]]
_TERMS = ("loss_ce", "loss_embedding", "loss_anchor", "loss_balance", "loss_ranking")
_HEALTH = ("latent_cosine", "latent_rank", "expert_mass")
_SEEN = (
    "Not measured on new pairs: the table says what the run learned by heart, not how it will do on pairs that it has "
    "not seen. Give such pairs with --eval_files, or train on 200 pairs or more with --holdout 0.1."
)
_COLLAPSED, _FALLING, _DECAYED, _SAME = 0.95, 0.9, 0.4, 0.01


@dataclass(frozen=True)
class Scores:
    """Retrieval among the targets of each dataset.

    Attributes:
        hits: Hit@1 and Hit@5 by dataset.
        hits_without: The same without latent steps; empty where the run has none.
        pairs: Pairs by dataset.
        cosine: Mean cosine between different targets of all datasets.
    """

    hits: dict[str, dict[str, float]]
    hits_without: dict[str, dict[str, float]]
    pairs: dict[str, int]
    cosine: float

    def mean(self, hits: Mapping[str, Mapping[str, float]]) -> float:
        """Hit@1 over all pairs."""
        total = sum(self.pairs.values())
        return sum(hits[name]["hit@1"] * count for name, count in self.pairs.items()) / total


@torch.no_grad()
def measure(trainer: PlumeTrainer, rows: Any) -> Scores:
    """Retrieval on some rows as the model stands.

    Every rank embeds all of them, past the loaders and wrappers of the run, whose state stays as it was.
    """
    names, size, final = (
        np.array(rows["dataset"]),
        trainer.args.per_device_eval_batch_size,
        trainer.curriculum.stages[-1],
    )
    found, targets, identities = [], np.empty(0), np.empty(0)
    trainer.model.eval()
    for steps in (0, final.num_latent_steps) if final.num_latent_steps else (0,):
        stage, parts = replace(final, num_latent_steps=steps), []
        for start in range(0, len(rows), size):
            batch = trainer.data_collator([rows[place] for place in range(start, min(start + size, len(rows)))])
            parts.append(trainer.embed(batch, stage))
        queries, targets, identities = (np.concatenate(column) for column in zip(*parts, strict=True))
        found.append({
            str(name): retrieval_metrics(EvalPrediction((queries[own], targets[own]), identities[own]))  # type: ignore[arg-type]
            for name in np.unique(names) for own in [names == name]
        })  # fmt: skip
    counts = {str(name): int((names == name).sum()) for name in np.unique(names)}
    cosine = _mean_cosine(targets, identities)
    return Scores(found[-1], found[0] if len(found) == 2 else {}, counts, cosine)


def _mean_cosine(vectors: np.ndarray, identities: np.ndarray) -> float:
    _, first = np.unique(identities, return_index=True)
    unit, count = vectors[first].astype(np.float64), len(first)
    return float(((unit @ unit.T).sum() - count) / (count * (count - 1))) if count > 1 else 0.0


def find_alarms(
    logs: Logs, before: Scores | None, after: Scores, args: PlumeTrainingConfig, curriculum: Curriculum
) -> list[str]:
    """One sentence for each thing that went wrong, with its cause and the flag that mends it.

    Args:
        logs: History of the run, of its training steps.
        before: Scores before the run, where they were measured.
        after: Scores at its end.
        args: The run.
        curriculum: Its stages.
    """
    final = [entry for entry in logs if entry.get("stage") == curriculum.stages[-1].index]
    reached, alarms = after.mean(after.hits), _judge_last_stage(logs, final, args, curriculum)
    if before is not None and reached < before.mean(before.hits) - _SAME:
        alarms.append(
            f"Worse than before: Hit@1 fell from {before.mean(before.hits):.2f} to {reached:.2f}. Lower "
            f"--learning_rate ({args.learning_rate:g}), or train fewer steps (--max_steps)."
        )
    if after.cosine > _COLLAPSED:
        alarms.append(
            f"The vectors have collapsed: the mean cosine between different targets is {after.cosine:.2f}. Lower "
            f"--learning_rate ({args.learning_rate:g}), or enlarge the batch."
        )
    without = after.mean(after.hits_without) if after.hits_without else None
    if not alarms and without is not None and reached < 1 and reached - without < _SAME:
        alarms.append(
            f"The latent steps are not used: without them Hit@1 is {without:.2f}, with them {reached:.2f}. Lengthen "
            "the stages before the last one (--stage_weights, needs rationales), or save their cost with "
            "--num_latent_steps 0."
        )
    return alarms


def _judge_last_stage(logs: Logs, final: Logs, args: PlumeTrainingConfig, curriculum: Curriculum) -> list[str]:
    if not final:
        return [
            "The last stage, the one that is used afterwards, was not trained for as long as one log: give it a larger "
            "share (--stage_weights) or the run more steps (--max_steps), or log more often (--logging_steps)."
        ]
    alarms = []
    losses = [float(entry["loss_embedding"]) for entry in final if "loss_embedding" in entry]
    quarter = max(len(losses) // 4, 1)
    last = np.mean(losses[-quarter:]) if losses else 0.0
    earlier = np.mean(losses[-2 * quarter : -quarter]) if len(losses) >= 2 else last
    if last < _FALLING * earlier and last > 0.1:
        alarms.append(
            f"The last stage has not converged: its contrastive loss was still falling, from {earlier:.2f} to "
            f"{last:.2f}. Give it more steps: --max_steps {2 * int(logs[-1].get('step', 0) or args.max_steps)}."
        )
    peak = max(float(entry["learning_rate"]) for entry in final)
    share = peak / max(float(entry["learning_rate"]) for entry in logs)
    if share < _DECAYED and any(curriculum.weights[:-1]):
        alarms.append(
            f"The last stage was trained at no more than {share:.0%} of the peak learning rate, the tail of a decay. "
            "Give it a schedule of its own: --final_schedule true; or train it alone: --stage_weights "
            f"{' '.join(['0'] * (len(curriculum.weights) - 1))} 1."
        )
    return alarms


def describe_verdict(
    alarms: Sequence[str], before: Scores | None, after: Scores, num_pairs: int, trained_on: bool
) -> str:
    """The verdict in Markdown: the sentences, then the table of scores.

    Args:
        alarms: Of :func:`find_alarms`.
        before: Scores before the run, where they were measured.
        after: Scores at its end.
        num_pairs: Pairs that both were measured on.
        trained_on: Whether the run was trained on these pairs.
    """
    found = list(alarms) or ["No alarm."]
    if trained_on:
        found.insert(0, _SEEN)
    lines = ["\n## Verdict\n", *(f"- {alarm}" for alarm in found), ""]
    kind = "pairs that the run was trained on (none were held out)" if trained_on else "held-out pairs"
    lines += [f"Hit@1 / Hit@5 on {num_pairs} {kind}, among the targets of each dataset:", ""]
    lines += ["| dataset | pairs | before | after | after, without latent steps |", "|---|---|---|---|---|"]
    for name, count in after.pairs.items():
        columns = [before.hits if before else {}, after.hits, after.hits_without]
        lines.append(f"| {name} | {count} | {' | '.join(_show(column.get(name)) for column in columns)} |")
    return "\n".join(lines) + "\n"


def _show(hits: Mapping[str, float] | None) -> str:
    return f"{hits['hit@1']:.2f} / {hits['hit@5']:.2f}" if hits else "-"


def write_report(output: Path, verdict: str, plan: Sequence[str], logs: Logs) -> None:
    """Write ``report.md`` and ``curves.png``.

    Args:
        output: Folder.
        verdict: Of :func:`describe_verdict`.
        plan: Settings that followed from the data, with their reasons.
        logs: History of the training steps.
    """
    planned = [f"- {line}" for line in plan] or ["- nothing: every setting was given"]
    last = logs[-1] if logs else {}
    ends = [f"| {name} | {last[name]:.4g} |" for name in (*_TERMS, *_HEALTH) if name in last]
    parts = ["# Report of the run", verdict, "## Settings that followed from the data\n", *planned, ""]
    parts += ["## At the end\n", "| | last log |", "|---|---|", *ends, "", "![Curves](curves.png)", ""]
    output.mkdir(parents=True, exist_ok=True)
    (output / "report.md").write_text("\n".join(parts), encoding="utf-8")
    draw_curves(output / "curves.png", logs)


def draw_curves(path: Path, logs: Logs) -> None:
    """Draw loss terms, stages, learning rate, and the health of latents and routing over the steps."""
    panels = {"loss terms": _TERMS, "stage": ("stage",), "learning rate": ("learning_rate",), "health": _HEALTH}
    figure = Figure(figsize=(10, 7), layout="constrained")
    for axis, (title, names) in zip(figure.subplots(2, 2).flat, panels.items(), strict=True):
        for name in names:
            points = [(entry["step"], entry[name]) for entry in logs if name in entry]
            axis.plot(*zip(*points, strict=True) if points else ((), ()), marker=".", label=name)
        axis.set(title=title, xlabel="step")
        axis.legend(fontsize=8)
    figure.savefig(path, dpi=110)

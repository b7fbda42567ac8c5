"""Does thinking help? Train a model with latent steps and one without, on two cores, in some minutes.

python examples/train_demo.py [--output outputs/train-demo]

1. **Explicit stage**: one model learns to write its look-ups down.
2. **Latent stages**: two copies lose the rationale sentence by sentence; one gets latent steps instead, one nothing.
3. **Test** on layouts that neither has seen, and the curves of both.
"""

import argparse
import json
import os
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from matplotlib import rc_context
from matplotlib.figure import Figure

from plume.evaluation.style import BLUE, STYLE, VERMILION
from plume.playground.ablate import HISTORY, Plan, Sweep

TASK, SEED = "image-chain", 0
RECIPE = Path(__file__).parents[1] / "training/recipes/playground.yaml"
PLAN = Plan(
    tasks=(TASK,), rows=12800, explicit_steps=450, explicit_rate=0.4, latent_steps=400, batch_size=32, rates=(3.0,)
)  # rates: of the model without latent steps, the better of two in docs/results.md
VARIANTS = {"full": ("with latent steps", BLUE), "no_latent": ("without latent steps", VERMILION)}
_LOSSES = {"loss_ce": "cross entropy of the rationale", "loss_embedding": "contrastive loss"}


def _train(variant: str, folder: Path) -> float:
    """Train and test a variant; returns Hit@1."""
    torch.set_num_threads(1)  # a second one gains nothing for a model this small
    rows = Sweep(PLAN, folder, RECIPE).run(variant, SEED)
    return next(float(row["hit_at_1"]) for row in rows if row["split"] == "test")


def _logs(folder: Path, name: str) -> list[dict[str, float]]:
    logs: list[dict[str, float]] = json.loads((folder / f"{name}-{SEED}" / HISTORY).read_text("utf-8"))
    return [log for log in logs if "loss_ce" in log]


def draw_curves(folder: Path, scores: dict[str, float], file: Path) -> None:
    """Draw both losses of both models against the step.

    Args:
        folder: Folder of the finished sweep.
        scores: Hit@1 per variant, in [0, 1].
        file: PNG to write.
    """
    explicit = _logs(folder, "explicit")
    start = explicit[-1]["step"]
    with rc_context(STYLE):
        figure = Figure(figsize=(8, 4.6), layout="constrained")
        for axes, (loss, label) in zip(figure.subplots(2, 1, sharex=True), _LOSSES.items(), strict=True):
            axes.plot([log["step"] for log in explicit], [log[loss] for log in explicit], color="#666666")
            for variant, (name, color) in VARIANTS.items():
                logs = _logs(folder, variant)
                steps = [start + log["step"] for log in logs]
                axes.plot(steps, [log[loss] for log in logs], color=color, label=f"{name}: Hit@1 {scores[variant]:.2f}")
            axes.axvline(start, color="#bbbbbb", linewidth=0.8)
            axes.set_title(label)
            axes.set_yscale("log")
        axes.set_xlabel("step; after the line the rationale disappears, sentence by sentence")
        axes.legend()
        figure.savefig(file)


def main() -> None:
    """Train, print and draw; finished parts of an interrupted run are not repeated."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("outputs/train-demo"), help="folder")
    folder, start = parser.parse_args().output, time.monotonic()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # batches are encoded in processes of their own
    torch.set_num_threads(1)
    print("Explicit stage: a small Qwen2-VL learns to write its look-ups down ...", flush=True)
    Sweep(PLAN, folder, RECIPE).explicit(SEED)
    print(
        f"{time.monotonic() - start:.0f} s. Latent stages, with latent steps and without, side by side ...", flush=True
    )
    with ProcessPoolExecutor(len(VARIANTS), mp_context=get_context("spawn")) as pool:
        scores = dict(zip(VARIANTS, pool.map(_train, VARIANTS, [folder] * len(VARIANTS)), strict=True))
    draw_curves(folder, scores, folder / "curves.png")
    for variant, (name, _) in VARIANTS.items():
        print(f"Hit@1 {name:<22}{scores[variant]:.3f}")
    print(f"{time.monotonic() - start:.0f} s in all. Curves: {folder / 'curves.png'}")


if __name__ == "__main__":
    main()

"""The model card of a training run."""

from plume.hub.folder import MODEL_CARD
from plume.training.config import PlumeTrainingConfig


def run_card(args: PlumeTrainingConfig, started_from: str, steps: int, verdict: str = "") -> str:
    """The package's card with a section on a run.

    Args:
        args: The run.
        started_from: Checkpoint that it started from.
        steps: Optimizer steps that were made.
        verdict: Of :mod:`~plume.training.report`, in Markdown; left out where empty.
    """
    pool = args.per_device_train_batch_size * args.world_size
    return (
        f"{MODEL_CARD}\n## Training\n\nStarted from `{started_from}`, {steps} steps with a contrastive pool of {pool} "
        f"pairs, temperature {args.temperature}, learning rate {args.learning_rate}, shares of the stages "
        f"0..{len(args.stage_weights) - 1}: {[round(weight, 4) for weight in args.stage_weights]}, seed {args.seed}.\n"
        f"{verdict}"
    )

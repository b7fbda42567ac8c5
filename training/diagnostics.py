"""Is the thinking alive? Numbers that fall or rise when latent states or routing collapse, and Hit@1."""

from collections.abc import Sequence

import torch
from transformers import EvalPrediction
from transformers.utils import logging

from plume import PlumeOutput

logger = logging.get_logger(__name__)

MAX_STEP_COSINE = 0.99
MAX_EXPERT_MASS = 0.95


@torch.no_grad()
def describe_latents(latents_BKD: torch.Tensor, probs_BKE: torch.Tensor) -> dict[str, float]:
    """Health of a rollout.

    Args:
        latents_BKD: z(1)..z(K), ``(B, K, D)``.
        probs_BKE: Routing probabilities, ``(B, K, E)``.

    Returns:
        ``latent_cosine``, the mean cosine between different steps of a row (1: the steps do nothing);
        ``latent_rank``, the mean effective rank exp(entropy of the singular values) of a row's steps, in [1, K];
        ``expert_mass``, the largest mean routing mass, in [1 / E, 1]. Empty at K < 2.
    """
    steps = latents_BKD.shape[1]
    if steps < 2:
        return {}
    unit = torch.nn.functional.normalize(latents_BKD.float(), dim=-1)
    cosine = (unit @ unit.transpose(1, 2)).sum(dim=(1, 2)) - steps
    singular = torch.linalg.svdvals(unit)
    share = singular / singular.sum(dim=-1, keepdim=True)
    entropy = -(share * share.clamp(min=1e-12).log()).sum(dim=-1)
    return {
        "latent_cosine": (cosine / (steps * (steps - 1))).mean().item(),
        "latent_rank": entropy.exp().mean().item(),
        "expert_mass": probs_BKE.float().mean(dim=(0, 1)).max().item(),
    }


def warn_of_collapse(health: dict[str, float], num_experts: int) -> None:
    """Log a warning where a number of :func:`describe_latents` says that thinking has stopped."""
    if health.get("latent_cosine", 0.0) > MAX_STEP_COSINE:
        logger.warning(
            f"The latent steps have collapsed: their mean cosine is {health['latent_cosine']:.3f}, so later steps add "
            "nothing. Lower the learning rate, lengthen the earlier stages, or rehearse them (stage_mixing)."
        )
    if num_experts > 1 and health.get("expert_mass", 0.0) > MAX_EXPERT_MASS:  # a single one has all of it
        logger.warning(
            f"The routing has collapsed: one expert gets {health['expert_mass']:.2f} of the mass. Raise balance_weight."
        )


def refuse_nan(loss: torch.Tensor, output: PlumeOutput, places: Sequence[str], step: int) -> None:
    """Stop where the loss of a pass is not finite.

    Args:
        loss: Scalar.
        output: Of the pass, with ``suffix_log_probs``.
        places: Where its rows come from.
        step: Optimizer steps made so far.

    Raises:
        ValueError: If it is not; the message names the rows that are to blame.
    """
    if torch.isfinite(loss):
        return
    parts = zip(places, output.embeddings, output.suffix_log_probs, strict=True)
    bad = [place for place, vector, scores in parts if not (vector.isfinite().all() and scores.isfinite().all())]
    raise ValueError(
        f"The loss is not finite at step {step}, in the rows {bad or 'of this batch'}: training on would destroy the "
        "weights. Look at these rows, lower the learning rate, or train in bfloat16 instead of float16. The last "
        "checkpoint is intact."
    )


def retrieval_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """Hit@1 and Hit@5 over all targets of the evaluation set, equal targets counted once.

    Args:
        prediction: Query and target embeddings ``(N, D)`` as predictions, target identities ``(N,)`` as labels.
    """
    queries, targets = (torch.as_tensor(side).float() for side in prediction.predictions)
    identities = torch.as_tensor(prediction.label_ids)
    gallery, first = _unique(identities)
    similarity = queries @ targets[first].T
    wanted = similarity.gather(1, gallery.unsqueeze(1))
    # Ties count against the model: a constant embedder must not score.
    rank = (similarity >= wanted).sum(dim=1)
    return {"hit@1": (rank <= 1).float().mean().item(), "hit@5": (rank <= 5).float().mean().item()}


def _unique(identities: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Gallery index of each row, and the first row of each gallery item."""
    values, gallery = torch.unique(identities, return_inverse=True)
    rows = torch.arange(len(identities) - 1, -1, -1)
    first = torch.empty(len(values), dtype=torch.long).scatter_(0, gallery.flip(0), rows)
    return gallery, first

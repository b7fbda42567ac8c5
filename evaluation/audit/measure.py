"""All measures of one task, from as few passes as they need.

1. Documents are read at the checkpoint's K, and at the other K of the sweep. The embedding at k is the one read out
   after step k, since a step does not depend on how many follow it: one rollout gives them all.
2. Queries are read at every k from 0 to K, and at the other K of the sweep.
3. Queries are read again with their latent inputs replaced (``intervene``); documents stay as they are, so what an
   intervention costs is what the queries' thinking is worth.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn.functional import normalize

from plume.evaluation.audit.data import TaskData
from plume.evaluation.audit.intervene import REPLACEMENTS
from plume.evaluation.audit.lens import read_words
from plume.evaluation.audit.passes import Reader, Reading
from plume.evaluation.audit.ranking import Ranking, rank
from plume.evaluation.audit.routing import expert_use, modality_of
from plume.training.diagnostics import describe_latents


def measure(reader: Reader, task: TaskData, sweep: Sequence[int], seed: int) -> dict[str, Any]:
    """Audit one task.

    Args:
        reader: Reads with a model at its K >= 1.
        task: The task.
        sweep: Numbers of latent steps of the sweep.
        seed: Of shuffles and noise.

    Returns:
        A dict that JSON can hold; see ``docs/audit.md`` for its parts.
    """
    model, steps = reader.model, reader.steps
    # 1. Documents.
    documents = reader.read(task.documents, sweep, name=f"{task.name}: documents")
    # 2. Queries.
    queries = reader.read(task.queries, {*range(steps), *sweep}, keep_states=True, name=f"{task.name}: queries")
    # 3. Queries, disturbed.
    generator = torch.Generator().manual_seed(seed)
    replacements = {name: replace(queries.refined, generator) for name, replace in REPLACEMENTS.items()}
    disturbed = reader.read_replaced(task.queries, replacements, name=f"{task.name}: interventions")

    def ranked(vectors: torch.Tensor, against: int = steps) -> Ranking:
        return rank(vectors, documents.embeddings[against], task.grades, task.pool)

    variants = {"as is": queries.embeddings[steps], "drop": queries.embeddings[0], **disturbed}
    return {
        "task": task.name,
        "group": task.group,
        "control": task.control,
        "hops": task.hops,
        "n": len(task.queries),
        "num_documents": len(task.documents),
        "pool_size": task.pool.sum(dim=1).double().mean().item(),
        "num_latent_steps": steps,
        "interventions": _interventions(variants, {name: ranked(vectors) for name, vectors in variants.items()}),
        "sweep": [
            {"num_latent_steps": k, **_scores(ranked(queries.embeddings[k], k))} for k in sorted({*sweep, steps})
        ],
        "trajectory": _trajectory(queries, documents.embeddings[steps][task.best], ranked),
        "words": read_words(model, reader.processor, queries.latents),
        "experts": _experts(task, queries, documents, model.config.num_active_experts),
        "collapse": _collapse(queries, documents, steps),
    }


def _scores(ranking: Ranking) -> dict[str, float]:
    return {
        "hit_at_1": ranking.hit.mean().item(),
        "ndcg_at_5": ranking.ndcg.mean().item(),
        "median_rank": ranking.rank.double().median().item(),
        "mean_reciprocal_rank": (1 / ranking.rank.double()).mean().item(),
    }


def _interventions(vectors: dict[str, torch.Tensor], rankings: dict[str, Ranking]) -> dict[str, dict[str, float]]:
    """Scores per variant; cost and its standard error over queries, paired; how far the vectors moved."""
    rows = {}
    for name, ranking in rankings.items():
        cost = rankings["as is"].hit - ranking.hit
        rows[name] = {
            **_scores(ranking),
            "cost": cost.mean().item(),
            "cost_error": (cost.var(unbiased=True) / len(cost)).sqrt().item(),
            "moved": (1 - (vectors["as is"] * vectors[name]).sum(dim=-1)).mean().item(),
        }
    return rows


def _trajectory(
    queries: Reading, positives_ND: torch.Tensor, ranked: Callable[[torch.Tensor], Ranking]
) -> list[dict[str, float]]:
    """Per step: ranks and cosine to the positive of the embedding read out there, and the latent state's own cosine."""
    rows = []
    for step in range(queries.latents.shape[1] + 1):
        vectors = queries.embeddings[step]
        row = {"step": step, **_scores(ranked(vectors)), **_cosine("cosine", vectors, positives_ND)}
        if step > 0:
            row |= _cosine("state_cosine", normalize(queries.latents[:, step - 1], dim=-1), positives_ND)
        rows.append(row)
    return rows


def _cosine(name: str, vectors_ND: torch.Tensor, positives_ND: torch.Tensor) -> dict[str, float]:
    cosine = (vectors_ND * positives_ND).sum(dim=-1)
    return {name: cosine.mean().item(), f"{name}_std": cosine.std().item()}


def _experts(task: TaskData, queries: Reading, documents: Reading, num_active: int) -> dict[str, Any]:
    """Use by modality, of queries and documents apart. Nothing is routed if there is one expert."""
    if queries.probs.shape[-1] < 2:
        return {"queries": [], "documents": []}
    return {
        name: expert_use(side.probs, num_active, [modality_of(kinds, task.is_visdoc) for kinds in side.kinds])
        for name, side in (("queries", queries), ("documents", documents))
    }


def _collapse(queries: Reading, documents: Reading, steps: int) -> dict[str, Any]:
    """The training diagnostics, and how alike different inputs are: 1 means that thinking forgets its input."""
    return {
        **describe_latents(queries.latents, queries.probs),
        "input_cosine": [_alikeness(queries.latents[:, k]) for k in range(steps)],
        "query_cosine": _alikeness(queries.embeddings[steps]),
        "document_cosine": _alikeness(documents.embeddings[steps]),
    }


def _alikeness(vectors_ND: torch.Tensor) -> float | None:
    """Mean cosine between different rows; None if there is one."""
    count, unit = len(vectors_ND), normalize(vectors_ND, dim=-1)
    if count < 2:
        return None
    return ((unit.sum(dim=0).square().sum() - count) / (count * (count - 1))).item()

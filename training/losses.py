"""The objective as functions of tensors (Eq. 1, 6, 8): no model, no trainer, fp32 similarities.

Legend: N pairs of the pool, M candidates (N targets, then hard negatives), H hard negatives of a pair, D width,
E experts.

    L = w_ce CE + w_gen InfoNCE(embeddings) + w_anc InfoNCE(anchors) + w_bal balance                      (Eq. 8)
      + w_rank KL(ranking of a teacher || ranking of the embeddings)                    (not in the paper; 0 by default)
"""

from dataclasses import dataclass

import torch
from torch.nn import functional as F


def info_nce(
    queries_ND: torch.Tensor, candidates_MD: torch.Tensor, candidate_ids_M: torch.Tensor, temperature: float
) -> torch.Tensor:
    """InfoNCE in both directions (Eq. 1); candidate i < N is the positive of query i.

    A candidate that is the same item as the positive is no negative: it is masked, in both directions. Hard
    negatives (candidates beyond the first N) compete for queries only.

    Args:
        queries_ND: Unit vectors, ``(N, D)``.
        candidates_MD: Unit vectors, ``(M, D)``, M >= N.
        candidate_ids_M: Identity of each candidate, ``(M,)``; equal ids are the same item.
        temperature: tau > 0.

    Returns:
        Scalar, fp32: log M for equal vectors, 0 for a perfect match at tau -> 0.
    """
    num_pairs = len(queries_ND)
    similarity_NM = queries_ND.float() @ candidates_MD.float().T / temperature
    same_NM = candidate_ids_M[:num_pairs, None] == candidate_ids_M[None, :]
    own_NM = torch.eye(num_pairs, len(candidates_MD), dtype=torch.bool, device=queries_ND.device)
    similarity_NM = similarity_NM.masked_fill(same_NM & ~own_NM, -torch.inf)
    positives = torch.arange(num_pairs, device=queries_ND.device)
    to_candidates = F.cross_entropy(similarity_NM, positives)
    to_queries = F.cross_entropy(similarity_NM[:, :num_pairs].T, positives)
    return (to_candidates + to_queries) / 2


def balance(routing_NE: torch.Tensor) -> torch.Tensor:
    """Squared deviation of the mean routing mass from uniform (Eq. 6).

    Args:
        routing_NE: Routing probabilities of each row, averaged over its latent steps, ``(N, E)``. All rows have the
            same number of steps, so the mean of these means is the mean over batch and steps.

    Returns:
        Scalar: 0 when all experts receive equal mass.
    """
    mass_E = routing_NE.float().mean(dim=0)
    return (mass_E - 1 / len(mass_E)).square().mean()


def ranking_kl(
    queries_ND: torch.Tensor,
    candidates_MD: torch.Tensor,
    teacher_NM: torch.Tensor,
    candidate_ids_M: torch.Tensor,
    temperature: float,
) -> torch.Tensor:
    """KL divergence of the ranking by a teacher and that by the embeddings, over the candidates of each query.

    What the teacher has not scored is left out of both rankings, and so is a candidate that is the same item as the
    positive. A query with fewer than two candidates left has no ranking and does not count.

    Args:
        queries_ND: Unit vectors, ``(N, D)``.
        candidates_MD: Unit vectors, ``(M, D)``; candidate i < N is the positive of query i.
        teacher_NM: Scores of the teacher over its own temperature, ``(N, M)``; NaN where it has none.
        candidate_ids_M: Identity of each candidate, ``(M,)``.
        temperature: Of the embeddings' similarities, > 0.

    Returns:
        Scalar, fp32, in nats: mean over the queries that have a ranking; 0 if none has.
    """
    num_pairs = len(queries_ND)
    same_NM = candidate_ids_M[:num_pairs, None] == candidate_ids_M[None, :]
    own_NM = torch.eye(num_pairs, len(candidates_MD), dtype=torch.bool, device=queries_ND.device)
    known_NM = ~teacher_NM.isnan() & ~(same_NM & ~own_NM)
    # Finite, not -inf: a candidate that is left out has probability 0, and 0 times its logarithm must stay 0.
    floor = torch.finfo(torch.float32).min
    student_NM = (queries_ND.float() @ candidates_MD.float().T / temperature).masked_fill(~known_NM, floor)
    wanted_NM = teacher_NM.float().masked_fill(~known_NM, floor)
    divergence_N = F.kl_div(
        student_NM.log_softmax(dim=1), wanted_NM.log_softmax(dim=1), reduction="none", log_target=True
    ).sum(dim=1)
    counts_N = known_NM.sum(dim=1) > 1
    return (divergence_N * counts_N).sum() / counts_N.sum().clamp(min=1)


def place_scores(scores_NS: torch.Tensor) -> torch.Tensor:
    """Scores of each pair's own candidates at their places in the pool, NaN elsewhere.

    Args:
        scores_NS: Of the positive and the H hard negatives of each pair, ``(N, 1 + H)``.

    Returns:
        ``(N, N + N H)``: the targets of all pairs, then the hard negatives, pair by pair.
    """
    num_pairs, num_negatives = len(scores_NS), scores_NS.shape[1] - 1
    pairs = torch.arange(num_pairs, device=scores_NS.device)[:, None]
    negatives = num_pairs + num_negatives * pairs + torch.arange(num_negatives, device=scores_NS.device)
    placed = scores_NS.new_full((num_pairs, num_pairs * (1 + num_negatives)), torch.nan)
    return placed.scatter_(1, torch.cat([pairs, negatives], dim=1), scores_NS)


@dataclass(frozen=True)
class Weights:
    """Coefficients of Eq. 8 and of the ranking, and the temperature."""

    ce: float = 1.0
    embedding: float = 1.0
    anchor: float = 1.0
    balance: float = 0.1
    temperature: float = 0.02
    ranking: float = 1.0


@dataclass
class Representations:
    """What the contrastive and balance terms need of a set of rows, queries first.

    Attributes:
        embeddings: ``(R, D)``, unit length.
        anchors: ``(R, D)``, unit length.
        routing: Routing probabilities averaged over the latent steps, ``(R, E)``; no columns at K = 0.
    """

    embeddings: torch.Tensor
    anchors: torch.Tensor
    routing: torch.Tensor

    def tensors(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The three tensors in order."""
        return self.embeddings, self.anchors, self.routing


def pool_loss(
    queries: Representations, candidates: Representations, candidate_ids: torch.Tensor, weights: Weights
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The terms of Eq. 8 that couple the rows of a pool, and each of them by name.

    Args:
        queries: The N queries of the pool.
        candidates: Their N targets, then hard negatives.
        candidate_ids: Identity of each candidate.
        weights: Coefficients.
    """
    parts = {
        "embedding": info_nce(queries.embeddings, candidates.embeddings, candidate_ids, weights.temperature),
        "anchor": info_nce(queries.anchors, candidates.anchors, candidate_ids, weights.temperature),
    }
    loss = weights.embedding * parts["embedding"] + weights.anchor * parts["anchor"]
    if queries.routing.shape[1]:  # no latent step, no routing to balance
        parts["balance"] = balance(torch.cat([queries.routing, candidates.routing]))
        loss = loss + weights.balance * parts["balance"]
    return loss, parts


def suffix_ce(log_probs_RS: torch.Tensor, mask_RS: torch.Tensor) -> torch.Tensor:
    """Cross entropy of each row's suffix, averaged over its tokens, ``(R,)``, fp32, in nats."""
    return -(log_probs_RS * mask_RS).sum(dim=-1) / mask_RS.sum(dim=-1).clamp(min=1)

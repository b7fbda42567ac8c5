"""The objective as functions of tensors (Eq. 1, 6, 8): no model, no trainer, fp32 similarities.

Legend: N pairs of the pool, M candidates (N targets, then hard negatives), D width, E experts.

    L = w_ce CE + w_gen InfoNCE(embeddings) + w_anc InfoNCE(anchors) + w_bal balance                      (Eq. 8)
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


@dataclass(frozen=True)
class Weights:
    """Coefficients of Eq. 8 and the temperature."""

    ce: float = 1.0
    embedding: float = 1.0
    anchor: float = 1.0
    balance: float = 0.1
    temperature: float = 0.02


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

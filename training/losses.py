"""The objective as functions of tensors (Eq. 1, 6, 8): no model, no trainer, fp32 similarities.

Legend: N pairs of the pool, M candidates (N targets, then hard negatives), H hard negatives of a pair, D width,
E experts.

    L = w_ce CE + w_gen InfoNCE(embeddings) + w_anc InfoNCE(anchors) + w_bal balance                      (Eq. 8)
      + w_rank KL(ranking of a teacher || ranking of the embeddings)                      (not in the paper; optional)

With read-outs or prefixes, each of them adds an InfoNCE of its own (``docs/anytime.md``).
"""

from collections.abc import Mapping
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
    """Coefficients of Eq. 8 and of the ranking, and the temperature.

    ``prefixes`` holds widths, and the coefficient of the contrast of so many leading dimensions at unit length.
    """

    ce: float = 1.0
    embedding: float = 1.0
    anchor: float = 1.0
    balance: float = 0.1
    temperature: float = 0.02
    prefixes: tuple[tuple[int, float], ...] = ()
    ranking: float = 1.0


@dataclass
class Representations:
    """What the contrastive and balance terms need of a set of rows, queries first.

    Attributes:
        embeddings: ``(R, D)``, unit length.
        anchors: ``(R, D)``, unit length.
        routing: Routing probabilities averaged over the latent steps, ``(R, E)``; no columns at K = 0.
        readouts: Embeddings after some numbers of steps, ``(R, number of steps, D)``, unit length. Defaults to none.
    """

    embeddings: torch.Tensor
    anchors: torch.Tensor
    routing: torch.Tensor
    readouts: torch.Tensor | None = None

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """The four tensors in order; without read-outs the last has none."""
        nothing = self.embeddings.new_empty(len(self.embeddings), 0, self.embeddings.shape[1])
        return self.embeddings, self.anchors, self.routing, nothing if self.readouts is None else self.readouts


def nested_nce(
    queries_ND: torch.Tensor, candidates_MD: torch.Tensor, candidate_ids_M: torch.Tensor, weights: Weights
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """InfoNCE of vectors and, weighted, of their prefixes at unit length; each part by name."""
    parts = {"embedding": info_nce(queries_ND, candidates_MD, candidate_ids_M, weights.temperature)}
    loss = parts["embedding"]
    for width, weight in weights.prefixes:
        queries, candidates = (F.normalize(side[:, :width].float(), dim=-1) for side in (queries_ND, candidates_MD))
        parts[f"dim_{width}"] = info_nce(queries, candidates, candidate_ids_M, weights.temperature)
        loss = loss + weight * parts[f"dim_{width}"]
    return loss, parts


def pool_loss(
    queries: Representations,
    candidates: Representations,
    candidate_ids: torch.Tensor,
    weights: Weights,
    readouts: Mapping[int, float] | None = None,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The terms of Eq. 8 that couple the rows of a pool, those of read-outs and prefixes, and each of them by name.

    The queries of a read-out are contrasted with the candidates of every read-out, and the mean counts: so all numbers
    of steps share one space.

    Args:
        queries: The N queries of the pool.
        candidates: Their N targets, then hard negatives.
        candidate_ids: Identity of each candidate.
        weights: Coefficients.
        readouts: Numbers of steps of the read-outs, in their order, with the coefficient of each.
    """
    nested, parts = nested_nce(queries.embeddings, candidates.embeddings, candidate_ids, weights)
    parts["anchor"] = info_nce(queries.anchors, candidates.anchors, candidate_ids, weights.temperature)
    loss = weights.embedding * nested + weights.anchor * parts["anchor"]
    asked, found = queries.tensors()[-1], candidates.tensors()[-1]
    for place, (steps, weight) in enumerate((readouts or {}).items()):
        against = [nested_nce(asked[:, place], other, candidate_ids, weights)[0] for other in found.unbind(dim=1)]
        parts[f"readout_{steps}"] = torch.stack(against).mean()
        loss = loss + weight * parts[f"readout_{steps}"]
    if queries.routing.shape[1]:  # no latent step, no routing to balance
        parts["balance"] = balance(torch.cat([queries.routing, candidates.routing]))
        loss = loss + weights.balance * parts["balance"]
    return loss, parts


def suffix_ce(log_probs_RS: torch.Tensor, mask_RS: torch.Tensor) -> torch.Tensor:
    """Cross entropy of each row's suffix, averaged over its tokens, ``(R,)``, fp32, in nats."""
    return -(log_probs_RS * mask_RS).sum(dim=-1) / mask_RS.sum(dim=-1).clamp(min=1)

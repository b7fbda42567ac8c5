"""Retrieval metrics of one task from its vectors, per query.

Ties count against the model: at equal scores every wrong document ranks before the right one, so a constant
embedder scores 0 and not 1.
"""

import math
from dataclasses import dataclass

import torch

CUTOFF = 5


@dataclass
class Ranking:
    """Per query: rank of the best positive (1 is best), ``(N,)``, and linear nDCG@5, ``(N,)``, in [0, 1]."""

    rank: torch.Tensor
    ndcg: torch.Tensor

    @property
    def hit(self) -> torch.Tensor:
        """Whether a positive is on top, ``(N,)``, 0 or 1."""
        return (self.rank == 1).double()


def rank(
    queries_ND: torch.Tensor, documents_MD: torch.Tensor, grades_NM: torch.Tensor, pool_NM: torch.Tensor
) -> Ranking:
    """Rank the pool of every query by inner product.

    Args:
        queries_ND: Query vectors, ``(N, D)``.
        documents_MD: Document vectors, ``(M, D)``.
        grades_NM: Relevance of each document to each query, ``(N, M)``, 0 for none; every query has a positive one.
        pool_NM: Which documents compete for a query, ``(N, M)`` of bool.
    """
    scores_NM = queries_ND.float() @ documents_MD.float().T
    scores_NM = scores_NM.masked_fill(~pool_NM, -math.inf)
    positive_NM = (grades_NM > 0) & pool_NM
    best_N1 = scores_NM.masked_fill(~positive_NM, -math.inf).amax(dim=1, keepdim=True)
    in_front = ((scores_NM >= best_N1) & pool_NM & ~positive_NM).sum(dim=1)
    return Ranking(in_front + 1, _ndcg(scores_NM, grades_NM * pool_NM, grades_NM))


def _ndcg(scores_NM: torch.Tensor, gains_NM: torch.Tensor, grades_NM: torch.Tensor) -> torch.Tensor:
    """Linear nDCG@5; the ideal ranking is that of all grades, in the pool or not."""
    worst_first = gains_NM.argsort(dim=1, stable=True)
    order = scores_NM.gather(1, worst_first).argsort(dim=1, descending=True, stable=True)
    ranked = gains_NM.gather(1, worst_first.gather(1, order))[:, :CUTOFF].double()
    ideal = grades_NM.sort(dim=1, descending=True).values[:, :CUTOFF].double()
    discount = torch.log2(torch.arange(2, ranked.shape[1] + 2).double())
    return (ranked / discount).sum(dim=1) / (ideal / discount).sum(dim=1)

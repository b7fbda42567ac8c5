"""GradCache through the whole objective: a pool of any size in the memory of one chunk (arXiv 2101.06983).

1. **Represent** every chunk without gradient, remembering the random state it started from.
2. **Differentiate** the pool loss with respect to the representations: embeddings, anchors *and routing*, because
   the balance of Eq. 6 is not a sum over rows either.
3. **Replay** each chunk with gradient from the same random state (so that dropout draws the same masks), add its own
   share of the cross entropy, which *is* a sum over rows, and back through.

Exact: the gradients equal those of the step without chunks, which differentiates its pool loss by the same function: on
every rank the gathering of the pool is done, forward and backward, before gradients of weights are exchanged.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch
from sentence_transformers.base.losses.gradcache import RandContext

from plume.training.losses import Representations

PoolLoss = Callable[[Representations], tuple[torch.Tensor, dict[str, torch.Tensor]]]


class Chunk(Protocol):
    """Some rows of a pool."""

    def tensors(self) -> Sequence[torch.Tensor]:
        """Its tensors; their devices are those whose random state is replayed."""
        ...


def differentiate(
    local: Representations, pool_loss: PoolLoss
) -> tuple[torch.Tensor, dict[str, torch.Tensor], list[torch.Tensor]]:
    """The pool loss, detached, its parts, and its gradients with respect to the representations of this rank."""
    leaves = [column.detach().requires_grad_() for column in local.tensors()]
    loss, parts = pool_loss(Representations(*leaves))
    used = [leaf for leaf in leaves if leaf.shape[1]]
    gradients = iter(torch.autograd.grad(loss, used))
    return loss.detach(), parts, [next(gradients) if leaf.shape[1] else torch.zeros_like(leaf) for leaf in leaves]


def surrogate(local: Representations, gradients: Sequence[torch.Tensor]) -> torch.Tensor:
    """A scalar whose gradient is that of the pool loss through these representations."""
    return sum(((r * g).sum() for r, g in zip(local.tensors(), gradients, strict=True)), torch.zeros(()))


def cached_backward(
    chunks: Sequence[Chunk],
    represent: Callable[[Chunk], Representations],
    replay: Callable[[Chunk], tuple[Representations, torch.Tensor, dict[str, torch.Tensor]]],
    pool_loss: PoolLoss,
    backward: Callable[[torch.Tensor], None],
    hold_sync: Callable[[], AbstractContextManager],
) -> tuple[torch.Tensor, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Accumulate the gradients of the objective over a pool of chunks.

    Args:
        chunks: The pool in pieces, in row order.
        represent: Representations of a chunk; called without gradient.
        replay: Representations of a chunk and its share of the loss that is a sum over rows, with gradient, and the
            terms of that share by name.
        pool_loss: Loss of the representations of the whole pool, and its parts.
        backward: Backpropagates a scalar.
        hold_sync: Context in which gradients are not exchanged between ranks.

    Returns:
        The loss, detached; the parts that couple the rows of the pool; and the terms that are sums over rows.
    """
    # 1. Represent.
    states, pieces = [], []
    with torch.no_grad():
        for chunk in chunks:
            states.append(RandContext(*chunk.tensors()))
            pieces.append(represent(chunk))
    # 2. Differentiate.
    whole = Representations(*map(torch.cat, zip(*(piece.tensors() for piece in pieces), strict=True)))
    loss, parts, columns = differentiate(whole, pool_loss)
    sizes = [len(piece.embeddings) for piece in pieces]
    shares = zip(*(column.split(sizes) for column in columns), strict=True)
    # 3. Replay.
    own_total, totals = torch.zeros_like(loss), dict[str, torch.Tensor]()
    for index, (chunk, state, share) in enumerate(zip(chunks, states, shares, strict=True)):
        is_last = index == len(chunks) - 1
        with state, nullcontext() if is_last else hold_sync():
            again, own, terms = replay(chunk)
            backward(own + surrogate(again, share))
        own_total = own_total + own.detach()
        totals = {name: totals.get(name, 0.0) + term.detach() for name, term in terms.items()}
    return loss + own_total, parts, totals

"""Interventions on the latent steps, exact and without a second rollout.

What is replaced: z~(k-1), the refined state that the transition hands to the backbone as its input at latent step k
(Eq. 5), k = 1..K. Everything else stays: the prefix and its cache, the anchor, the positions, the suffix. z(k) and the
routing of later steps follow from what was put in, as in any run.

The rollout calls ``model.latent_transition`` once per step; both context managers hang a forward hook on it for as long
as they are open, and leave the model as it was.

The replacements are made from a recorded trace ``(N, K, D)`` of N inputs as they thought it undisturbed, so "the trace
of another input" is what that input would really have thought.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from plume import PlumeModel


@contextmanager
def recording(model: PlumeModel) -> Iterator[list[torch.Tensor]]:
    """Collect z~(0), z~(1), ... of the forward passes inside, one ``(B, D)`` tensor per latent step."""
    refined: list[torch.Tensor] = []

    def record(module: Any, args: tuple, output: tuple[torch.Tensor, torch.Tensor]) -> None:
        refined.append(output[0].detach())

    handle = model.latent_transition.register_forward_hook(record)
    try:
        yield refined
    finally:
        handle.remove()


@contextmanager
def replacing(model: PlumeModel, refined_BKD: torch.Tensor) -> Iterator[None]:
    """Feed ``refined_BKD[:, k - 1]`` to the backbone at latent step k, whatever the transition returns.

    Args:
        model: The model; the routing probabilities it reports stay the transition's own.
        refined_BKD: Replacements of z~(0)..z~(K-1) for the rows of the batch, ``(B, K, D)``.
    """

    def replace(module: Any, args: tuple, output: tuple[torch.Tensor, torch.Tensor]) -> tuple:
        refined, probs = output
        given = refined_BKD[:, args[1] - 1].to(refined)
        assert given.shape == refined.shape, "one trace per row of the batch"
        return given, probs

    handle = model.latent_transition.register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()


def shuffled(refined_NKD: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Every input gets the whole trace of another one, at the same steps."""
    return refined_NKD[derangement(len(refined_NKD), generator)]


def noise(refined_NKD: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Gaussian directions, each with the norm of the state that it replaces."""
    drawn = torch.randn(refined_NKD.shape, generator=generator)
    unit = torch.nn.functional.normalize(drawn, dim=-1).to(refined_NKD)
    return unit * refined_NKD.norm(dim=-1, keepdim=True)


def first(refined_NKD: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
    """The input's own first state at every step: as many steps, but no progress."""
    return refined_NKD[:, :1].expand_as(refined_NKD)


def mean(refined_NKD: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
    """The mean over all inputs at the same step: what is left is what the steps share."""
    return refined_NKD.mean(dim=0, keepdim=True).expand_as(refined_NKD)


# "drop" is not here: it is K = 0, a run without latent steps.
REPLACEMENTS: dict[str, Callable[[torch.Tensor, torch.Generator], torch.Tensor]] = {
    "shuffle": shuffled,
    "noise": noise,
    "first": first,
    "mean": mean,
}


def derangement(size: int, generator: torch.Generator) -> torch.Tensor:
    """A random permutation that leaves nothing in its place.

    Raises:
        ValueError: If there are fewer than two inputs to exchange.
    """
    if size < 2:
        raise ValueError(f"Shuffling needs at least two inputs, got {size}. Raise --max-queries, or drop the task.")
    order = torch.randperm(size, generator=generator)
    donors = torch.empty_like(order)
    donors[order] = order.roll(1)
    return donors

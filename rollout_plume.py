"""The latent rollout (paper section 3.3): think K steps over the KV cache, then read the embedding.

Legend: B batch, T prefix length, S suffix length, K latent steps, R read-outs, D width, E experts.

For k = 1..K:

1. **Refine** (Eq. 4-5):  z~(k-1) = transition(z(k-1), k, c(x)).
2. **Think** (Eq. 3):     z(k) = backbone(z~(k-1)) at position p_slt + k, over the cache.
3. **Read** (Eq. 7):      after a step of ``readout_steps``, the backbone reads the suffix ``<elt> ... <gen>`` in the
   same pass. The suffix is dropped from the cache again, so later steps do not see it.

The usual call reads out once, after step K. At K = 0 the suffix comes right after ``<slt>``, in the pass of the prefix.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from transformers.utils import ModelOutput

from .cache_plume import Context
from .latent_plume import LatentTransition


class Rollout(NamedTuple):
    """What a rollout computed; all states are post-norm."""

    latent_states: Tensor  # z(1)..z(K), (B, K, D)
    router_probs: Tensor  # pi(1)..pi(K) over all experts, (B, K, E), fp32
    readouts: Tensor  # z(k) and the states of the suffix after it, for every k of readout_steps, (B, R, 1 + S, D)


@dataclass
class PlumeOutput(ModelOutput):
    """What one forward pass returns.

    Attributes:
        embeddings: The retrieval embeddings, ``(B, D)``, fp32, unit length (Eq. 7); after the last read-out.
        anchor_embeddings: The anchor state, ``(B, D)``, fp32, unit length; for training and analysis only.
        latent_states: z(1)..z(K), ``(B, K, D)``, post-norm.
        router_probs: pi(1)..pi(K) over all experts, ``(B, K, E)``, fp32 (Eq. 4).
        suffix_states: The state before the suffix (z(K), or z(0) at K = 0) and at every suffix token,
            ``(B, 1 + S, D)``, post-norm: state i predicts suffix token i.
        suffix_log_probs: Log-probability of each suffix token given what precedes it, ``(B, S)``, fp32, in nats; only
            with ``suffix_mask``, and 0 where it is 0.
        readout_embeddings: The embedding after each of ``readout_steps``, ``(B, R, D)``; only with ``readout_steps``.
    """

    embeddings: Tensor | None = None
    anchor_embeddings: Tensor | None = None
    latent_states: Tensor | None = None
    router_probs: Tensor | None = None
    suffix_states: Tensor | None = None
    suffix_log_probs: Tensor | None = None
    readout_embeddings: Tensor | None = None


def rollout(
    context: Context,
    transition: LatentTransition,
    anchor_BD: Tensor,
    suffix_BSD: Tensor,
    num_latent_steps: int,
    readout_steps: Sequence[int],
) -> Rollout:
    """Think K latent steps and read the suffix. The only rollout in this repository.

    Args:
        context: The backbone after the prefix, which may have looked ahead at the suffix.
        transition: The adapter of Eq. 4-5.
        anchor_BD: c(x), ``(B, D)``, post-norm.
        suffix_BSD: Input vectors of the suffix ``<elt> ... <gen>``, ``(B, S, D)``.
        num_latent_steps: K.
        readout_steps: Steps to read out after, increasing, the last one K.
    """
    z_BD = context.hidden[:, -1]  # z(0), Eq. 2
    latents_BKD = [z_BD.new_empty(len(z_BD), 0, z_BD.shape[-1])]
    probs_BKE, readouts = [torch.empty(len(z_BD), 0, transition.num_experts, device=z_BD.device)], []
    if 0 in readout_steps:
        ahead_BSD = context.extend(suffix_BSD, keep=0) if context.seen_ahead is None else context.seen_ahead
        readouts.append(torch.cat([z_BD.unsqueeze(1), ahead_BSD], dim=1))
    for k in range(1, num_latent_steps + 1):
        refined_BD, probs_BE = transition(z_BD, k, anchor_BD)  # z~(k-1), Eq. 4-5
        inputs_BSD = refined_BD.unsqueeze(1).to(suffix_BSD.device)  # where a split model takes its inputs
        if k in readout_steps:
            inputs_BSD = torch.cat([inputs_BSD, suffix_BSD], dim=1)
        states_BSD = context.extend(inputs_BSD, keep=1)  # at p_slt + k, Eq. 3
        z_BD = states_BSD[:, 0]  # z(k)
        latents_BKD.append(states_BSD[:, :1])
        probs_BKE.append(probs_BE.unsqueeze(1))
        if k in readout_steps:
            readouts.append(states_BSD)
    return Rollout(torch.cat(latents_BKD, dim=1), torch.cat(probs_BKE, dim=1), torch.stack(readouts, dim=1))


def state_at(states_BTD: Tensor, ids_BT: Tensor, token_id: int) -> Tensor:
    """The state at the last occurrence of ``token_id`` in each row: ``(B, T, ..., D)`` to ``(B, ..., D)``."""
    order_BT = torch.arange(1, ids_BT.shape[1] + 1, device=ids_BT.device) * (ids_BT == token_id)
    index_B = order_BT.argmax(dim=-1).to(states_BTD.device)  # a split model has its last states elsewhere
    return states_BTD[torch.arange(len(index_B), device=index_B.device), index_B]

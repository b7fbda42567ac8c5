"""The transition adapter that steers every latent step (paper section 3.4), in pure torch.

Legend: B batch, D model width, H expert width, E specialised experts (M_e), A active experts (K_r).

1. **Route** (Eq. 4):  pi(k) = softmax(W_r [z(k-1) + c(x) ; e(k)] + b_r), over all E experts.
2. **Select**:         the A largest probabilities keep their value, the others become 0; no renormalising.
3. **Mix** (Eq. 5):    z~(k-1) = z + E_0(LN z) + sum_m pi_m E_m(LN z).

Experts run densely: at (B, D) they are small matrix products, and choosing rows on the host would cost more
than computing them all. Nothing here waits for the device.
"""

import torch
from torch import Tensor, nn

from .configuration_plume import PlumeConfig


class LatentRouter(nn.Module):
    """Routing probabilities of Eq. 4, softmax in fp32."""

    def __init__(self, config: PlumeConfig) -> None:
        super().__init__()
        width = config.text_config.hidden_size
        self.uses_anchor = config.router_uses_anchor
        self.step_embedding = nn.Embedding(config.max_latent_steps, width) if config.router_uses_step else None
        self.projection = nn.Linear(width * (2 if config.router_uses_step else 1), config.num_experts)

    def forward(self, z_BD: Tensor, step: int, anchor_BD: Tensor) -> Tensor:
        """Return ``probs_BE``, fp32, for latent step ``step`` in 1..K."""
        query = z_BD + anchor_BD if self.uses_anchor else z_BD
        if self.step_embedding is not None:
            # Filled on the device. The module is called, not its weight: offloading hooks sit on the call.
            row_B = torch.zeros(z_BD.shape[0], dtype=torch.long, device=z_BD.device) + (step - 1)
            query = torch.cat([query, self.step_embedding(row_B)], dim=-1)
        return self.projection(query).float().softmax(dim=-1)


class LatentExperts(nn.Module):
    """A bank of two-layer GELU MLPs D -> H -> D with dropout after the activation, as batched products."""

    def __init__(self, num_experts: int, width: int, expanded: int, dropout: float) -> None:
        super().__init__()
        self.up_weight = nn.Parameter(torch.empty(num_experts, width, expanded))
        self.up_bias = nn.Parameter(torch.empty(num_experts, 1, expanded))
        self.down_weight = nn.Parameter(torch.empty(num_experts, expanded, width))
        self.down_bias = nn.Parameter(torch.empty(num_experts, 1, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BD: Tensor) -> Tensor:
        """Return the output of every expert, ``(E, B, D)``."""
        x_EBD = x_BD.expand(self.up_weight.shape[0], -1, -1)
        hidden_EBH = torch.baddbmm(self.up_bias, x_EBD, self.up_weight)
        hidden_EBH = self.dropout(nn.functional.gelu(hidden_EBH))
        return torch.baddbmm(self.down_bias, hidden_EBH, self.down_weight)


class LatentTransition(nn.Module):
    """The semantic-anchor-guided transition adapter: refine z(k-1) into z~(k-1) (Eq. 4-5).

    The ablations of Tables 3 and 5 are configuration: ``num_experts=1, use_shared_expert=False`` is the single
    MLP, ``router_uses_anchor`` and ``router_uses_step`` drop c(x) and e(k), ``num_active_experts=1`` is top-1.
    """

    def __init__(self, config: PlumeConfig) -> None:
        super().__init__()
        width = config.text_config.hidden_size
        self.num_experts, self.num_active_experts = config.num_experts, config.num_active_experts
        self.use_shared_expert = config.use_shared_expert
        self.layer_norm = nn.LayerNorm(width, eps=config.transition_norm_eps)
        # One expert leaves nothing to route: its probability is 1.
        self.router = LatentRouter(config) if config.num_experts > 1 else None
        # Bank index 0 is the shared expert E_0 if there is one; the specialised E_1..E_M follow.
        num_banked = config.num_experts + config.use_shared_expert
        self.experts = LatentExperts(num_banked, width, width * config.expert_expansion, config.expert_dropout)

    def forward(self, z_BD: Tensor, step: int, anchor_BD: Tensor) -> tuple[Tensor, Tensor]:
        """Refine z(k-1), ``(B, D)``, before step k by the anchor c(x), ``(B, D)``, both post-norm.

        Returns:
            z~(k-1) ``(B, D)`` and the routing probabilities over all experts ``(B, E)``, fp32.

        Raises:
            ValueError: If the anchor does not have the shape of the latent state.
        """
        if anchor_BD.shape != z_BD.shape:
            cause = f"The anchor has shape {tuple(anchor_BD.shape)} but the latent state {tuple(z_BD.shape)}."
            raise ValueError(f"{cause} Eq. 4 adds them: take both from the same backbone and batch.")
        # 1. Route over all experts.
        if self.router is None:
            probs_BE = torch.ones(z_BD.shape[0], 1, device=z_BD.device)
        else:
            probs_BE = self.router(z_BD, step, anchor_BD)
        # 2. Select the top A; their probabilities are kept as they are.
        top = probs_BE.topk(self.num_active_experts, dim=-1)
        gates_BE = torch.zeros_like(probs_BE).scatter(-1, top.indices, top.values)
        if self.use_shared_expert:
            gates_BE = torch.cat([torch.ones_like(gates_BE[:, :1]), gates_BE], dim=-1)
        # 3. Mix: residual + shared expert + gated specialised experts.
        outputs_EBD = self.experts(self.layer_norm(z_BD))
        mixed_BD = (gates_BE.T.unsqueeze(-1).to(outputs_EBD.dtype) * outputs_EBD).sum(dim=0)
        return z_BD + mixed_BD, probs_BE

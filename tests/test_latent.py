"""The transition adapter against Eq. 4-5 and the ablations of Tables 3 and 5."""

import pytest
import torch

from plume import PlumeForEmbedding
from plume.hub.random_checkpoint import build_backbone_config, build_tokenizer, fill_weights
from plume.latent_plume import LatentTransition
from plume.start import build_config
from reference import adapter


def make_transition(**fields) -> LatentTransition:
    transition = LatentTransition(build_config(build_backbone_config(build_tokenizer()), **fields)).eval()
    fill_weights(transition, seed=7)
    return transition


@pytest.fixture
def states() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(5, 32, generator=generator), torch.randn(5, 32, generator=generator)


@pytest.mark.parametrize("num_active_experts", [1, 2, 4])
def test_transition_equals_the_equations_row_by_row(states, num_active_experts):
    z, anchor = states
    transition = make_transition(num_active_experts=num_active_experts)
    for step in (1, 8):
        refined, probs = transition(z, step, anchor)
        for row in range(len(z)):
            expected, expected_probs = adapter(transition, z[row], step, anchor[row])
            assert torch.allclose(refined[row], expected, atol=1e-5)
            assert torch.allclose(probs[row], expected_probs, atol=1e-6)


def test_selected_probabilities_are_not_renormalised(states):
    """With every expert output equal to 1, what is added is the sum of the top-2 probabilities, below 1."""
    z, anchor = states
    transition = make_transition(use_shared_expert=False)
    with torch.no_grad():
        transition.experts.down_weight.zero_()
        transition.experts.down_bias.fill_(1.0)
    refined, probs = transition(z, 1, anchor)
    assert torch.allclose(refined - z, probs.topk(2).values.sum(-1, keepdim=True).expand_as(z), atol=1e-6)


def test_a_fresh_adapter_is_the_identity(states):
    z, anchor = states
    model = PlumeForEmbedding(build_config(build_backbone_config(build_tokenizer())))
    refined, _ = model.latent_transition.eval()(z, 1, anchor)
    assert torch.equal(refined, z)


@pytest.mark.parametrize(
    ("fields", "sees_anchor", "sees_step"),
    [({}, True, True), ({"router_uses_anchor": False}, False, True), ({"router_uses_step": False}, True, False)],
)
def test_router_inputs_are_switches_of_the_configuration(states, fields, sees_anchor, sees_step):
    z, anchor = states
    transition = make_transition(**fields)
    probs = transition(z, 1, anchor)[1]
    assert torch.equal(probs, transition(z, 1, anchor + 1)[1]) != sees_anchor
    assert torch.equal(probs, transition(z, 2, anchor)[1]) != sees_step


def test_single_mlp_ablation_has_no_router(states):
    z, anchor = states
    transition = make_transition(num_experts=1, num_active_experts=1, use_shared_expert=False)
    refined, probs = transition(z, 1, anchor)
    assert transition.router is None
    assert torch.equal(probs, torch.ones(5, 1))
    assert torch.allclose(refined, z + transition.experts(transition.layer_norm(z))[0], atol=1e-6)


def test_shared_expert_can_be_left_out():
    assert make_transition().experts.up_weight.shape == (5, 32, 64)
    assert make_transition(use_shared_expert=False).experts.up_weight.shape == (4, 32, 64)


def test_dropout_acts_in_training_only(states):
    z, anchor = states
    transition = make_transition(expert_dropout=0.5)
    assert torch.equal(transition(z, 1, anchor)[0], transition(z, 1, anchor)[0])
    transition.train()
    assert not torch.equal(transition(z, 1, anchor)[0], transition(z, 1, anchor)[0])


def test_an_anchor_of_the_wrong_size_is_refused(states):
    z, anchor = states
    with pytest.raises(ValueError, match="anchor has shape"):
        make_transition()(z, 1, anchor[:, :16])


def test_adapter_has_the_released_checkpoint_s_size():
    """47,273,476 parameters at Qwen2-VL-2B's width, as in the released checkpoint."""
    backbone = build_backbone_config(build_tokenizer(), "2b")
    with torch.device("meta"):
        transition = LatentTransition(build_config(backbone))
    assert sum(parameter.numel() for parameter in transition.parameters()) == 47_273_476


def test_the_router_s_softmax_is_computed_in_float32(states):
    """In bfloat16 the four probabilities would have three digits and their sum would miss 1."""
    z, anchor = (state.bfloat16() for state in states)
    router = make_transition().bfloat16().router
    probs = router(z, 1, anchor)
    assert probs.dtype == torch.float32
    query = torch.cat([z + anchor, router.step_embedding.weight[0].expand_as(z)], dim=-1)
    assert torch.equal(probs, torch.softmax(router.projection(query).float(), dim=-1))
    assert not torch.equal(probs, torch.softmax(router.projection(query), dim=-1).float())

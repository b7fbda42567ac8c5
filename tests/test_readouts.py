"""One rollout, several read-outs: each is the embedding of a call with that many steps."""

import pytest
import torch

from inputs import checkpoint_activations, embed, mixed_inputs
from inputs import every_backbone as model_type  # noqa: F401 (the fixture of this module)
from plume.cache_plume import RecomputedContext

STEPS = [0, 1, 3, 4]


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("fast", [False, True])
def test_every_readout_equals_a_call_with_that_many_steps(model, processor, monkeypatch, recompute, fast):
    model.speed_up(fast)
    if recompute:
        monkeypatch.setattr("plume.cache_plume.CachedContext", RecomputedContext)
    inputs = mixed_inputs()[:6]
    with torch.no_grad():
        output = model(**processor.process_documents(inputs), num_latent_steps=5, readout_steps=STEPS)
    assert output.readout_embeddings.shape == (len(inputs), len(STEPS), 32)
    for place, steps in enumerate(STEPS):
        expected = embed(model, processor, inputs, num_latent_steps=steps)
        assert (output.readout_embeddings[:, place] - expected).abs().max() <= 1e-5
    assert (output.embeddings - embed(model, processor, inputs, num_latent_steps=5)).abs().max() <= 1e-5


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_of_readouts_are_those_of_separate_calls(model, processor, checkpointing):
    features = processor.process_documents(mixed_inputs()[:4])
    if checkpointing:
        checkpoint_activations(model, {"use_reentrant": False})
    model.latent_transition.experts.dropout.p = 0.0
    model.train()

    def gradient(loss):
        model.zero_grad()
        loss.backward()
        return model.model.language_model.layers[0].mlp.up_proj.weight.grad.clone()

    together = model(**features, num_latent_steps=4, readout_steps=STEPS).readout_embeddings[..., 0].sum()
    apart = sum(model(**features, num_latent_steps=steps).embeddings[:, 0].sum() for steps in STEPS)
    assert torch.allclose(gradient(together), gradient(apart), atol=1e-4)


@pytest.mark.parametrize("recompute", [False, True])
def test_readouts_with_a_suffix_of_one_s_own_are_what_inference_reads(model, processor, monkeypatch, recompute):
    """As in training: the rationale follows the latent block, and the read-outs do not see it."""
    if recompute:
        monkeypatch.setattr("plume.cache_plume.CachedContext", RecomputedContext)
    inputs, closing = mixed_inputs()[:4], model.config.suffix_token_ids
    features = processor.process_documents(inputs)
    explicit = torch.tensor([[closing[0], 70 + row, 71, 72, closing[-1]] for row in range(len(inputs))])
    with torch.no_grad():
        output = model(**features, num_latent_steps=4, readout_steps=[0, 2, 4], suffix_input_ids=explicit)
        alone = model(**features, num_latent_steps=4, suffix_input_ids=explicit)
    for place, steps in enumerate([0, 2, 4]):
        expected = embed(model, processor, inputs, num_latent_steps=steps)
        assert (output.readout_embeddings[:, place] - expected).abs().max() <= 1e-5
    assert (output.embeddings - alone.embeddings).abs().max() <= 1e-5
    assert (output.suffix_states - alone.suffix_states).abs().max() <= 1e-4
    assert (output.embeddings - output.readout_embeddings[:, -1]).abs().max() > 1e-2


@pytest.mark.parametrize("steps", [[], [2, 1], [1, 1], [-1, 1], [1, 4], [True], [1.0]], ids=str)
def test_impossible_readouts_are_refused(model, processor, steps):
    with pytest.raises(ValueError, match="must be increasing integers from 0 to num_latent_steps=3"):
        model(**processor.process_documents(["a bus"]), num_latent_steps=3, readout_steps=steps)

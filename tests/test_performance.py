"""Every fast path gives the vectors of the reference path, and says so when it cannot."""

import copy
import pickle

import pytest
import torch
from transformers.models.qwen2_vl.modeling_qwen2_vl import PatchEmbed

from inputs import embed, mixed_inputs
from plume import PlumeForEmbedding, decode_plume, packed_plume
from plume.context_plume import CachedContext
from plume.hub.random_checkpoint import fill_weights, save_random_plume
from plume.patches_plume import LinearPatchEmbed


def reference(model, processor, inputs, monkeypatch, **kwargs) -> torch.Tensor:
    """Vectors of transformers' own decoder, with the weights as they are."""
    with monkeypatch.context() as patch:
        patch.setattr("plume.context_plume.can_decode", lambda decoder: False)
        patch.setattr(model, "_packed", None)
        patch.setattr(model, "_recorded", None)
        return embed(model, processor, inputs, **kwargs)


def count_reads(monkeypatch) -> list[int]:
    """How many positions every pass of the step decoder reads."""
    reads, read = [], decode_plume.StepDecoder.read

    def counted(self, inputs, start, stop):
        reads.append(inputs.shape[1])
        return read(self, inputs, start, stop)

    monkeypatch.setattr(decode_plume.StepDecoder, "read", counted)
    return reads


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("num_latent_steps", [0, 1, 3, 8])
def test_steps_equal_transformers_decoder(model, processor, monkeypatch, fast, num_latent_steps):
    model.speed_up(fast)
    inputs = mixed_inputs()[:12]
    expected = reference(model, processor, inputs, monkeypatch, num_latent_steps=num_latent_steps)
    reads = count_reads(monkeypatch)
    found = embed(model, processor, inputs, num_latent_steps=num_latent_steps)
    assert (found - expected).abs().max() <= 1e-5
    assert reads == ([2] if num_latent_steps == 0 else [1] * (num_latent_steps - 1) + [3])


@pytest.mark.parametrize(("fast", "emulated"), [(False, False), (True, False), (True, True)])
def test_steps_equal_transformers_decoder_in_bfloat16(tmp_path, monkeypatch, fast, emulated):
    """Where bfloat16 is emulated, products of many rows are made in float32."""
    monkeypatch.setattr(packed_plume, "emulates_bfloat16", lambda: emulated)
    _, processor = save_random_plume(tmp_path, "small", num_latent_steps=3)
    model = PlumeForEmbedding.from_pretrained(tmp_path, dtype=torch.bfloat16).eval().speed_up(fast)
    copies = []
    for inputs in (mixed_inputs()[:1], mixed_inputs()[:12]):
        expected = reference(model, processor, inputs, monkeypatch)
        found = embed(model, processor, inputs)
        assert (1 - (found * expected).sum(-1)).max() <= 1e-3
        copies.append(set(model._packed._packed.layers[0].down._packed) if fast else None)
    if fast:
        assert copies == [{torch.bfloat16}, {torch.bfloat16, torch.float32} if emulated else {torch.bfloat16}]


@pytest.mark.parametrize(
    ("dtype", "emulated", "count"), [(torch.bfloat16, True, 1), (torch.bfloat16, False, 0), (torch.float32, True, 0)]
)
def test_emulated_bfloat16_is_warned_of(tmp_path, monkeypatch, dtype, emulated, count):
    monkeypatch.setattr("plume.checks_plume.emulates_bfloat16", lambda: emulated)
    messages = []
    monkeypatch.setattr("plume.checks_plume.logger.warning_once", messages.append)
    _, processor = save_random_plume(tmp_path, num_latent_steps=1)
    embed(PlumeForEmbedding.from_pretrained(tmp_path, dtype=dtype).eval(), processor, ["a red bus"])
    assert len(messages) == count
    assert all("dtype=torch.float32" in message for message in messages)


@pytest.mark.parametrize("fields", [{"use_shared_expert": False}, {"num_experts": 1, "num_active_experts": 1}])
def test_packed_experts_serve_the_ablations(tmp_path, monkeypatch, fields):
    model, processor = save_random_plume(tmp_path, num_latent_steps=3, **fields)
    model.speed_up()
    inputs = mixed_inputs()[:3]
    expected = reference(model, processor, inputs, monkeypatch)
    assert (embed(model, processor, inputs) - expected).abs().max() <= 1e-5


def test_packed_weights_follow_the_weights(model, processor, monkeypatch):
    model.speed_up()
    before = embed(model, processor, ["a red bus"])
    fill_weights(model, seed=5)
    after = embed(model, processor, ["a red bus"])
    assert (after - before).abs().max() > 1e-3
    assert (after - reference(model, processor, ["a red bus"], monkeypatch)).abs().max() <= 1e-5
    for weight in model.model.language_model.parameters():
        weight.data += 0.01  # as peft merges: neither address nor version changes
    merged = embed(model, processor, ["a red bus"])
    assert (merged - after).abs().max() > 1e-3
    assert (merged - reference(model, processor, ["a red bus"], monkeypatch)).abs().max() <= 1e-5
    after = merged
    model.bfloat16()
    in_half = embed(model, processor, ["a red bus"])
    assert 1e-6 < (in_half - after).abs().max() < 0.1


def test_copies_and_pickles_pack_for_themselves(model, processor):
    model.speed_up()
    expected = embed(model, processor, ["a red bus"])
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert (embed(other, processor, ["a red bus"]) - expected).abs().max() <= 1e-6
        assert other._packed is not model._packed
        assert other._packed._packed is not None


@pytest.mark.parametrize("place", ["mlp.down_proj", "self_attn.q_proj"])
def test_a_decoder_that_cannot_be_packed_says_so_and_runs(model, processor, monkeypatch, place):
    class Doubled(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return 2 * self.inner(x)

    messages = []
    monkeypatch.setattr("plume.packed_plume.logger.warning", messages.append)
    layer = model.model.language_model.layers[0]
    plain = embed(model, processor, ["a red bus"])
    layer.set_submodule(place, Doubled(layer.get_submodule(place)))
    doubled = embed(model, processor, ["a red bus"])
    assert (doubled - plain).abs().max() > 1e-3
    model.speed_up()
    for _ in range(2):
        assert (embed(model, processor, ["a red bus"]) - doubled).abs().max() <= 1e-6
    assert len(messages) == 1
    assert "Doubled" in messages[0]


@pytest.mark.parametrize("place", ["", "self_attn", "mlp", "self_attn.q_proj", "mlp.down_proj"])
def test_a_hook_in_a_layer_is_called_at_every_step(model, processor, place):
    calls = []
    model.speed_up()
    embed(model, processor, ["a red bus"], num_latent_steps=3)
    model.model.language_model.layers[1].get_submodule(place).register_forward_hook(lambda *args: calls.append(1))
    embed(model, processor, ["a red bus"], num_latent_steps=3)
    assert len(calls) == 1 + 3


def test_a_hook_on_the_experts_is_called_at_every_step(model, processor):
    calls = []
    model.speed_up()
    model.latent_transition.experts.register_forward_hook(lambda *args: calls.append(1))
    embed(model, processor, ["a red bus"], num_latent_steps=3)
    assert len(calls) == 3


def test_dropout_of_the_experts_is_kept_without_gradient(tmp_path, monkeypatch):
    """The first pass of GradCache runs without gradient and draws what the second draws again."""
    model, processor = save_random_plume(tmp_path, num_latent_steps=3, expert_dropout=0.5)
    model.train()
    graphs = Replayed(monkeypatch)
    found = []
    for fast in (False, True):
        model.speed_up(fast)
        torch.manual_seed(0)
        found.append(embed(model, processor, ["a red bus"]))
    assert graphs.recorded == 0
    assert torch.equal(*found)
    assert (embed(model, processor, ["a red bus"]) - found[0]).abs().max() > 1e-3


def test_eager_attention_is_left_to_transformers(checkpoint, processor, monkeypatch):
    reads = count_reads(monkeypatch)
    embed(PlumeForEmbedding.from_pretrained(checkpoint, attn_implementation="eager").eval(), processor, ["a red bus"])
    assert reads == []


def test_recording_hidden_states_leaves_the_fast_path_on(model, processor, monkeypatch):
    features = processor.process_documents(["a red bus"])
    with torch.no_grad():
        model(**features, causal_lm=True, output_hidden_states=True)
    reads = count_reads(monkeypatch)
    embed(model, processor, ["a red bus"])
    assert len(reads) == 3


@pytest.mark.parametrize("watch", [None, "hook", "wrapped"])
def test_patches_are_embedded_by_one_product_that_equals_the_convolution(model, watch):
    """Values and gradients; the convolution itself runs where something else happens at its call."""
    linear = copy.deepcopy(model.model.visual.patch_embed)
    convolution = copy.deepcopy(linear)
    convolution.__class__ = PatchEmbed
    calls = []
    if watch == "hook":
        linear.proj.register_forward_hook(lambda *_: calls.append("hook"))
    elif watch == "wrapped":
        linear.proj.__class__ = type("Wrapped", (torch.nn.Conv3d,), {})
    patches = torch.randn(6, 1176, generator=torch.Generator().manual_seed(0))
    assert isinstance(linear, LinearPatchEmbed)
    results = [part(patches) for part in (linear, convolution)]
    torch.testing.assert_close(*results, atol=1e-5, rtol=1e-4)
    convolved = ["Convolution" in type(result.grad_fn.next_functions[0][0]).__name__ for result in results]
    assert convolved == [watch is not None, True]
    for result in results:
        result.square().mean().backward()
    torch.testing.assert_close(linear.proj.weight.grad, convolution.proj.weight.grad, atol=1e-4, rtol=1e-4)
    assert calls == (["hook"] if watch == "hook" else [])


def gradients(model, processor, **options) -> list[torch.Tensor]:
    """Of all parameters, after a batch of mixed inputs."""
    model.zero_grad()
    output = model(**processor.process_documents(mixed_inputs()[:6]), **options)
    (output.embeddings[:, 0].sum() + output.router_probs.square().sum() + output.latent_states[:, 0].sum()).backward()
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


def test_gradients_equal_those_of_transformers_decoder(model, processor, monkeypatch):
    reads = count_reads(monkeypatch)
    fast = gradients(model, processor, num_latent_steps=4)
    assert reads == [1, 1, 1, 3]
    packed = gradients(model.speed_up(), processor, num_latent_steps=4)  # packed weights take no part
    monkeypatch.setattr("plume.context_plume.can_decode", lambda decoder: False)
    expected = gradients(model, processor, num_latent_steps=4)
    assert len(reads) == 8
    for one, other, plain in zip(fast, packed, expected, strict=True):
        assert torch.equal(one, other)
        torch.testing.assert_close(one, plain, atol=1e-5 * max(1.0, plain.abs().max().item()), rtol=1e-4)


def test_dropout_in_attention_is_left_to_transformers(model, processor, monkeypatch):
    reads = count_reads(monkeypatch)
    monkeypatch.setattr(model.config.text_config, "attention_dropout", 0.1)
    gradients(model.train(), processor)
    assert reads == []
    embed(model.eval(), processor, ["a red bus"])
    assert reads


def test_the_cache_neither_grows_nor_moves(model, processor):
    features = processor.process_documents(["a red bus"])
    with torch.no_grad():
        context = model._read_prefix(features["input_ids"], features["attention_mask"], [], num_reserved=4)
        assert isinstance(context, CachedContext)
        places = {layer: keys.data_ptr() for layer, (keys, _) in context._cache.buffers.items()}
        for _ in range(4):
            context.extend(context.hidden[:, -1:])
        assert places == {layer: keys.data_ptr() for layer, (keys, _) in context._cache.buffers.items()}
        with pytest.raises(AssertionError, match="reserved"):
            context.extend(context.hidden[:, -1:])


class Replayed:
    """Stands in for a CUDA graph: a recording is a second run over the same tensors."""

    def __init__(self, monkeypatch):
        self.recorded, self.replayed = 0, 0
        monkeypatch.setattr("plume.recorded_plume._can_record", lambda device: True)
        monkeypatch.setattr("plume.recorded_plume._record", self.record)

    def record(self, run, device):
        self.recorded += 1
        outputs = [tensor.clone() for tensor in run()]

        def replay():
            self.replayed += 1
            for tensor, value in zip(outputs, run(), strict=True):
                tensor.copy_(value)

        for tensor in outputs:  # what was recorded is not what is read: only a replay fills it
            tensor.fill_(torch.nan)
        return replay, tuple(outputs)


@pytest.mark.parametrize("num_latent_steps", [0, 3])
def test_replayed_rollouts_equal_transformers_decoder(model, processor, monkeypatch, num_latent_steps):
    """All but the capture itself: slots, padding to a multiple of 64 columns, copies in and out."""
    model.speed_up()
    model._packed = None
    graphs = Replayed(monkeypatch)
    batches = [mixed_inputs()[start : start + 4] for start in range(0, 24, 4)]
    with torch.inference_mode():
        model(**processor.process_documents(batches[0]), num_latent_steps=num_latent_steps)
    for inputs in batches:
        expected = reference(model, processor, inputs, monkeypatch, num_latent_steps=num_latent_steps)
        found = embed(model, processor, inputs, num_latent_steps=num_latent_steps)
        assert (found - expected).abs().max() <= 1e-5
        assert not found.is_inference()
    assert graphs.replayed == 1 + len(batches)
    assert graphs.recorded < len(batches)


def test_a_recording_is_dropped_with_its_weights(model, processor, monkeypatch):
    model.speed_up()
    graphs = Replayed(monkeypatch)
    embed(model, processor, ["a red bus"])
    fill_weights(model, seed=5)  # in place: the recording reads the new values
    embed(model, processor, ["a red bus"])
    assert graphs.recorded == 1
    model.latent_transition.experts.up_weight.data = model.latent_transition.experts.up_weight.data.clone()
    found = embed(model, processor, ["a red bus"])
    assert graphs.recorded == 2
    assert (found - reference(model, processor, ["a red bus"], monkeypatch)).abs().max() <= 1e-5


def test_hooks_and_other_choices_are_not_replayed_over(model, processor, monkeypatch):
    """Interventions on the transition hang on a hook, and a changed number of active experts is another rollout."""
    graphs = Replayed(monkeypatch)
    plain = embed(model, processor, ["a red bus"])
    model.speed_up()
    embed(model, processor, ["a red bus"])
    handle = model.latent_transition.register_forward_hook(lambda module, args, output: (output[0] + 1, output[1]))
    assert (embed(model, processor, ["a red bus"]) - plain).abs().max() > 1e-3
    handle.remove()
    assert (embed(model, processor, ["a red bus"]) - plain).abs().max() <= 1e-5
    assert (graphs.recorded, graphs.replayed) == (1, 2)
    model.latent_transition.num_active_experts = 1
    expected = reference(model, processor, ["a red bus"], monkeypatch)
    assert (expected - plain).abs().max() > 1e-4
    assert (embed(model, processor, ["a red bus"]) - expected).abs().max() <= 1e-5


def test_a_broken_batch_leaves_nothing_in_the_slot(model, processor, monkeypatch):
    Replayed(monkeypatch)
    model.speed_up()
    expected = reference(model, processor, ["a bus"], monkeypatch)
    embed(model, processor, ["a red bus and two dogs at a stop"])
    (slot,) = model._recorded._slots.values()
    for pair in slot._decoder._cache.buffers.values():
        for states in pair:
            states.fill_(torch.nan)
    assert (embed(model, processor, ["a bus"]) - expected).abs().max() <= 1e-5
    assert len(model._recorded._slots) == 1


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_rollout_that_cannot_be_recorded_says_so_once_and_runs(model, processor, monkeypatch, mode):
    def fail(run, device):
        run()
        raise RuntimeError("out of memory")

    messages = []
    monkeypatch.setattr("plume.recorded_plume.logger.warning", messages.append)
    monkeypatch.setattr("plume.recorded_plume._can_record", lambda device: True)
    monkeypatch.setattr("plume.recorded_plume._record", fail)
    features = processor.process_documents(["a red bus"])
    with mode():
        expected = model(**features).embeddings
        model.speed_up()
        for _ in range(2):
            assert (model(**features).embeddings - expected).abs().max() <= 1e-5
    assert len(messages) == 1
    assert "without a recording, which is slower: out of memory." in messages[0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_recorded_rollouts_equal_plain_ones_on_cuda(checkpoint, processor):
    model = PlumeForEmbedding.from_pretrained(checkpoint).eval().cuda()
    for inputs in (mixed_inputs()[:6], mixed_inputs()[6:12]):
        features = {name: value.cuda() for name, value in processor.process_documents(inputs).items()}
        with torch.no_grad():
            expected = model.speed_up(False)(**features).embeddings
            model.speed_up()
            found = [model(**features).embeddings for _ in range(2)]
        assert (torch.stack(found) - expected).abs().max() <= 1e-5
        assert len(model._recorded._slots) == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_recording_serves_other_batches_on_cuda(checkpoint, processor):
    model = PlumeForEmbedding.from_pretrained(checkpoint).eval().cuda()
    texts = (["a bus", "two dogs"], ["a red bus at a stop", "a sofa"], ["a bus", "two dogs"])
    batches = [{name: value.cuda() for name, value in processor.process_documents(list(t)).items()} for t in texts]
    with torch.no_grad():
        expected = [model(**features).embeddings for features in batches]
        model.speed_up()
        found = [model(**features).embeddings for features in batches]
    assert (torch.stack(found) - torch.stack(expected)).abs().max() <= 1e-5
    assert (expected[1] - expected[0]).abs().max() > 1e-3
    assert len(model._recorded._slots) == 1  # so the second and third replay what the first recorded

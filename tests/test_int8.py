"""Weights of eight bits: products, whole models of every backbone, weights that torchao quantized, and what is refused."""

import copy

import pytest
import torch
from torch.utils._python_dispatch import return_and_correct_aliasing
from transformers import AutoModel

from inputs import embed, mixed_inputs, noise_image
from inputs import every_backbone as model_type  # noqa: F401 (the fixture of this module)
from plume.apps.shared.batches import open_encoder
from plume.apps.shared.encoder import Encoder
from plume.hub import __main__ as command
from plume.hub import verify as verification
from plume.hub.random_checkpoint import fill_weights, save_random_plume
from plume.hub.verify import verify
from plume.speed import packed
from plume.speed.int8 import Int8Product, computes_exactly, quantize, read_quantized

TEXTS = ["a red bus", "two dogs on a sofa and more words"]

pytestmark = pytest.mark.skipif(not computes_exactly(), reason="this CPU does not multiply eight bits exactly")


def product_and_reference(x, bias=None):
    weight = quantize(torch.randn(48, x.shape[-1], generator=torch.Generator().manual_seed(0)))
    whole = weight.values.double() * weight.scale.double().unsqueeze(1)
    reference = x.double() @ whole.T + (0 if bias is None else bias.double())
    return Int8Product(weight, bias)(x), reference


# Products


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(96,), (1, 96), (2, 5, 96), (70, 96)])
def test_a_product_has_activations_of_sixteen_bits(shape, dtype):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    found, expected = product_and_reference(x, torch.arange(48.0))
    assert found.dtype == dtype
    assert (found - expected).norm() <= (1e-4 if dtype == torch.float32 else 1e-2) * expected.norm()


def test_a_large_activation_does_not_drown_the_others():
    """One byte would leave nothing of values under a 127th of the largest."""
    x = torch.randn(1, 96, generator=torch.Generator().manual_seed(1))
    x[0, 3] = 1000.0
    found, expected = product_and_reference(x)
    without = x.clone()
    without[0, 3] = 0.0
    others = product_and_reference(without)[1]
    assert (found - expected).norm() <= 0.02 * others.norm()


def test_rows_do_not_depend_on_each_other():
    x = torch.randn(9, 96, generator=torch.Generator().manual_seed(1))
    x[4] *= 1000
    product = Int8Product(quantize(torch.randn(48, 96)), None)
    assert torch.equal(product(x), torch.cat([product(row.unsqueeze(0)) for row in x]))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_row_that_is_not_finite_stays_so_and_zeros_give_the_bias(value):
    x = torch.zeros(3, 96)
    x[0, 5] = value
    found, _ = product_and_reference(x, torch.ones(48))
    assert not found[0].isfinite().any()
    assert torch.equal(found[1:], torch.ones(2, 48))


def test_a_kernel_that_saturates_is_found_out(monkeypatch):
    """As on CPUs that add pairs of products in 16 bits."""
    kernel = torch.ops.onednn.qlinear_pointwise

    def saturated(*args):
        return kernel(*args).clamp(max=8.0)

    monkeypatch.setattr(torch.ops.onednn, "qlinear_pointwise", saturated)
    assert not computes_exactly.__wrapped__()


def test_a_build_without_the_kernel_is_found_out(monkeypatch):
    monkeypatch.setattr("plume.speed.int8.Int8Product", lambda *args: torch.ops.onednn.no_such_kernel)
    assert not computes_exactly.__wrapped__()


# Models


@pytest.mark.parametrize("num_latent_steps", [0, 3, 8])
def test_vectors_keep_their_direction(model, processor, num_latent_steps):
    inputs = mixed_inputs()[:12]
    expected = embed(model, processor, inputs, num_latent_steps=num_latent_steps)
    found = embed(model.speed_up(int8=True), processor, inputs, num_latent_steps=num_latent_steps)
    assert (found - expected).abs().max() > 1e-5
    assert (found * expected).sum(-1).min() >= 0.999


def test_vectors_do_not_depend_on_how_many_rows_a_product_has(model, processor):
    """Products of many rows take the same weights as those of few."""
    inputs = [*mixed_inputs(), *TEXTS]
    model.speed_up(int8=True, reuse=False)
    singles = torch.cat([embed(model, processor, [item]) for item in inputs])
    assert (embed(model, processor, inputs) - singles).abs().max() <= 1e-4


def test_the_vision_tower_stays_in_its_own_dtype(model, processor):
    features = processor.process_documents([noise_image(1)])
    arguments = features["pixel_values"], features["image_grid_thw"]
    with torch.no_grad():
        expected = model.model.get_image_features(*arguments).pooler_output[0]
        found = model.speed_up(int8=True, reuse=False).model.get_image_features(*arguments).pooler_output[0]
    assert torch.equal(found, expected)


def test_eight_bits_follow_the_weights_and_can_be_taken_back(model, processor):
    plain = embed(model, processor, TEXTS)
    embed(model.speed_up(int8=True), processor, TEXTS)
    fill_weights(model, seed=5)
    changed = embed(model, processor, TEXTS)
    expected = embed(model.speed_up(False), processor, TEXTS)
    assert (changed * plain).sum(-1).max() < 0.9
    assert (changed * expected).sum(-1).min() >= 0.999


def test_gradients_are_those_of_the_full_weights(model, processor):
    features = processor.process_documents(TEXTS)
    found = []
    for fast in (False, True):
        model.zero_grad()
        model.speed_up(fast, int8=True)(**features).embeddings[:, 0].sum().backward()
        found.append(model.latent_transition.experts.up_weight.grad.clone())
    assert torch.equal(*found)


def test_copies_pack_eight_bits_for_themselves(model, processor):
    expected = embed(model.speed_up(int8=True), processor, TEXTS)
    other = copy.deepcopy(model)
    assert (embed(other, processor, TEXTS) - expected).abs().max() <= 1e-6
    kinds = {type(p) for m in other.modules() for p in getattr(vars(m).get("forward"), "products", [])}
    assert kinds == {Int8Product}


def test_a_cpu_that_cannot_packs_in_the_own_dtype_and_says_so(model, processor, monkeypatch):
    messages = []
    monkeypatch.setattr(packed, "computes_exactly", lambda: False)
    monkeypatch.setattr(packed.logger, "warning", messages.append)
    expected = embed(model, processor, TEXTS)
    assert (embed(model.speed_up(int8=True), processor, TEXTS) - expected).abs().max() <= 1e-5
    assert "their own dtype" in messages[0]


def test_eight_bits_without_packing_are_refused(model):
    with pytest.raises(ValueError, match="pack=False"):
        model.speed_up(int8=True, pack=False)


# Weights that torchao quantized


class QuantizedTensor(torch.Tensor):
    """What torchao's int8 weight-only quantization makes of a weight, as far as a model is loaded with it."""

    def __new__(cls, qdata, scale, block_size, zero_point=None, act_quant_kwargs=None):
        return torch.Tensor._make_wrapper_subclass(cls, qdata.shape, dtype=torch.float32)

    def __init__(self, qdata, scale, block_size, zero_point=None, act_quant_kwargs=None):
        self.qdata, self.scale, self.zero_point = qdata, scale, zero_point
        self.block_size, self.act_quant_kwargs = block_size, act_quant_kwargs

    def __tensor_flatten__(self):
        names = ["qdata", "scale", *(["zero_point"] if self.zero_point is not None else [])]
        return names, {"block_size": self.block_size, "act_quant_kwargs": self.act_quant_kwargs}

    @classmethod
    def __tensor_unflatten__(cls, parts, settings, size, stride):
        return cls(**parts, **settings)

    @classmethod
    def __torch_dispatch__(cls, function, types, args, kwargs=None):
        if function is torch.ops.aten.detach.default:
            own = args[0]
            copied = cls(own.qdata, own.scale, own.block_size, own.zero_point, own.act_quant_kwargs)
            return return_and_correct_aliasing(function, args, kwargs or {}, copied)
        whole = [arg.qdata.float() * arg.scale if isinstance(arg, cls) else arg for arg in args]
        return function(*whole, **(kwargs or {}))


def quantize_decoder(model, **changes):
    for module in model.model.language_model.layers.modules():
        if isinstance(module, torch.nn.Linear):
            weight = quantize(module.weight)
            settings = {
                "block_size": [1, module.in_features],
                "zero_point": torch.zeros(len(weight.scale), 1),
                **changes,
            }
            quantized = QuantizedTensor(weight.values, weight.scale.unsqueeze(1), **settings)
            module.weight = torch.nn.Parameter(quantized, requires_grad=False)


def test_quantized_weights_are_packed_as_they_are(model, processor, monkeypatch):
    messages = []
    monkeypatch.setattr(packed.logger, "warning", messages.append)
    quantize_decoder(model)
    expected = embed(model, processor, TEXTS)
    found = embed(model.speed_up(), processor, TEXTS)
    assert messages == []
    assert (found - expected).abs().max() <= 2e-4
    linear = model.model.language_model.layers[0].mlp.up_proj
    assert torch.equal(read_quantized(linear.weight).values, linear.weight.qdata)
    assert isinstance(linear.forward.products[0], Int8Product)


def test_packed_copies_of_quantized_weights_follow_them(model, processor):
    quantize_decoder(model)
    before = embed(model.speed_up(), processor, TEXTS)
    model.model.language_model.layers[0].mlp.down_proj.weight.scale.mul_(3.0)
    after = embed(model, processor, TEXTS)
    expected = embed(model.speed_up(False), processor, TEXTS)
    assert (after - before).abs().max() > 1e-3
    assert (after - expected).abs().max() <= 2e-4


@pytest.mark.parametrize(
    "changes",
    [{"block_size": [1, 16]}, {"zero_point": torch.ones(1, 1)}, {"act_quant_kwargs": "dynamic"}],
    ids=["groups", "asymmetric", "activations"],
)
def test_other_quantizations_run_as_they_are_and_say_so(model, processor, monkeypatch, changes):
    messages = []
    monkeypatch.setattr(packed.logger, "warning", messages.append)
    quantize_decoder(model, **changes)
    expected = embed(model, processor, TEXTS)
    assert (embed(model.speed_up(), processor, TEXTS) - expected).abs().max() <= 1e-5
    assert len(messages) == 1
    assert "torchao's symmetric int8" in messages[0]


# Serving and search


def test_vectors_of_eight_bits_have_another_identity(checkpoint):
    full, eight = (Encoder(str(checkpoint), "cpu", int8=int8) for int8 in (False, True))
    assert full.identity != eight.identity
    expected, found = (encoder.encode(TEXTS, "query") for encoder in (full, eight))
    assert 0.999 <= (expected * found).sum(-1).min() < 1 - 1e-7


@pytest.mark.parametrize(
    ("model", "options", "flag"),
    [(None, {"int8": True}, "--int8"), (None, {"reuse": False}, "--no-reuse"), ("tiny", {}, "--model")],
)
def test_an_exported_model_takes_no_options_of_a_checkpoint(tmp_path, model, options, flag):
    with pytest.raises(ValueError, match=f": {flag} would have no effect"):
        open_encoder(model, None, "auto", tmp_path, **options)


# What a checkpoint is blessed with


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("verified") / "tiny"
    save_random_plume(folder, num_latent_steps=3)
    return folder


@pytest.fixture
def only_bits(monkeypatch):
    """Leave out the checks of other tests."""
    for name in ("_entry_points", "_batches"):
        monkeypatch.setattr(verification, name, lambda *args: verification.Finding("left out", True, ""))


def test_eight_bits_are_blessed_per_number_of_steps(tiny, only_bits, capsys):
    assert command.main(["verify", str(tiny), "--int8"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "int8=True" in line)
    assert all(f" {k}: 0.999" in line or f" {k}: 1.000" in line for k in range(4))


def test_a_vector_that_turns_is_not_blessed(tiny, only_bits, monkeypatch):
    monkeypatch.setattr(packed, "quantize", lambda weight: quantize((weight * 8).round() / 8))
    finding = next(finding for finding in verify(tiny, int8=True) if "int8" in finding.name)
    assert not finding.passed
    assert "at least 0.999" in finding.detail


def test_a_quantized_copy_is_compared_with_the_checkpoint(tiny, only_bits, tmp_path):
    other = AutoModel.from_pretrained(tiny)
    for name, passed in (("same", True), ("other", False)):
        other.save_pretrained(tmp_path / name)
        finding = next(f for f in verify(tiny, quantized=tmp_path / name) if f.name == "quantized")
        assert finding.passed is passed
        fill_weights(other, seed=9)


def test_a_cpu_that_cannot_blesses_nothing(tiny, only_bits, monkeypatch):
    monkeypatch.setattr(verification, "computes_exactly", lambda: False)
    finding = next(finding for finding in verify(tiny, int8=True) if "int8" in finding.name)
    assert not finding.passed

"""Latent steps call the decoder's own layers, and every fast path gives the vectors of the plain one or says why not."""

import copy
import pickle

import pytest
import torch
from transformers import AutoModel

import plume
from inputs import embed, mixed_inputs
from inputs import every_backbone as model_type  # noqa: F401 (the fixture of this module)
from plume.cache_plume import CachedContext, RecomputedContext
from plume.hub.random_checkpoint import fill_weights, save_random_plume
from plume.speed import packed

TEXTS = ["a red bus", "two dogs on a sofa and more words"]


def recomputed(model, processor, inputs, monkeypatch, **kwargs) -> torch.Tensor:
    """Vectors of whole passes of transformers' own decoder."""
    with monkeypatch.context() as patch:
        patch.setattr("plume.cache_plume.CachedContext", RecomputedContext)
        return embed(model, processor, inputs, **kwargs)


def gradients(model, processor, **options) -> list[torch.Tensor]:
    """Of all parameters, after a batch of mixed inputs."""
    model.zero_grad()
    output = model(**processor.process_documents(mixed_inputs()[:6]), **options)
    (output.embeddings[:, 0].sum() + output.router_probs.square().sum() + output.latent_states[:, 0].sum()).backward()
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


def layer_of(model):
    return model.model.language_model.layers[1]


def patch_mlp(model):
    own = layer_of(model).mlp.forward
    layer_of(model).mlp.forward = lambda x: 1.5 * own(x)


def subclass_mlp(model):
    mlp = layer_of(model).mlp
    base = type(mlp)
    mlp.__class__ = type("Louder", (base,), {"forward": lambda self, x: 1.5 * base.forward(self, x)})


def subclass_attention(model):
    attention = layer_of(model).self_attn
    base = type(attention)

    def forward(self, *args, **kwargs):
        states, *rest = base.forward(self, *args, **kwargs)
        return 1.5 * states, *rest

    attention.__class__ = type("Louder", (base,), {"forward": forward})


def hook_layer_input(model):
    layer_of(model).register_forward_pre_hook(lambda module, args: (1.5 * args[0], *args[1:]))


def hook_linear(model):
    layer_of(model).self_attn.v_proj.register_forward_hook(lambda module, args, output: 1.5 * output)


def replace_linear(model):
    class Doubled(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return 2 * self.inner(x)

    layer_of(model).mlp.down_proj = Doubled(layer_of(model).mlp.down_proj)


INTERVENTIONS = [patch_mlp, subclass_mlp, subclass_attention, hook_layer_input, hook_linear, replace_linear]


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("intervene", INTERVENTIONS, ids=lambda function: function.__name__)
def test_what_replaces_a_modules_call_counts_in_every_step(model, processor, monkeypatch, intervene, fast):
    plain = embed(model, processor, TEXTS)
    if fast:  # before and after: both orders must hold
        model.speed_up()
    intervene(model)
    expected = recomputed(model, processor, TEXTS, monkeypatch)
    assert (expected - plain).abs().max() > 1e-3
    assert (embed(model, processor, TEXTS) - expected).abs().max() <= 1e-5
    if fast:
        assert (embed(model.speed_up(), processor, TEXTS) - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("register", ["register_full_backward_hook", "register_full_backward_pre_hook"])
def test_backward_hooks_see_every_step(model, processor, register):
    calls = []
    getattr(layer_of(model).mlp, register)(lambda *args: calls.append(1) and None)
    gradients(model, processor, num_latent_steps=3)
    assert len(calls) == 1 + 3


def test_global_hooks_see_every_step(model, processor):
    calls, layer = [], layer_of(model)
    handle = torch.nn.modules.module.register_module_forward_hook(lambda module, *_: calls.append(module))
    try:
        embed(model, processor, TEXTS, num_latent_steps=3)
    finally:
        handle.remove()
    assert sum(module is layer.mlp for module in calls) == 1 + 3


@pytest.mark.parametrize("place", ["layer", "experts"])
def test_a_forward_hook_is_called_at_every_step_of_a_packed_model(model, processor, place):
    calls = []
    model.speed_up()
    module, passes = (layer_of(model), 1 + 3) if place == "layer" else (model.latent_transition.experts, 3)
    module.register_forward_hook(lambda *args: calls.append(1))
    embed(model, processor, ["a red bus"], num_latent_steps=3)
    assert len(calls) == passes


@pytest.mark.parametrize("num_latent_steps", [0, 1, 3, 8])
def test_packed_steps_equal_plain_ones(model, processor, num_latent_steps):
    inputs = mixed_inputs()[:12]
    expected = embed(model, processor, inputs, num_latent_steps=num_latent_steps)
    found = embed(model.speed_up(), processor, inputs, num_latent_steps=num_latent_steps)
    assert (found - expected).abs().max() <= 1e-5


def packed_products(model) -> list[packed.PackedProduct]:
    forwards = [vars(m)["forward"] for m in model.modules() if isinstance(vars(m).get("forward"), packed.PackedForward)]
    return [product for forward in forwards for product in forward.products]


@pytest.mark.slow
@pytest.mark.parametrize("emulated", [False, True])
def test_packed_steps_equal_plain_ones_in_bfloat16(model_type, tmp_path, monkeypatch, emulated):  # noqa: F811
    """If the CPU emulates bfloat16, products of many rows are made in float32."""
    monkeypatch.setattr(packed, "emulates_bfloat16", lambda: emulated)
    _, processor = save_random_plume(tmp_path, "small", model_type=model_type, num_latent_steps=3)
    model = AutoModel.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    inputs = mixed_inputs()[:6]
    expected = embed(model, processor, inputs)
    found = embed(model.speed_up(), processor, inputs)
    assert (1 - (found * expected).sum(-1)).max() <= 1e-3
    dtypes = {dtype for product in packed_products(model) for dtype in product._packed}
    assert dtypes == {torch.float32 if emulated else torch.bfloat16}


@pytest.mark.parametrize("fields", [{"use_shared_expert": False}, {"num_experts": 1, "num_active_experts": 1}])
def test_packed_experts_serve_the_ablations(tmp_path, fields):
    model, processor = save_random_plume(tmp_path, num_latent_steps=3, **fields)
    expected = embed(model, processor, TEXTS)
    assert (embed(model.speed_up(), processor, TEXTS) - expected).abs().max() <= 1e-5


def refill(model):
    fill_weights(model, seed=5)


def merge(model):
    for weight in model.model.language_model.parameters():
        weight.data += 0.01  # as peft merges: neither address nor version changes


@pytest.mark.parametrize("change", [refill, merge], ids=lambda function: function.__name__)
def test_packed_weights_follow_the_weights(model, processor, change):
    before = embed(model.speed_up(), processor, TEXTS)
    change(model)
    fast = embed(model, processor, TEXTS)
    plain = embed(model.speed_up(False), processor, TEXTS)
    assert (plain - before).abs().max() > 1e-3
    assert (fast - plain).abs().max() <= 1e-5


def test_copies_and_pickles_pack_for_themselves(model, processor):
    expected = embed(model.speed_up(), processor, TEXTS)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert packed_products(other) == []
        assert (embed(other, processor, TEXTS) - expected).abs().max() <= 1e-6
        assert packed_products(other)
        fill_weights(other, seed=5)
        assert (embed(other, processor, TEXTS) - expected).abs().max() > 1e-3
    assert (embed(model, processor, TEXTS) - expected).abs().max() <= 1e-6


def test_speed_up_can_be_taken_back(model, processor):
    embed(model.speed_up().speed_up(), processor, TEXTS)
    decoder = model.model.language_model
    assert len(decoder._forward_pre_hooks) == 1
    model.speed_up(False)
    assert packed_products(model) == []
    assert not decoder._forward_pre_hooks


class Int8(torch.nn.Linear):
    """A quantized layer by its class."""


class Int8Tensor(torch.Tensor):
    """A quantized weight by its class, as torchao has them."""


def quantize_weight(model):
    linear = layer_of(model).mlp.up_proj
    linear.weight = torch.nn.Parameter(linear.weight.detach().as_subclass(Int8Tensor), requires_grad=False)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (quantize_weight, "plain form"),
        (lambda model: setattr(layer_of(model).mlp.up_proj, "__class__", Int8), "replaced or wrapped"),
        (
            lambda model: setattr(layer_of(model).mlp.up_proj, "forward", lambda x: 1.5 * x[..., :1]),
            "something else replaces",
        ),
        (lambda model: layer_of(model).double(), "float32 or bfloat16"),
    ],
    ids=["weight subclass", "subclass", "patched", "float64"],
)
def test_what_cannot_be_packed_is_said_once(model, monkeypatch, change, words):
    messages = []
    monkeypatch.setattr(packed.logger, "warning", messages.append)
    change(model)
    model.speed_up()
    assert len(messages) == 1
    assert words in messages[0]


def test_peft_on_the_experts_leaves_them_as_they_are(model, processor):
    """The wrapper that `target_parameters` puts around the experts has no weights of its own to pack."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=[], target_parameters=["experts.up_weight", "experts.down_weight"])
    wrapped = peft.get_peft_model(model, config).eval()
    with torch.no_grad():
        for name, weight in wrapped.named_parameters():
            if "lora_B" in name:
                weight.fill_(0.1)
    expected = embed(model, processor, TEXTS)
    assert (embed(model.speed_up(), processor, TEXTS) - expected).abs().max() <= 1e-5


def test_a_model_from_remote_code_alone_says_so_and_runs(model, processor, monkeypatch):
    messages = []
    monkeypatch.setattr("plume.modeling_plume.logger.warning", messages.append)
    monkeypatch.setitem(__import__("sys").modules, "plume.speed", None)
    expected = embed(model, processor, TEXTS)
    assert torch.equal(embed(model.speed_up(), processor, TEXTS), expected)
    assert len(messages) == 1
    assert "pip install" in messages[0]


@pytest.mark.parametrize(
    ("dtype", "emulated", "count"), [(torch.bfloat16, True, 1), (torch.bfloat16, False, 0), (torch.float32, True, 0)]
)
def test_emulated_bfloat16_is_warned_of(checkpoint, processor, monkeypatch, dtype, emulated, count):
    monkeypatch.setattr("plume.speed.bfloat16.emulates_bfloat16", lambda: emulated)
    messages = []
    monkeypatch.setattr("plume.speed.bfloat16.logger.warning_once", messages.append)
    plume.load(checkpoint, dtype=dtype, device="cpu")
    AutoModel.from_pretrained(checkpoint, dtype=dtype).speed_up()
    assert len(messages) == 2 * count
    assert all("dtype=torch.float32" in message for message in messages)


def test_dropout_of_the_experts_is_kept_without_gradient(model, processor):
    """The first pass of GradCache runs without gradient and draws what the second draws again."""
    model.latent_transition.experts.dropout.p = 0.5
    model.train()
    found = []
    for fast in (False, True):
        model.speed_up(fast)
        torch.manual_seed(0)
        found.append(embed(model, processor, ["a red bus"]))
    assert torch.equal(*found)
    assert (embed(model, processor, ["a red bus"]) - found[0]).abs().max() > 1e-3


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_gradients_equal_those_of_whole_passes(checkpoint, processor, monkeypatch, kernel):
    model = AutoModel.from_pretrained(checkpoint, attn_implementation=kernel).eval()
    stepwise = gradients(model, processor, num_latent_steps=4)
    packed_model = gradients(model.speed_up(), processor, num_latent_steps=4)  # packed weights take no part
    monkeypatch.setattr("plume.cache_plume.CachedContext", RecomputedContext)
    expected = gradients(model, processor, num_latent_steps=4)
    for one, other, plain in zip(stepwise, packed_model, expected, strict=True):
        assert torch.equal(one, other)
        torch.testing.assert_close(one, plain, atol=1e-5 * max(1.0, plain.abs().max().item()), rtol=1e-4)


def test_the_cache_takes_no_more_columns_than_reserved(model, processor):
    features = processor.process_documents(["a red bus"])
    with torch.no_grad():
        context = model.read_prefix(features["input_ids"], features["attention_mask"], model.media_of({}), reserved=4)
        assert isinstance(context, CachedContext)
        for _ in range(4):
            context.extend(context.hidden[:, -1:])
        with pytest.raises(AssertionError, match="reserved"):
            context.extend(context.hidden[:, -1:])


def test_patches_are_embedded_by_one_product_that_equals_the_convolution(model):
    """Values, gradients and hooks; without the convolution's own code."""
    product = copy.deepcopy(model.model.visual.patch_embed)
    convolution = copy.deepcopy(product)
    convolution.proj.__class__ = torch.nn.Conv3d
    product.proj._conv_forward = None
    shapes = []
    for part in (product, convolution):
        part.proj.register_forward_hook(lambda module, given, output: shapes.append(output.shape))
    patches = torch.randn(6, product.proj.weight[0].numel(), generator=torch.Generator().manual_seed(0))
    results = [part(patches) for part in (product, convolution)]
    torch.testing.assert_close(*results, atol=1e-5, rtol=1e-4)
    for result in results:
        result.square().mean().backward()
    torch.testing.assert_close(product.proj.weight.grad, convolution.proj.weight.grad, atol=1e-4, rtol=1e-4)
    assert shapes[0] == shapes[1]

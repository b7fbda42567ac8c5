"""An exported model without torch gives the vectors of the model, and nothing but an intact export runs.

One export of plume-tiny and one of it in eight bits serve the module; each takes half a minute.
"""

import contextlib
import json
import logging
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

import onnx
import onnx_ir as ir
import onnxruntime

import plume
from inputs import MEDIA, ROOT, mixed_inputs, noise_image, noise_video
from plume.benchmarks.__main__ import main as bench
from plume.hub.export import OPSET, _without_remarks, export
from plume.hub.export.eight_bits import quantize, quantize_weight
from plume.hub.random_checkpoint import save_random_plume
from plume.runtime import Runtime
from plume.runtime.golden import check_golden
from plume.runtime.manifest import CHECKPOINT_KEY, DECODER, MANIFEST, TOKENS, Manifest, Settings, write_manifest

TINY = ROOT / "checkpoints" / "plume-tiny"
KINDS = {
    "texts": ["a red bus", "two dogs on a sofa, and the total of the second row", "x" * 300],
    "pictures": [noise_image(seed, 56 + 28 * seed) for seed in range(3)],
    "clips": [{"video": noise_video(seed, 2 + seed)} for seed in range(2)],
    "mixtures": [{"image": [noise_image(1), noise_image(2, 112)], "text": "a bus"}, {"video": noise_video(3), "text": "b"}],
}  # fmt: skip


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "tiny"
    export("tiny", folder)
    return folder


@pytest.fixture(scope="module")
def runtime(exported) -> Runtime:
    return Runtime(exported)


@pytest.fixture(scope="module")
def loaded():
    return plume.load(TINY, dtype="float32")


def vectors_of(loaded, items, steps=None, task="document") -> np.ndarray:
    return plume.embed(items, loaded, task=task, num_latent_steps=steps, progress=False).vectors


@pytest.mark.slow
@pytest.mark.parametrize("steps", [0, 1, 3, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_the_vectors_are_the_models(runtime, loaded, kind, steps):
    expected = vectors_of(loaded, KINDS[kind], steps)
    assert np.abs(runtime.encode(KINDS[kind], num_latent_steps=steps) - expected).max() <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 17])
def test_a_batch_of_any_mixture_gives_the_models_vectors(runtime, loaded, count):
    items = mixed_inputs()[:count]
    assert np.abs(runtime.encode(items) - vectors_of(loaded, items)).max() <= 1e-5
    assert np.abs(runtime.encode(items, batch_tokens=1) - vectors_of(loaded, items)).max() <= 1e-5  # one by one


@pytest.mark.slow
def test_queries_files_and_prompts_are_read_as_the_model_reads_them(runtime, loaded):
    items = [{"image": MEDIA / "bus.png", "text": "open <slt> red"}, {"video": MEDIA / "rolling_ball.mp4"}]
    assert np.abs(runtime.encode(items, "query") - vectors_of(loaded, items, task="query")).max() <= 1e-5
    told = plume.embed(["a"], loaded, prompt="Find a page.", progress=False).vectors
    assert np.abs(runtime.encode(["a"], prompt="Find a page.") - told).max() <= 1e-5


@pytest.mark.slow
def test_latent_states_and_routing_are_the_models(runtime, loaded):
    model, processor = loaded
    inputs = processor.process_documents(["a red bus", noise_image(1)])
    with torch.inference_mode():
        expected = model(**inputs, num_latent_steps=5)
    found = runtime.run({name: tensor.numpy() for name, tensor in inputs.items()}, 5)
    assert np.abs(found.latent_states - expected.latent_states.numpy()).max() <= 1e-4  # of a size of some units
    assert np.abs(found.router_probs - expected.router_probs.numpy()).max() <= 1e-5


@pytest.mark.parametrize(("remarks", "heard"), [(_without_remarks, (False, 0)), (contextlib.nullcontext, (True, 1))])
def test_torch_s_remarks_on_itself_are_silent_during_an_export_only(remarks, heard, recwarn):
    with remarks():
        warnings.warn("`isinstance(treespec, LeafSpec)` is deprecated", FutureWarning, stacklevel=1)
        is_enabled = logging.getLogger("torch.onnx._internal.exporter._registration").isEnabledFor(logging.WARNING)
    assert (is_enabled, len(recwarn)) == heard


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["kv_length", "one expert"])
def test_variants_of_the_configuration_are_exported(tmp_path, layout):
    fields = {"position_scheme": "kv_length"} if layout == "kv_length" else {"num_experts": 1, "num_active_experts": 1}
    save_random_plume(tmp_path / "model", num_latent_steps=2, max_latent_steps=2, **fields)
    assert export(tmp_path / "model", tmp_path / "out") <= 1e-5


@pytest.mark.slow
def test_eight_bits_keep_every_cosine_above_the_limit(exported, tmp_path, loaded):
    assert export("tiny", tmp_path / "out", int8=True) <= 1e-3
    items = mixed_inputs()
    cosines = (Runtime(tmp_path / "out").encode(items) * vectors_of(loaded, items)).sum(axis=1)
    assert cosines.min() >= 0.999
    full, half = ((folder / "decoder.onnx.data").stat().st_size for folder in (exported, tmp_path / "out"))
    assert half < 0.4 * full


@pytest.mark.parametrize("width", [64, 40], ids=["whole blocks", "a block that is cut"])
def test_eight_bits_round_weights_and_not_states(width):
    rng = np.random.default_rng(0)
    states, weight = (rng.standard_normal(shape, np.float32) for shape in ((2, 3, width), (width, 8)))
    states[0, 0], states[0, 1, :32] = 0, 0
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "w"], ["y"])], "product",
        [value("x", 1, [None, None, width])], [value("y", 1, None)], [onnx.numpy_helper.from_array(weight, "w")],
    )  # fmt: skip
    model = ir.from_proto(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", OPSET)], ir_version=10)
    )
    quantize(model)
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString())
    steps, scales = quantize_weight(weight)
    rounded = ((steps.astype(np.float32) - 128) * scales[..., None]).reshape(8, -1)[:, :width].T
    expected = states @ rounded
    assert np.abs(session.run(None, {"x": states})[0] - expected).max() <= 1e-4 * np.abs(expected).max()
    assert np.abs(rounded - weight).max() > 1e-3  # which is how much rounding is


@pytest.mark.slow
def test_the_shape_of_a_quarter_billion_weights_is_exported(tmp_path):
    save_random_plume(tmp_path / "model", size="0.2b")
    assert export(tmp_path / "model", tmp_path / "out") <= 1e-5
    loaded = plume.load(tmp_path / "model", dtype="float32")
    runtime = Runtime(tmp_path / "out")
    for items in (KINDS["texts"][:1], mixed_inputs()[:17]):
        for steps in (0, 3, 8):
            apart = np.abs(runtime.encode(items, num_latent_steps=steps) - vectors_of(loaded, items, steps)).max()
            assert apart <= 1e-5, (len(items), steps)


# What is refused


@pytest.mark.slow
@pytest.mark.parametrize(("steps", "message"), [(-1, "in 0..32"), (33, "in 0..32"), (True, "no integer")])
def test_a_k_that_the_model_does_not_know_is_refused(runtime, steps, message):
    with pytest.raises(ValueError, match=message):
        runtime.encode(["a"], num_latent_steps=steps)


@pytest.mark.slow
def test_unusable_inputs_and_arguments_are_named(runtime):
    for items, options, message in (
        (["a", 3], {}, r"Input 1: An input is given as int"),
        (["a", "b " * 6000], {"truncation": False}, r"Input 1: An input has .* tokens or more, over max_length=4096"),
        (["a"], {"max_pixel": 3}, r"Unknown options \['max_pixel'\]"),
        (["a"], {"task": "passage"}, r"use the task 'document' or 'query'"),
        ("a", {}, r"Pass a list of inputs"),
    ):
        with pytest.raises(ValueError, match=message):
            runtime.encode(items, **options)


def change_byte(path: Path, place: int = -10) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(bytes(content))


def refit_manifest(folder: Path) -> None:
    """What someone does who wants changed files to pass."""
    content = json.loads((folder / MANIFEST).read_text())
    settings = Settings(**content["settings"])
    write_manifest(folder, Manifest(content["checkpoint"], content["int8"], settings, {}, content["versions"]))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["decoder.onnx", "decoder.onnx.data", "vision.onnx.data", "tokenizer.json",
                                  "chat_template.jinja", "golden.npz"])  # fmt: skip
def test_a_changed_byte_is_refused(exported, tmp_path, name):
    shutil.copytree(exported, tmp_path / "copy")
    change_byte(tmp_path / "copy" / name)
    with pytest.raises(ValueError, match=rf"{name} is not the file that was exported"):
        Runtime(tmp_path / "copy")


@pytest.mark.slow
def test_a_changed_or_missing_manifest_and_a_missing_file_are_refused(exported, tmp_path):
    with pytest.raises(ValueError, match="no exported model"):
        Runtime(TINY)
    shutil.copytree(exported, tmp_path / "copy")
    manifest = tmp_path / "copy" / MANIFEST
    whole = manifest.read_text()
    manifest.write_text(whole.replace('"num_latent_steps": 8', '"num_latent_steps": 7'))
    with pytest.raises(ValueError, match="was changed after the export"):
        Runtime(tmp_path / "copy")
    manifest.write_text(whole[:-100])
    with pytest.raises(ValueError, match="damaged"):
        Runtime(tmp_path / "copy")
    manifest.write_text(whole)
    (tmp_path / "copy" / "vision.onnx").unlink()
    with pytest.raises(ValueError, match=r"lacks vision\.onnx"):
        Runtime(tmp_path / "copy")


@pytest.mark.slow
def test_a_graph_of_another_checkpoint_is_refused_even_if_the_manifest_fits(exported, tmp_path):
    shutil.copytree(exported, tmp_path / "copy")
    graph = onnx.load(tmp_path / "copy" / DECODER, load_external_data=False)
    for entry in graph.metadata_props:
        entry.value = "another 123" if entry.key == CHECKPOINT_KEY else entry.value
    onnx.save(graph, tmp_path / "copy" / DECODER)
    refit_manifest(tmp_path / "copy")
    with pytest.raises(ValueError, match=r"a graph of another checkpoint \(another 123\)"):
        Runtime(tmp_path / "copy").encode(["a"])


@pytest.mark.slow
def test_an_operator_that_is_missing_is_named(exported, tmp_path):
    shutil.copytree(exported, tmp_path / "copy")
    graph = onnx.load(tmp_path / "copy" / TOKENS, load_external_data=False)
    next(node for node in graph.graph.node if node.op_type == "Gather").op_type = "GatherFaster"
    onnx.save(graph, tmp_path / "copy" / TOKENS)
    refit_manifest(tmp_path / "copy")
    with pytest.raises(ValueError, match=r"onnxruntime .* cannot load .*GatherFaster"):
        Runtime(tmp_path / "copy")


@pytest.mark.slow
def test_golden_vectors_that_are_not_met_are_told(exported, tmp_path):
    shutil.copytree(exported, tmp_path / "copy")
    with np.load(exported / "golden.npz") as golden:
        np.savez(tmp_path / "copy" / "golden.npz", **{name: golden[name] + 1e-4 for name in golden})
    refit_manifest(tmp_path / "copy")
    with pytest.raises(ValueError, match=r"does not give the vectors of its checkpoint: a number differs by 1\.0e-04"):
        check_golden(Runtime(tmp_path / "copy"))


def test_another_backbone_is_refused_by_name(tmp_path):
    save_random_plume(tmp_path / "model", model_type="qwen3_vl")
    with pytest.raises(ValueError, match="'plume_qwen3_vl' model, and only those over Qwen2-VL"):
        export(tmp_path / "model", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_with_other_files_is_not_written_into(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="exists and is not empty"):
        export("tiny", tmp_path)


@pytest.mark.slow
def test_an_export_is_timed_next_to_its_model(exported, tmp_path):
    def written(*model):
        options = ["--output", str(tmp_path / "costs.json"), "--device", "cpu", "--minutes", "0.01"]
        bench(["compare", *model, "--runtime", str(exported), "--inputs", "query12", "--systems", "plume_k8", *options])
        return json.loads((tmp_path / "costs.json").read_text())

    assert [row["system"] for row in written("--model", "tiny")["rows"]] == ["plume_k8", "runtime_k8"]
    with pytest.raises(ValueError, match="exported from another checkpoint than .*anytime"):
        written("--model", "anytime")
    with pytest.raises(ValueError, match="name it with --model"):
        written()

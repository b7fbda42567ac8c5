"""The evaluation and its baselines open a checkpoint of any backbone by its path."""

import pytest
import torch
from datasets import Dataset, Features, Image, Value

import plume
from inputs import noise_image, noise_video
from plume.evaluation.audit.passes import Reader
from plume.evaluation.baselines import load
from plume.evaluation.embedders import ModelEmbedder, load_embedder, prepare
from plume.hub import MODEL_TYPES
from plume.hub.random_checkpoint import save_random_plume

OF_QWEN2_VL = {
    *("latent_steps", "anchor_token", "dtype", "checkpoint", "blank_image_size"),
    *("min_pixels", "max_pixels", "video_min_pixels", "video_max_pixels"),
}
INPUTS = [
    {"text": "a red bus at a stop"},
    {"image": noise_image(1), "text": "two dogs"},
    {"video": noise_video(2, 6)},
]


@pytest.fixture(scope="module", params=MODEL_TYPES)
def folder(request, tmp_path_factory):
    path = tmp_path_factory.mktemp(request.param)
    save_random_plume(path, model_type=request.param, num_latent_steps=3, max_latent_steps=8)
    return path


@pytest.fixture(scope="module")
def loaded(folder):
    return plume.load(folder, device="cpu")


def test_a_checkpoint_is_opened_by_its_path_alone(folder, loaded):
    model, processor = loaded
    with torch.no_grad():
        expected = model(**prepare(model, processor, INPUTS)).embeddings
    vectors = load_embedder(folder, devices=["cpu"]).encode(INPUTS, "query")
    assert torch.equal(vectors, expected)


def test_no_rationale_is_the_single_pass(loaded):
    explicit, single = load("explicit-cot", *loaded, max_new_tokens=0), load("single-pass", *loaded)
    assert (explicit.encode(INPUTS, "query") - single.encode(INPUTS, "query")).abs().max() <= 1e-5


def test_a_batch_writes_and_embeds_what_single_inputs_do(loaded):
    explicit = load("explicit-cot", *loaded, max_new_tokens=5)
    together = explicit.encode(INPUTS, "query")
    alone = torch.cat([explicit.encode([item], "query") for item in INPUTS])
    assert (together - alone).abs().max() <= 1e-5


def test_the_audit_reads_every_k_as_the_model_does(loaded):
    items = INPUTS[:2]
    features = Features({"text": Value("string"), "image": Image()})
    data = Dataset.from_list([{"image": None, **item} for item in items], features=features)
    reading = Reader(*loaded, 3, batch_size=2).read(data, (0, 1, 5))
    with torch.no_grad():
        for steps, vectors in reading.embeddings.items():
            alone = loaded[0](**prepare(*loaded, items), num_latent_steps=steps).embeddings
            assert (vectors - alone).abs().max() <= 1e-5


def test_results_say_which_pixels_were_read(loaded):
    model, processor = loaded
    condition = ModelEmbedder(model, processor).condition
    told = {"qwen2_vl": set(), "qwen2_5_vl": {"time_positions"}, "qwen3_vl": {"patch_size", "timestamps", "image_mean"}}
    name = model.config.model_type.removeprefix("plume_").replace("plume", "qwen2_vl")
    assert told[name] <= condition.keys()
    assert name != "qwen2_vl" or condition.keys() == OF_QWEN2_VL, "results of before this was told still hold"
    processor.resize = "twice"
    try:
        assert ModelEmbedder(model, processor).condition != condition
    finally:
        processor.resize = "once"

"""What one backbone does and another does not: positions in time, deepstack, an embedder's own vectors, classes."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoProcessor, AutoTokenizer, Qwen3VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

import plume
from inputs import MEDIA, embed, noise_image, noise_video
from plume.hub import MODEL_TYPES
from plume.hub.random_checkpoint import save_random_backbone, save_random_plume
from plume.layouts import EMBEDDER_LAYOUT
from plume.positions_plume import Media, mrope_index

VIDEO = 9


@pytest.fixture(scope="module", params=MODEL_TYPES)
def plain(request, tmp_path_factory):
    """A plain checkpoint of every backbone."""
    return save_random_backbone(tmp_path_factory.mktemp("plain"), model_type=request.param), request.param


def test_from_backbone_picks_class_and_configuration(plain):
    folder, model_type = plain
    model, processor = plume.from_backbone(folder, num_latent_steps=2)
    assert model.config.model_type == ("plume" if model_type == "qwen2_vl" else f"plume_{model_type}")
    assert type(model) is plume.start.MODEL_CLASSES[model_type]
    assert model.config.num_latent_steps == 2
    assert not model.latent_transition.experts.down_weight.any()  # a fresh adapter is the identity
    assert model.latent_transition.experts.up_weight.any()
    for new_id, source_id in processor.row_sources.items():
        assert torch.equal(model.get_input_embeddings().weight[new_id], model.get_input_embeddings().weight[source_id])


def test_from_backbone_reports_nothing_missing(plain, monkeypatch):
    messages = []
    monkeypatch.setattr("transformers.modeling_utils.logger.warning", messages.append)
    plume.from_backbone(plain[0])
    assert messages == []


def test_from_backbone_refuses_another_model(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ValueError, match="'bert' is not a backbone of PLUME"):
        plume.from_backbone(tmp_path)


def test_a_checkpoint_of_one_backbone_is_refused_by_the_class_of_another(tmp_path):
    save_random_plume(tmp_path, model_type="qwen3_vl")
    with pytest.raises(ValueError, match="AutoModel.from_pretrained, which picks the class"):
        plume.PlumeForEmbedding.from_pretrained(tmp_path)


def test_a_saved_checkpoint_carries_its_own_backbone_alone(tmp_path):
    for model_type in MODEL_TYPES:
        save_random_plume(tmp_path / model_type, model_type=model_type)
        names = {path.name for path in (tmp_path / model_type).glob("modeling_plume_*.py")}
        assert names == (set() if model_type == "qwen2_vl" else {f"modeling_plume_{model_type}.py"})


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_every_backbone_loads_by_its_own_code(model_type, tmp_path, remote):
    model, processor = save_random_plume(tmp_path / model_type, model_type=model_type)
    expected = embed(model, processor, ["a red bus"]).numpy()
    assert np.abs(remote("transformers", tmp_path / model_type, ["a red bus"]) - expected).max() <= 1e-6


# Positions


def test_time_advances_by_seconds_where_the_backbone_says_so():
    """Qwen2.5-VL: frame f stands at start + floor(f * step); text goes on after the largest position of any axis."""
    ids = torch.tensor([[1, *[VIDEO] * 12, 2]])
    media = [Media(VIDEO, None, torch.tensor([[3, 4, 4]]), torch.tensor([2.5]))]
    positions, following = mrope_index(ids, torch.ones_like(ids), media, merge_size=2)
    assert positions[0, 0].tolist() == [0, *[1] * 4, *[3] * 4, *[6] * 4, 7]
    assert positions[1, 0].tolist() == [0, *[1, 1, 2, 2] * 3, 7]
    assert following.tolist() == [8]


def test_frames_are_items_of_their_own_where_the_backbone_says_so():
    """Qwen3-VL: timestamps stand between the frames of a clip, and no frame advances time."""
    ids = torch.tensor([[1, *[VIDEO] * 4, 3, *[VIDEO] * 4, 2]])
    media = [Media(VIDEO, None, torch.tensor([[2, 4, 4]]), frames_apart=True)]
    positions, _ = mrope_index(ids, torch.ones_like(ids), media, merge_size=2)
    assert positions[0, 0].tolist() == [0, *[1] * 4, 3, *[4] * 4, 6]
    assert positions[2, 0].tolist() == [0, 1, 2, 1, 2, 3, 4, 5, 4, 5, 6]


def test_seconds_between_frames_change_a_vector_of_qwen2_5_vl_only(tmp_path):
    for model_type in ("qwen2_5_vl", "qwen2_vl"):
        model, processor = save_random_plume(tmp_path / model_type, model_type=model_type, num_latent_steps=1)
        features = dict(processor.process_documents([{"video": noise_video(1, 6)}]))
        features["second_per_grid_ts"] = torch.tensor([1.0])
        with torch.no_grad():
            slow = model(**features).embeddings
            features["second_per_grid_ts"] = torch.tensor([3.0])
            moved = (model(**features).embeddings - slow).abs().max()
        assert (moved > 1e-4) == (model_type == "qwen2_5_vl")


# Qwen3-VL-Embedding


def published(folder, prompts: list[str], images, padding_side: str) -> torch.Tensor:
    """Vectors by the published recipe: transformers' own model, last attended token, post-norm, unit length."""
    model = Qwen3VLForConditionalGeneration.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side=padding_side)
    pictures = {}
    if images:
        settings = {"patch_size": 16, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
        size = {"shortest_edge": 4 * 32 * 32, "longest_edge": 1800 * 32 * 32}
        pictures = dict(Qwen2VLImageProcessorPil(**settings, size=size)(images, return_tensors="pt"))
        for grid in pictures["image_grid_thw"]:
            place = next(i for i, prompt in enumerate(prompts) if "<|image_pad|>" in prompt)
            prompts[place] = prompts[place].replace("<|image_pad|>", "<|done|>" * (int(grid.prod()) // 4), 1)
        prompts = [prompt.replace("<|done|>", "<|image_pad|>") for prompt in prompts]
    inputs = tokenizer(prompts, padding=True, return_tensors="pt")
    pads = (inputs["input_ids"] == model.config.image_token_id).int()
    with torch.no_grad():
        states = model.model(**inputs, **pictures, mm_token_type_ids=pads).last_hidden_state
    last = inputs["attention_mask"].shape[1] - 1 - inputs["attention_mask"].flip(1).argmax(1)
    return torch.nn.functional.normalize(states[torch.arange(len(prompts)), last], dim=-1)


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_without_latent_steps_an_embedder_gives_its_published_vectors(tmp_path, padding_side):
    folder = save_random_backbone(tmp_path, model_type="qwen3_vl")
    model, processor = plume.from_backbone(folder, EMBEDDER_LAYOUT, num_latent_steps=0)
    items = [
        "a red bus",
        "two dogs on a sofa and more",
        noise_image(0, 128, 96),
        {"image": noise_image(1), "text": "a"},
    ]
    contents = ["a red bus", "two dogs on a sofa and more", "@", "@a"]
    for instruction in ("Represent the user's input.", "Find the page."):
        prompts = [
            f"<|im_start|>system\n{instruction}<|im_end|>\n<|im_start|>user\n"
            + content.replace("@", "<|vision_start|><|image_pad|><|vision_end|>")
            + "<|im_end|>\n<|im_start|>assistant\n"
            for content in contents
        ]
        expected = published(folder, prompts, [noise_image(0, 128, 96), noise_image(1)], padding_side)
        with torch.no_grad():
            found = model.eval()(**processor.process_documents(items, prompt=instruction)).embeddings
        assert (found - expected).abs().max() <= 1e-5
    with torch.no_grad():
        thought = model(**processor.process_documents(items, prompt=instruction), num_latent_steps=2).embeddings
    assert (thought - expected).abs().max() > 1e-3


def test_auto_classes_open_every_backbone(tmp_path):
    for model_type in MODEL_TYPES:
        model, processor = save_random_plume(tmp_path / model_type, model_type=model_type)
        assert type(AutoModel.from_pretrained(tmp_path / model_type)) is type(model)
        assert type(AutoConfig.from_pretrained(tmp_path / model_type)) is type(model.config)
        assert type(AutoProcessor.from_pretrained(tmp_path / model_type)) is type(processor)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_a_clip_that_was_read_beforehand_keeps_its_times(tmp_path, model_type):
    """Services read clips before they batch them; frames alone would stand at other times."""
    _, processor = save_random_plume(tmp_path, model_type=model_type)
    path = MEDIA / "rolling_ball.mp4"
    from_file = processor.process_documents([{"video": str(path)}, {"video": [str(path), str(path)]}])
    clip = processor.read_clip(path)
    read = processor.process_documents([{"video": clip}, {"video": [clip, clip]}])
    assert from_file.keys() == read.keys()
    assert all(torch.equal(from_file[name], read[name]) for name in from_file)

"""Every backbone on its way from a published checkpoint to the Hub: converted, verified, published."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForImageTextToText, AutoProcessor

import plume
from inputs import mixed_inputs, noise_image, noise_video
from plume.hub import BACKBONES, MODEL_TYPES
from plume.hub.__main__ import main
from plume.hub.closure import closure
from plume.hub.convert import convert
from plume.hub.layout import rename
from plume.hub.publish import build_card, files_to_publish
from plume.hub.random_checkpoint import save_random_backbone
from plume.hub.verify import verify


@pytest.fixture(scope="module", params=MODEL_TYPES)
def converted(request, tmp_path_factory):
    """Type, source and target of a conversion."""
    folder = tmp_path_factory.mktemp(request.param)
    save_random_backbone(folder / "source", model_type=request.param)
    report = convert(str(folder / "source"), folder / "target", num_latent_steps=3)
    assert report.kind == BACKBONES[request.param]
    return request.param, folder / "source", folder / "target"


def test_it_keeps_every_weight_and_gets_a_fresh_adapter(converted):
    _, source, target = converted
    ours = AutoModel.from_pretrained(target).state_dict()
    report = json.loads((target / "conversion.json").read_text())["tensors"]
    created = {name for name, what in report.items() if what == "created"}
    assert created == {name for name in ours if name.startswith("latent_transition.")}
    for name, weight in load_file(source / "model.safetensors").items():
        if "embed_tokens" not in name:
            assert torch.equal(ours[rename(name)], weight), name


def test_it_equals_a_start_from_the_backbone_at_k_0(converted):
    _, source, target = converted
    items = [*mixed_inputs()[:6], {"video": noise_video(9, 4)}]
    ours = plume.embed(items, plume.load(target), num_latent_steps=0, progress=False).vectors
    model, processor = plume.from_backbone(source)
    expected = plume.embed(items, (model.eval(), processor), num_latent_steps=0, progress=False).vectors
    assert np.abs(ours - expected).max() <= 1e-5


def test_it_carries_the_code_of_its_own_backbone_only(converted):
    model_type, _, target = converted
    code = {path.name for path in target.glob("*.py")}
    assert code == {path.name for path in closure(target)}
    others = {f"modeling_plume_{other}.py" for other in MODEL_TYPES} - {f"modeling_plume_{model_type}.py"}
    assert not code & others
    assert (model_type == "qwen2_vl") == (f"modeling_plume_{model_type}.py" not in code)


@pytest.mark.slow  # test_backbones.py opens every backbone by its own code
def test_it_passes_its_verification(converted):
    model_type, _, target = converted
    if model_type == "qwen2_vl":
        pytest.skip("tests/test_hub.py verifies a converted checkpoint over Qwen2-VL")
    assert not [finding for finding in verify(target) if not finding.passed]


def test_it_is_published_with_its_code(converted):
    _, _, target = converted
    files = {path.name for path in files_to_publish(target)}
    assert {path.name for path in closure(target)} <= files
    assert "The transition adapter is untrained" in build_card(target, "org/name")


def test_long_lists_give_the_vectors_of_single_inputs(converted):
    """Batches of plume.embed carry whatever the processor of a backbone gives."""
    _, _, target = converted
    model, processor = plume.load(target)
    items = [
        "a red bus",
        {"video": noise_video(1, 4)},
        {"image": noise_image(2), "text": "two dogs"},
        {"video": noise_video(3, 3)},
    ]
    together = plume.embed(items, (model, processor), progress=False).vectors
    with torch.no_grad():
        singles = [model(**processor.process_documents([item])).embeddings[0].numpy() for item in items]
    assert np.abs(together - np.stack(singles)).max() <= 1e-5


def test_an_embedder_s_own_prompt_gives_its_own_vectors_at_k_0(tmp_path, capsys):
    """The published recipe of Qwen3-VL-Embedding: its system line, the normalised state of the last token."""
    save_random_backbone(tmp_path / "source", model_type="qwen3_vl")
    main(
        [
            "convert",
            str(tmp_path / "source"),
            str(tmp_path / "target"),
            "--layout",
            "embedder",
            "--num_latent_steps",
            "0",
        ]
    )
    assert "recognised as qwen3-vl" in capsys.readouterr().out
    model, processor = plume.load(tmp_path / "target")
    text = (
        "<|im_start|>system\nRepresent the user's input.<|im_end|>\n<|im_start|>user\na red bus<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    plain = AutoModelForImageTextToText.from_pretrained(tmp_path / "source").eval()
    with torch.no_grad():
        ids = torch.tensor([processor.tokenizer(text)["input_ids"]])
        state = plain.model(input_ids=ids).last_hidden_state[0, -1]
    ours = plume.embed(["a red bus"], (model, processor), progress=False).vectors[0]
    assert np.abs(ours - (state / state.norm()).numpy()).max() <= 1e-5
    assert AutoProcessor.from_pretrained(tmp_path / "target").query_prompt == ""


def test_an_unknown_layout_is_refused(tmp_path):
    save_random_backbone(tmp_path / "source")
    with pytest.raises(ValueError, match="layout 'papers' is unknown"):
        convert(str(tmp_path / "source"), tmp_path / "target", layout="papers")

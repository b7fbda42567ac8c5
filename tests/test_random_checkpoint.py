"""Random checkpoints of every backbone: what transformers makes of them, and what their tokenizers have taken."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoTokenizer

from plume.hub import MODEL_TYPES
from plume.hub.random_checkpoint import save_random_backbone
from plume.hub.random_checkpoint.__main__ import main


@pytest.fixture(scope="module", params=MODEL_TYPES)
def backbone(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    return request.param, save_random_backbone(folder, model_type=request.param)


def logits(model, patch_size):
    config = model.config
    ids = torch.tensor([[5, config.vision_start_token_id, *[config.image_token_id] * 24, 7]])
    pixels = torch.randn(96, 3 * 2 * patch_size**2, generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": ids, "pixel_values": pixels, "image_grid_thw": torch.tensor([[1, 8, 12]])}
    with torch.no_grad():
        return model(**inputs, mm_token_type_ids=(ids == config.image_token_id).int()).logits[0, -1]


def test_transformers_loads_every_weight_of_the_right_class(backbone):
    model_type, folder = backbone
    model, info = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    assert model.config.model_type == model_type
    assert not any(info.values()), info
    assert model.config.tie_word_embeddings


def test_keys_are_those_of_the_hub(backbone):
    model_type, folder = backbone
    nested = any(name.startswith("model.language_model.") for name in load_file(folder / "model.safetensors"))
    assert nested == (model_type == "qwen3_vl")


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_later_tokenizers_have_taken_the_ids_after_the_control_tokens(model_type, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(save_random_backbone(tmp_path, model_type=model_type))
    after_control = tokenizer.convert_ids_to_tokens(tokenizer.convert_tokens_to_ids("<|video_pad|>") + 1)
    assert after_control == (None if model_type == "qwen2_vl" else "<tool_call>")
    assert ("</think>" in tokenizer.get_vocab()) == (model_type == "qwen3_vl")


PARTS = [
    ("qwen2_5_vl", lambda model: setattr(model.model.visual, "fullatt_block_indexes", [0, 1])),
    ("qwen3_vl", lambda model: model.model.visual.deepstack_merger_list[0].linear_fc2.weight.mul_(1.5)),
    ("qwen3_vl", lambda model: model.model.visual.deepstack_merger_list[1].linear_fc2.weight.mul_(1.5)),
    ("qwen3_vl", lambda model: model.model.visual.pos_embed.weight.mul_(1.5)),
    ("qwen3_vl", lambda model: model.model.language_model.layers[0].self_attn.q_norm.weight.mul_(1.5)),
]


@pytest.mark.parametrize(
    ("model_type", "change"), PARTS, ids=["windows", "deepstack 0", "deepstack 1", "positions", "QK-norm"]
)
def test_what_a_backbone_adds_shows_in_the_last_state(tmp_path, model_type, change):
    """A part that did not would hide mistakes in it."""
    folder = save_random_backbone(tmp_path, model_type=model_type)
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    before = logits(model, model.config.vision_config.patch_size)
    with torch.no_grad():
        change(model)
    assert (logits(model, model.config.vision_config.patch_size) - before).abs().max() > 1e-3


def test_the_command_prints_its_help(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    assert "--model-type" in capsys.readouterr().out


def test_the_command_writes_a_checkpoint(tmp_path, capsys):
    main([str(tmp_path / "made")])
    assert (tmp_path / "made" / "modeling_plume.py").exists()
    assert "a random PLUME checkpoint, tiny" in capsys.readouterr().out

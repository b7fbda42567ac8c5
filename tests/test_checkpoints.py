"""Loading and saving: base checkpoints in both key layouts, complete PLUME folders, and what is refused."""

import json
import re
import shutil
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, Qwen2VLForConditionalGeneration

from inputs import embed, mixed_inputs
from plume import RELEASED_LAYOUT, PlumeConfig, PlumeForEmbedding, PlumeProcessor, from_backbone
from plume.hub.closure import closure
from plume.hub.random_checkpoint import build_backbone_config, build_tokenizer, save_random_backbone
from plume.hub_files_plume import weight_headers
from plume.start import build_config, processor_from_backbone

ADAPTER = "latent_transition."


@pytest.mark.parametrize("nested_keys", [False, True])
@pytest.mark.parametrize("tied", [True, False])
def test_a_backbone_loads_in_both_key_layouts_with_only_the_adapter_new(tmp_path, nested_keys, tied):
    save_random_backbone(tmp_path, nested_keys=nested_keys, tied=tied)
    names = load_file(tmp_path / "model.safetensors").keys()
    assert any(name.startswith("model.visual.") for name in names) == nested_keys
    original = Qwen2VLForConditionalGeneration.from_pretrained(tmp_path).state_dict()
    model, processor = from_backbone(tmp_path)
    loaded = model.state_dict()
    assert {name for name in loaded if name not in original} == {name for name in loaded if name.startswith(ADAPTER)}
    for name, weight in original.items():
        if name in ("model.language_model.embed_tokens.weight", "lm_head.weight"):
            for new, source in processor.row_sources.items():
                assert torch.equal(loaded[name][new], weight[source])
            kept = [row for row in range(len(weight)) if row not in processor.row_sources]
            assert torch.equal(loaded[name][kept], weight[kept])
        else:
            assert torch.equal(loaded[name], weight)


def test_new_tokens_start_from_the_documented_rows(backbone):
    processor = processor_from_backbone(backbone)
    to_id = processor.tokenizer.convert_tokens_to_ids
    start, end = to_id("<|object_ref_start|>"), to_id("<|object_ref_end|>")
    first = to_id("<gen>")
    assert [to_id(token) for token in ("<gen>", "<anchor>", "<slt>", "<elt>", "<ct>")] == list(range(first, first + 5))
    assert processor.row_sources == dict(zip(range(first, first + 5), (end, start, start, end, end), strict=True))


def test_tokens_that_a_checkpoint_has_already_keep_their_rows(tmp_path):
    """UME-R1 has <gen_emb> and <disc_emb>; only the three others are new."""
    save_random_backbone(tmp_path)
    tokenizer = build_tokenizer()
    tokenizer.add_tokens(["<gen_emb>", "<disc_emb>"])
    tokenizer.save_pretrained(tmp_path)
    processor = processor_from_backbone(tmp_path, RELEASED_LAYOUT)
    fields = processor.token_fields()
    assert set(processor.row_sources) == {
        fields[f"{name}_token_id"] for name in ("latent_start", "latent_end", "latent")
    }
    assert fields["suffix_token_ids"][0] == fields["latent_end_token_id"]
    assert fields["suffix_token_ids"][-1] == fields["embedding_token_id"]


def test_a_table_without_spare_rows_grows(tmp_path):
    tokenizer = build_tokenizer()
    config = build_backbone_config(tokenizer)
    config.text_config.vocab_size = len(tokenizer)
    torch.manual_seed(0)
    Qwen2VLForConditionalGeneration(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model, processor = from_backbone(tmp_path)
    assert len(model.get_input_embeddings().weight) == len(tokenizer) + 5
    assert torch.isfinite(embed(model.eval(), processor, ["a red bus"])).all()


def test_a_backbone_and_a_foreign_checkpoint_are_not_taken_for_plume(backbone, tmp_path):
    with pytest.raises(ValueError, match="from_backbone"):
        PlumeForEmbedding.from_pretrained(backbone)
    shutil.copytree(backbone, tmp_path / "partial")
    weights = load_file(backbone / "model.safetensors")
    dropped = {name: weight for name, weight in weights.items() if "layers.1" not in name}
    save_file(dropped, tmp_path / "partial" / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="would be random"):
        from_backbone(tmp_path / "partial")


def test_a_checkpoint_without_its_adapter_is_refused(checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path, dirs_exist_ok=True)
    weights = load_file(checkpoint / "model.safetensors")
    dropped = {name: weight for name, weight in weights.items() if not name.startswith(ADAPTER)}
    assert len(dropped) < len(weights)
    save_file(dropped, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks \d+ weights"):
        PlumeForEmbedding.from_pretrained(tmp_path)


LATENT = ("num_latent_steps", "num_active_experts", "position_scheme", "suffix_token_ids", "anchor_token_id",
          "router_uses_anchor", "transition_norm_eps")  # fmt: skip


def without(config: dict, field: str) -> object:
    """Take a field, of a part where it has dots, out of a configuration; returns its value."""
    *parts, name = field.split(".")
    for part in parts:
        config = config[part]
    return config.pop(name)


@pytest.mark.parametrize(
    "field",
    [
        *LATENT,
        *(f"text_config.{name}" for name in ("num_attention_heads", "rms_norm_eps", "hidden_act", "hidden_size")),
        *(f"text_config.rope_parameters.{name}" for name in ("rope_theta", "mrope_section")),
        *(f"vision_config.{name}" for name in ("num_heads", "hidden_act", "depth")),
    ],
)
def test_a_config_that_leaves_a_vector_open_is_refused(checkpoint, tmp_path, field):
    shutil.copytree(checkpoint, tmp_path, dirs_exist_ok=True)
    stated = json.loads((tmp_path / "config.json").read_text())
    value = without(stated, field)
    (tmp_path / "config.json").write_text(json.dumps(stated))
    with pytest.raises(ValueError, match=f"does not state {field}"):
        PlumeForEmbedding.from_pretrained(tmp_path)
    if field in LATENT:
        assert PlumeForEmbedding.from_pretrained(tmp_path, **{field: value}) is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_save_and_load_give_the_same_bits(checkpoint, processor, tmp_path, dtype):
    model = PlumeForEmbedding.from_pretrained(checkpoint, dtype=dtype).eval()
    model.config.position_scheme = "kv_length"
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = PlumeForEmbedding.from_pretrained(tmp_path).eval()
    inputs = mixed_inputs()[:6]
    assert again.dtype == dtype
    assert torch.equal(embed(model, processor, inputs), embed(again, PlumeProcessor.from_pretrained(tmp_path), inputs))


def test_settings_survive_saving(checkpoint, tmp_path):
    processor = PlumeProcessor.from_pretrained(checkpoint, num_frames=3, query_prompt="Find a page.")
    processor.save_pretrained(tmp_path)
    again = PlumeProcessor.from_pretrained(tmp_path)
    assert (again.num_frames, again.query_prompt) == (3, "Find a page.")
    assert again.chat_template == processor.chat_template
    assert (
        json.loads((tmp_path / "config_sentence_transformers.json").read_text())["prompts"]["query"] == "Find a page."
    )
    config = PlumeConfig.from_pretrained(checkpoint)
    config.save_pretrained(tmp_path)
    assert PlumeConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()


def test_a_saved_checkpoint_is_a_complete_hub_repository(checkpoint):
    files = {path.name for path in checkpoint.iterdir()}
    code = {path.name for path in closure(checkpoint)}
    assert {"configuration_plume.py", "latent_plume.py", "modeling_plume.py", "processing_plume.py"} <= code
    assert code == {name for name in files if name.endswith(".py")}
    others = {"README.md", "config.json", "model.safetensors", "modules.json", "sentence_bert_config.json",
              "config_sentence_transformers.json", "processor_config.json", "chat_template.jinja", "tokenizer.json",
              "tokenizer_config.json"}  # fmt: skip
    assert others <= files
    config = json.loads((checkpoint / "config.json").read_text())
    assert config["model_type"] == "plume"
    assert config["architectures"] == ["PlumeForEmbedding"]
    assert config["auto_map"]["AutoModel"] == "modeling_plume.PlumeForEmbedding"


def test_saving_keeps_an_existing_card(model, tmp_path):
    (tmp_path / "README.md").write_text("mine")
    model.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"


class Hub(dict):
    """What arrives at a hub: path in the repository -> text, or "" for binary files; and the options of the calls."""

    def __init__(self):
        super().__init__()
        self.options = {}


@pytest.fixture
def hub(monkeypatch) -> Hub:
    from huggingface_hub import HfApi, RepoUrl
    from huggingface_hub.utils import filter_repo_objects

    received = Hub()

    def upload_folder(self, *, repo_id, folder_path, ignore_patterns=None, delete_patterns=None, **kwargs):
        assert repo_id == "org/plume"
        received.options |= kwargs
        for name in list(filter_repo_objects(received, allow_patterns=delete_patterns or [])):
            del received[name]
        for path in Path(folder_path).iterdir():
            if path.name not in (ignore_patterns or ()):
                received[path.name] = "" if path.suffix == ".safetensors" else path.read_text()

    def create_repo(self, repo_id, **kwargs):
        received.options |= kwargs
        return RepoUrl(f"https://huggingface.co/{repo_id}")

    def hf_hub_download(self, repo_id, filename, *, local_dir, **kwargs):
        Path(local_dir, filename).write_text(received[filename])

    monkeypatch.setattr(HfApi, "create_repo", create_repo)
    monkeypatch.setattr(HfApi, "hf_hub_download", hf_hub_download)
    monkeypatch.setattr(HfApi, "file_exists", lambda self, repo_id, filename, **kwargs: filename in received)
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    return received


@pytest.mark.parametrize("while_saving", [False, True])
@pytest.mark.parametrize("order", [1, -1])
def test_pushing_sends_code_st_files_processor_and_card(model, processor, hub, tmp_path, while_saving, order):
    for part in (model, processor)[::order]:
        if while_saving:
            part.save_pretrained(tmp_path, push_to_hub=True, repo_id="org/plume")
        else:
            part.push_to_hub("org/plume")
    assert {"modeling_plume.py", "latent_plume.py", "processing_plume.py", "modules.json", "sentence_bert_config.json",
            "config_sentence_transformers.json", "README.md", "model.safetensors", "tokenizer.json"} <= set(hub)  # fmt: skip
    assert "latent-reasoning" in hub["README.md"]
    assert json.loads(hub["config_sentence_transformers.json"])["prompts"]["query"] == processor.query_prompt


def test_pushing_replaces_weights_in_other_pieces_and_nothing_else(model, processor, hub):
    hub |= {
        "model-00001-of-00002.safetensors": "",
        "model.safetensors.index.json": "{}",
        "lora/adapter.safetensors": "",
    }
    processor.push_to_hub("org/plume")
    assert "model-00001-of-00002.safetensors" in hub
    model.push_to_hub("org/plume")
    assert sorted(name for name in hub if "safetensors" in name) == ["lora/adapter.safetensors", "model.safetensors"]


def test_pushing_keeps_how_sentence_transformers_drives_the_model(model, processor, hub):
    """Of a repository that sentence-transformers wrote, with prompts and a module of its own."""
    theirs = {"__version__": {}, "prompts": {"query": "Theirs: ", "document": ""}, "similarity_fn_name": "dot"}
    hub |= {
        "modules.json": '[{"path": ""}, {"path": "1_Dense"}]',
        "config_sentence_transformers.json": json.dumps(theirs),
    }
    for part in (model, processor):
        part.push_to_hub("org/plume")
        assert len(json.loads(hub["modules.json"])) == 2
        settings = json.loads(hub["config_sentence_transformers.json"])
        assert (settings["prompts"], settings["similarity_fn_name"]) == (theirs["prompts"], "dot")


@pytest.mark.parametrize("while_saving", [False, True])
def test_a_private_upload_stays_private(model, processor, hub, tmp_path, while_saving):
    chosen = {"private": True, "create_pr": True, "commit_message": "Mine"}
    for part in (model, processor):
        hub.options.clear()
        if while_saving:
            part.save_pretrained(tmp_path, push_to_hub=True, repo_id="org/plume", **chosen)
        else:
            part.push_to_hub("org/plume", **chosen)
        assert chosen.items() <= hub.options.items()


def test_pushing_keeps_the_card_of_the_repository(model, hub):
    hub["README.md"] = "theirs"
    model.push_to_hub("org/plume")
    assert hub["README.md"] == "theirs"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_latent_steps": -1}, "outside 0..32"),
        ({"num_latent_steps": 33}, "outside 0..32"),
        ({"num_latent_steps": 2.5}, "num_latent_steps=2.5 is outside"),
        ({"num_experts": 0}, "num_experts must be a positive integer"),
        ({"num_active_experts": 5}, "exceeds num_experts"),
        ({"expert_dropout": 1.0}, "expert_dropout"),
        ({"position_scheme": "rope"}, "'mrope'"),
        ({"suffix_token_ids": [1, 2]}, "lacks embedding_token_id"),
    ],
)
def test_impossible_configurations_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        build_config(build_backbone_config(build_tokenizer()), **fields)


def test_configuration_keeps_every_field_of_the_backbone():
    backbone = build_backbone_config(build_tokenizer())
    config = build_config(backbone)
    for name, value in backbone.to_dict().items():
        if name not in ("model_type", "architectures", "transformers_version"):
            assert config.to_dict()[name] == value
    assert (config.num_latent_steps, config.num_experts, config.num_active_experts) == (8, 4, 2)


def _features(processor, **changes):
    return {**processor.process_documents(["a red bus"]), **changes}


def test_wrong_model_inputs_are_refused_with_cause_and_fix(model, processor):
    features = processor.process_documents(["a red bus"])
    with pytest.raises(ValueError, match="batch is empty"):
        model(input_ids=features["input_ids"][:0])
    with pytest.raises(ValueError, match="latent_start_token_id"):
        model(input_ids=features["input_ids"][:, :-1])
    anchor = features["input_ids"] == model.config.anchor_token_id
    with pytest.raises(ValueError, match="anchor_token_id"):
        model(input_ids=features["input_ids"].masked_fill(anchor, 5))
    with pytest.raises(ValueError, match="outside 0..8"):
        model(**features, num_latent_steps=9)
    with pytest.raises(ValueError, match="outside 0..8"):
        model(**features, num_latent_steps=-1)


def test_placeholders_without_media_are_refused(model, processor):
    from inputs import noise_image

    features = processor.process_documents([noise_image(0), noise_image(1)])
    with pytest.raises(ValueError, match=r"holds 12 placeholders .* have 6"):
        model(**{**features, "image_grid_thw": features["image_grid_thw"][:1]})
    with pytest.raises(ValueError, match="placeholders"):
        model(input_ids=features["input_ids"], attention_mask=features["attention_mask"])


@pytest.mark.parametrize(
    "suffix", [[[358, 71]], [[358, 355], [358, 355]], [[]]], ids=["no <gen>", "too many rows", "empty"]
)
def test_a_suffix_without_an_embedding_token_is_refused(model, processor, suffix):
    with pytest.raises(ValueError, match="suffix_input_ids has"):
        model(**processor.process_documents(["a red bus"]), suffix_input_ids=torch.tensor(suffix, dtype=torch.long))


def test_unknown_arguments_are_refused(model, processor):
    features = processor.process_documents(["a red bus"])
    with pytest.raises(ValueError, match=r"Unknown arguments \['num_latent_step'\]"):
        model(**features, num_latent_step=0)
    assert model(**features, return_dict=True, labels=None).embeddings.shape == (1, 32)


def test_an_unknown_position_scheme_is_refused(model, processor):
    model.config.position_scheme = "kvlength"
    with pytest.raises(ValueError, match="'kvlength' is unknown"):
        embed(model, processor, ["a red bus"])


def test_settings_that_sentence_transformers_saved_are_kept(checkpoint, model, tmp_path):
    from sentence_transformers import SentenceTransformer

    settings = {
        "prompts": {"query": "Custom: ", "extra": "E"},
        "default_prompt_name": "extra",
        "similarity_fn_name": "dot",
    }
    encoder = SentenceTransformer(str(checkpoint), **settings)
    encoder.save_pretrained(str(tmp_path))
    again = SentenceTransformer(str(tmp_path))
    assert again.prompts["query"] == "Custom: "
    assert (again.default_prompt_name, again.similarity_fn_name) == ("extra", "dot")
    assert (encoder.encode_query(["a red bus"]) == again.encode_query(["a red bus"])).all()
    (tmp_path / "config_sentence_transformers.json").write_text('{"__version__": {}}')
    model.save_pretrained(tmp_path)


@pytest.mark.parametrize("part", ["latent_transition", "model.visual"])
def test_a_part_offloaded_to_disk_gives_the_same_vectors(checkpoint, model, processor, tmp_path, part):
    parts = ("model.language_model", "model.visual", "lm_head", "latent_transition")
    placed = {name: "disk" if name == part else "cpu" for name in parts}
    offloaded = PlumeForEmbedding.from_pretrained(checkpoint, device_map=placed, offload_folder=str(tmp_path)).eval()
    inputs = mixed_inputs()[:6]
    # Not the same bits: the step decoder stands back where weights are fetched at the call of a layer.
    vectors, expected = (embed(which, processor, inputs) for which in (offloaded, model))
    torch.testing.assert_close(vectors, expected, atol=1e-5, rtol=0)


def test_a_processor_without_its_tokens_is_refused():
    strings = {f"{name}_token": f"<{name}>" for name in ("anchor", "latent_start", "latent_end", "latent", "embedding")}
    with pytest.raises(ValueError, match="from_backbone"):
        PlumeProcessor(build_tokenizer(), "", **strings, suffix="<embedding>")


def test_nan_weights_are_reported_instead_of_embedded(model, processor):
    with torch.no_grad():
        model.model.language_model.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        embed(model, processor, ["a red bus"])


# Weights of a folder


def _weights(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if "safetensors" in path.name)


@pytest.mark.parametrize("sizes", [("50GB", "60KB"), ("60KB", "50GB"), ("60KB", "120KB")], ids=" then ".join)
def test_a_save_leaves_no_weights_of_an_earlier_save(model, tmp_path, sizes):
    first, second = sizes
    model.save_pretrained(tmp_path, max_shard_size=first)
    (tmp_path / "adapter.safetensors").write_text("theirs")
    with torch.no_grad():
        model.latent_transition.experts.up_bias.add_(1)
    model.save_pretrained(tmp_path, max_shard_size=second)
    model.save_pretrained(tmp_path / "alone", max_shard_size=second)
    assert _weights(tmp_path) == sorted(["adapter.safetensors", *_weights(tmp_path / "alone")])
    again = PlumeForEmbedding.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(weight, again[name]) for name, weight in model.state_dict().items())


@pytest.mark.parametrize("positional", [True, False])
def test_a_rank_that_does_not_write_removes_nothing(model, tmp_path, positional):
    model.save_pretrained(tmp_path, max_shard_size="60KB")
    before = _weights(tmp_path)
    model.save_pretrained(tmp_path, *[False] * positional, **({} if positional else {"is_main_process": False}))
    assert [name for name in before if name not in _weights(tmp_path)] == []


def _cut(path: Path, keep: float) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])


def _change_index(folder: Path, change) -> None:
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    (folder / "model.safetensors.index.json").write_text(json.dumps(change(index)))


def _drop_one(folder: Path) -> None:
    shard = sorted(folder.glob("model-*"))[0]
    save_file(dict(list(load_file(shard).items())[1:]), shard, {"format": "pt"})


def _both(folder: Path) -> None:
    save_file({"a": torch.ones(1)}, folder / "model.safetensors")


def _as_int32(folder: Path) -> None:
    shard = sorted(folder.glob("model-*"))[-1]
    save_file({name: weight.int() for name, weight in load_file(shard).items()}, shard, {"format": "pt"})


DAMAGE = {
    "truncated shard": (lambda d: _cut(sorted(d.glob("model-*"))[0], 0.5), "model-00001-of-.* truncated or damaged.* Download it"),
    "empty shard": (lambda d: _cut(sorted(d.glob("model-*"))[0], 0), "model-00001-of-.* truncated or damaged"),
    "no header": (lambda d: sorted(d.glob("model-*"))[0].write_bytes(b"\4" + bytes(7) + b"what"), "model-00001-of-.* damaged.*header"),
    "missing shard": (lambda d: sorted(d.glob("model-*"))[0].unlink(), "model-00001-of-.* is missing"),
    "missing tensor": (_drop_one, "model-00001-of-.* lacks 1 tensors that model.safetensors.index.json places there"),
    "no weight_map": (lambda d: _change_index(d, lambda i: {"metadata": {}}), "index.json is damaged: it has no weight_map"),
    "index no JSON": (lambda d: (d / "model.safetensors.index.json").write_text("{"), "index.json is damaged"),
    "outside": (
        lambda d: _change_index(d, lambda i: {"weight_map": dict.fromkeys(i["weight_map"], "../x.safetensors")}),
        r"index.json names '\.\./x.safetensors', a file outside the folder",
    ),
    "two sets": (_both, "two sets of weights"),
    "int32": (_as_int32, "as I32, and config.json states no quantization"),
    "no config.json": (lambda d: (d / "config.json").unlink(), "config.json is missing"),
}  # fmt: skip


@pytest.fixture(scope="module")
def sharded(checkpoint, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    PlumeForEmbedding.from_pretrained(checkpoint).save_pretrained(folder, max_shard_size="60KB")
    PlumeProcessor.from_pretrained(checkpoint).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_refused_with_file_cause_and_fix(sharded, tmp_path, damage):
    shutil.copytree(sharded, tmp_path, dirs_exist_ok=True)
    spoil, message = DAMAGE[damage]
    spoil(tmp_path)
    with pytest.raises(ValueError, match=message):
        PlumeForEmbedding.from_pretrained(tmp_path)
    if damage != "no config.json":  # which AutoModel cannot do without either, in its own words
        with pytest.raises(ValueError, match=message):
            AutoModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("damage", [damage for damage in DAMAGE if damage != "no config.json"])
def test_code_that_travels_with_a_damaged_checkpoint_refuses_it(sharded, remote, tmp_path, damage):
    shutil.copytree(sharded, tmp_path, dirs_exist_ok=True)
    spoil, message = DAMAGE[damage]
    spoil(tmp_path)
    assert re.search(f"^ValueError: .*{message}", remote.error("transformers", tmp_path), re.MULTILINE)


@pytest.mark.parametrize("way", ["transformers", "sentence_transformers"])
def test_integers_in_a_repository_of_the_hub_are_refused(sharded, remote, tmp_path, way):
    shutil.copytree(sharded, tmp_path, dirs_exist_ok=True)
    _as_int32(tmp_path)
    name = remote.publish(f"org/rounded-{way}", tmp_path)
    assert re.search("^ValueError: .* as I32, and config.json states no", remote.error(way, name), re.MULTILINE)


def test_a_truncated_single_file_is_refused(checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path, dirs_exist_ok=True)
    _cut(tmp_path / "model.safetensors", 0.9)
    with pytest.raises(ValueError, match="model.safetensors is missing, truncated or damaged"):
        PlumeForEmbedding.from_pretrained(tmp_path)


def test_integers_of_a_quantized_checkpoint_pass(sharded, tmp_path):
    shutil.copytree(sharded, tmp_path, dirs_exist_ok=True)
    _as_int32(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "any"}}))
    assert weight_headers(tmp_path)


def test_looking_at_the_weights_takes_no_time(sharded):
    before = time.process_time()
    weight_headers(sharded)
    assert time.process_time() - before < 0.2

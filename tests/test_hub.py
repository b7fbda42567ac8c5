"""Published checkpoints: random ones in their exact layouts, converted, verified, published."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file, save_file
from transformers import Qwen2VLForConditionalGeneration

from inputs import embed, mixed_inputs, noise_image, noise_video
from plume import RELEASED_LAYOUT, PlumeForEmbedding, PlumeProcessor
from plume import __main__ as command_line
from plume.hub import layout
from plume.hub import verify as verify_module
from plume.hub.convert import convert
from plume.hub.publish import build_card, files_to_publish, publish
from plume.hub.random_checkpoint import build_backbone_config, build_tokenizer, save_random_backbone
from plume.hub.verify import verify
from reference import embed_row

TOKENS = ["<gen_emb>", "<disc_emb>", "<bot>", "<eot>", "<ct>"]


def released_adapter(width: int = 32, experts: int = 4) -> dict[str, torch.Tensor]:
    """The 25 tensors of the released adapter at a reduced width."""
    generator = torch.Generator().manual_seed(3)

    def random(*shape):
        return torch.randn(*shape, generator=generator) * shape[-1] ** -0.5

    tensors = {"ln.weight": 1 + random(width), "ln.bias": random(width), "step_embed.weight": random(32, width) * 5,
               "router.weight": random(experts, 2 * width), "router.bias": random(experts)}  # fmt: skip
    for name in [*(f"experts.{index}" for index in range(experts)), "shared_expert"]:
        tensors |= {f"{name}.fc1.weight": random(2 * width, width), f"{name}.fc1.bias": random(2 * width),
                    f"{name}.fc2.weight": random(width, 2 * width), f"{name}.fc2.bias": random(width)}  # fmt: skip
    return tensors


def make_source(
    folder: Path, kind: str, *, nested=False, spare_rows=True, shards=1, dtype=torch.float32, slow=False
) -> Path:
    """A random checkpoint as its authors publish it."""
    save_random_backbone(folder, nested_keys=nested)
    tokenizer = build_tokenizer()
    tokenizer.add_tokens({"plume": TOKENS, "ume-r1": TOKENS[:2], "qwen2-vl": []}[kind])
    tokenizer.save_pretrained(folder)
    if slow:
        _save_as_slow(tokenizer, folder)
    weights = {name: weight.to(dtype) for name, weight in load_file(folder / "model.safetensors").items()}
    if not spare_rows:  # the authors cut the table to the vocabulary
        table = next(name for name in weights if name.endswith("embed_tokens.weight"))
        weights[table] = weights[table][: len(tokenizer)].clone()
    if kind == "plume":
        weights |= {f"latent_moe_transition.{name}": weight.to(dtype) for name, weight in released_adapter().items()}
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    pieces = [names[start::shards] for start in range(shards)]
    files = [
        f"model-{n + 1:05d}-of-{shards:05d}.safetensors" if shards > 1 else "model.safetensors" for n in range(shards)
    ]
    for file, piece in zip(files, pieces, strict=True):
        save_file({name: weights[name].contiguous() for name in piece}, folder / file, {"format": "pt"})
    if shards > 1:
        placed = {name: file for file, piece in zip(files, pieces, strict=True) for name in piece}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    return folder


def _save_as_slow(tokenizer, folder: Path) -> None:
    """vocab.json, merges.txt and added_tokens.json instead of tokenizer.json, as a slow tokenizer saves."""
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = [" ".join(merge) if isinstance(merge, list) else merge for merge in model["merges"]]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    added = tokenizer.get_added_vocab()
    (folder / "added_tokens.json").write_text(json.dumps(added))
    decoder = {
        str(index): {"content": token, "lstrip": False, "rstrip": False, "normalized": False, "single_word": False,
                     "special": token not in TOKENS}
        for token, index in added.items()
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "Qwen2Tokenizer", "added_tokens_decoder": decoder, "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>", "model_max_length": 32768, "padding_side": "right",
    }))  # fmt: skip
    (folder / "tokenizer.json").unlink()


def released_vector(
    source: Path, features, token_ids: dict[str, int], suffix: list[int], num_latent_steps: int
) -> torch.Tensor:
    """The released checkpoint as its authors run it: one row, the adapter as plain layers, cache-length positions."""
    weights = {}
    for file in sorted(source.glob("*.safetensors")):
        weights |= {name: weight.float() for name, weight in load_file(file).items()}
    table = next(weight for name, weight in weights.items() if name.endswith("embed_tokens.weight"))
    backbone = build_backbone_config(build_tokenizer())
    backbone.text_config.vocab_size = len(table)
    model = Qwen2VLForConditionalGeneration(backbone).eval()
    renamed = {}
    for name, weight in weights.items():
        if "latent_moe" not in name:
            renamed[name if name.startswith(("model.visual", "model.language")) else
                    f"model.{name}" if name.startswith("visual") else name.replace("model.", "model.language_model.", 1)] = weight  # fmt: skip
    missing, unexpected = model.load_state_dict(renamed, strict=False)
    assert (missing, unexpected) == (["lm_head.weight"], [])
    model.tie_weights()
    a = {name.split("latent_moe_transition.")[1]: weight for name, weight in weights.items() if "latent_moe" in name}

    def mlp(prefix, x):
        hidden = torch.nn.functional.gelu(a[f"{prefix}.fc1.weight"] @ x + a[f"{prefix}.fc1.bias"])
        return a[f"{prefix}.fc2.weight"] @ hidden + a[f"{prefix}.fc2.bias"]

    def refine(z, k, anchor):
        logits = a["router.weight"] @ torch.cat([z + anchor, a["step_embed.weight"][k - 1]]) + a["router.bias"]
        probs = logits.softmax(-1)
        x = torch.nn.functional.layer_norm(z, z.shape, a["ln.weight"], a["ln.bias"], 1e-5)
        best = probs.topk(2).indices.tolist()
        return z + mlp("shared_expert", x) + sum(probs[m] * mlp(f"experts.{m}", x) for m in best)

    config = SimpleNamespace(
        model_type="qwen2_vl", image_token_id=backbone.image_token_id, video_token_id=backbone.video_token_id, position_scheme="kv_length",
        anchor_token_id=token_ids["<disc_emb>"], suffix_token_ids=suffix,
    )  # fmt: skip
    with torch.no_grad():
        return embed_row(model, features, num_latent_steps, config, refine)[0]


SOURCES = [
    {},
    {"nested": True, "spare_rows": False},
    {"shards": 3, "slow": True, "spare_rows": False},
    {"shards": 2, "nested": True},
]


@pytest.mark.parametrize("options", SOURCES, ids=str)
def test_a_released_checkpoint_gives_the_vectors_of_its_authors_code(tmp_path, options):
    source = make_source(tmp_path / "source", "plume", **options)
    report = convert(str(source), tmp_path / "target", num_latent_steps=8)
    assert report.kind == "plume"
    model = PlumeForEmbedding.from_pretrained(tmp_path / "target").eval()
    processor = PlumeProcessor.from_pretrained(tmp_path / "target")
    assert model.config.position_scheme == "kv_length"
    ids = {token: processor.tokenizer.convert_tokens_to_ids(token) for token in TOKENS}
    suffix = processor.tokenizer("<eot></think>\n<gen_emb>", add_special_tokens=False)["input_ids"]
    assert (suffix[0], suffix[-1]) == (ids["<eot>"], ids["<gen_emb>"])
    small = {"max_pixels": 28 * 28 * 16}
    for item in ["a red bus", noise_image(0), {"video": noise_video(1)}, {"image": noise_image(2), "text": "two dogs"}]:
        features = processor.process_queries([item], **small)
        text = processor.tokenizer.decode(features["input_ids"][0])
        assert text.endswith(
            "Finally, use the <gen_emb> tag to represent the entire input.<|im_end|>\n<|im_start|>assistant\n<think><bot>"
        )
        with torch.no_grad():
            ours = model(**features).embeddings[0]
        assert (ours - released_vector(source, features, ids, suffix, 8)).abs().max() <= 1e-5


def test_text_only_inputs_of_a_released_checkpoint_carry_a_white_image(tmp_path):
    convert(str(make_source(tmp_path / "source", "plume")), tmp_path / "target", num_latent_steps=8)
    processor = PlumeProcessor.from_pretrained(tmp_path / "target")
    features = processor.process_queries(["a red bus"])
    assert features["image_grid_thw"].tolist() == [[1, 4, 4]]
    assert (
        features["pixel_values"]
        == features["pixel_values"].view(16, 3, -1)[:, :, :1].expand(16, 3, 392).reshape(16, -1)
    ).all()
    plain = PlumeProcessor.from_pretrained(tmp_path / "target", blank_image_size=0)
    assert "pixel_values" not in plain.process_queries(["a red bus"])
    assert processor.process_queries([noise_image(0)])["image_grid_thw"].shape == (1, 3)


@pytest.mark.parametrize("kind", ["qwen2-vl", "ume-r1"])
@pytest.mark.parametrize("options", [{}, {"nested": True, "shards": 3}, {"spare_rows": False}], ids=str)
def test_a_backbone_keeps_every_weight_and_gets_a_fresh_adapter(tmp_path, kind, options):
    source = make_source(tmp_path / "source", kind, **options)
    report = convert(str(source), tmp_path / "target", seed=5)
    assert report.kind == kind
    ours = PlumeForEmbedding.from_pretrained(tmp_path / "target").state_dict()
    created = {name for name, what in report.tensors.items() if what == "created"}
    assert created == {name for name in ours if name.startswith("latent_transition.")}
    processor = PlumeProcessor.from_pretrained(tmp_path / "target")
    new = {processor.tokenizer.convert_tokens_to_ids(token) for token in
           (TOKENS[2:] if kind == "ume-r1" else ["<gen>", "<anchor>", "<slt>", "<elt>", "<ct>"])}  # fmt: skip
    for file in source.glob("*.safetensors"):
        for name, weight in load_file(file).items():
            loaded = ours[layout.rename(name)]
            rows = [row for row in range(len(weight)) if row not in new] if "embed_tokens" in name else slice(None)
            assert torch.equal(loaded[rows], weight[rows]), name
    table = ours["model.language_model.embed_tokens.weight"]
    start = processor.tokenizer.convert_tokens_to_ids("<|object_ref_start|>")
    assert torch.equal(table[processor.token_fields()["latent_start_token_id"]], table[start])
    convert(str(source), tmp_path / "again", seed=5)
    again = PlumeForEmbedding.from_pretrained(tmp_path / "again").state_dict()
    assert all(torch.equal(weight, again[name]) for name, weight in ours.items())
    convert(str(source), tmp_path / "other", seed=6)
    other = PlumeForEmbedding.from_pretrained(tmp_path / "other").state_dict()
    assert not torch.equal(ours["latent_transition.experts.up_weight"], other["latent_transition.experts.up_weight"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_round_trips_keep_the_bits(tmp_path, dtype):
    from sentence_transformers import SentenceTransformer

    convert(str(make_source(tmp_path / "source", "plume", dtype=dtype)), tmp_path / "a", num_latent_steps=4)
    first, processor = (
        PlumeForEmbedding.from_pretrained(tmp_path / "a").eval(),
        PlumeProcessor.from_pretrained(tmp_path / "a"),
    )
    assert first.dtype == dtype
    first.save_pretrained(tmp_path / "b")
    processor.save_pretrained(tmp_path / "b")
    SentenceTransformer(str(tmp_path / "b")).save_pretrained(str(tmp_path / "c"))
    inputs = [noise_image(0, 84, 56), "a red bus"]
    for folder in ("b", "c"):
        model = PlumeForEmbedding.from_pretrained(tmp_path / folder).eval()
        assert model.config.position_scheme == "kv_length"
        assert all(torch.equal(w, model.state_dict()[name]) for name, w in first.state_dict().items())
        assert torch.equal(
            embed(model, PlumeProcessor.from_pretrained(tmp_path / folder), inputs), embed(first, processor, inputs)
        )


def test_training_from_a_converted_checkpoint_keeps_its_adapter(tmp_path):
    """The authors' trainer re-initialises it without a word."""
    pytest.importorskip("trl", reason="training needs the extra `train`")
    from trl import ModelConfig

    from plume.training.train import load_model

    convert(str(make_source(tmp_path / "source", "plume")), tmp_path / "target", num_latent_steps=8)
    model, _ = load_model(ModelConfig(model_name_or_path=str(tmp_path / "target")), "paper")
    for name, weight in layout.convert_adapter(released_adapter()).items():
        assert torch.equal(model.state_dict()[name], weight)


@pytest.mark.parametrize("trained", [6, 8])
def test_k_of_the_trainer_s_state_is_said_next_to_the_authors_default(tmp_path, trained):
    source = make_source(tmp_path / "source", "plume")
    history = [{"curriculum_latent_tokens": 2}, {"loss": 1.0}, {"curriculum_latent_tokens": trained}]
    (source / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    report = convert(str(source), tmp_path / "target")
    assert PlumeForEmbedding.from_pretrained(tmp_path / "target").config.num_latent_steps == trained
    note = next(note for note in report.notes if "trainer_state.json" in note)
    assert note.startswith(f"K = {trained} from the last entry")
    assert ("the authors' evaluation takes K = 8 unless told otherwise" in note) == (trained != 8)


def _drop(source: Path, pattern: str) -> None:
    weights = {name: w for name, w in load_file(source / "model.safetensors").items() if pattern not in name}
    save_file(weights, source / "model.safetensors", {"format": "pt"})


def _pickle(source: Path) -> None:
    (source / "model.safetensors").rename(source / "pytorch_model.bin")


def _truncate(source: Path) -> None:
    data = (source / "model.safetensors").read_bytes()
    (source / "model.safetensors").write_bytes(data[: len(data) // 2])


def _other_backbone(source: Path) -> None:
    config = json.loads((source / "config.json").read_text())
    config["text_config"]["intermediate_size"] = 128
    (source / "config.json").write_text(json.dumps(config))


def _other_model(source: Path) -> None:
    (source / "config.json").write_text(json.dumps({"model_type": "llama"}))


def _nan(source: Path) -> None:
    weights = load_file(source / "model.safetensors")
    next(weight for name, weight in weights.items() if "layers.1.mlp.up" in name)[0, 0] = float("nan")
    save_file(weights, source / "model.safetensors", {"format": "pt"})


def _integers(source: Path) -> None:
    weights = load_file(source / "model.safetensors")
    name = next(name for name in weights if "layers.1.mlp.up" in name)
    save_file({**weights, name: weights[name].int()}, source / "model.safetensors", {"format": "pt"})


def _quantized(source: Path) -> None:
    _integers(source)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "bitsandbytes"}}))


def _twice(source: Path) -> None:
    weights = load_file(source / "model.safetensors")
    name = next(name for name in weights if name.endswith("layers.1.mlp.up_proj.weight"))
    again = f"model.language_model.{name.removeprefix('model.')}"
    save_file({**weights, again: weights[name] + 1}, source / "model.safetensors", {"format": "pt"})


def _stranger(source: Path) -> None:
    save_file({**load_file(source / "model.safetensors"), "extra.weight": torch.ones(1)}, source / "model.safetensors")


@pytest.mark.parametrize(
    ("kind", "spoil", "options", "message"),
    [
        ("plume", None, {}, "does not store K"),
        ("plume", lambda s: _drop(s, "experts.2.fc1.bias"), {"num_latent_steps": 8}, "fc1.bias"),
        ("plume", lambda s: _drop(s, "router"), {"num_latent_steps": 8}, "lacks"),
        ("qwen2-vl", lambda s: _drop(s, "layers.1.mlp"), {}, "a shard is missing"),
        ("qwen2-vl", _pickle, {}, "only pickles"),
        ("qwen2-vl", _truncate, {}, "truncated"),
        ("qwen2-vl", _other_backbone, {}, "another backbone"),
        ("qwen2-vl", _other_model, {}, "'llama' is not a backbone"),
        ("qwen2-vl", _stranger, {}, "unexpected tensor 'extra.weight'"),
        ("qwen2-vl", None, {"kind": "plume"}, "looks like 'qwen2-vl'"),
        ("qwen2-vl", _nan, {}, r"layers.1.mlp.up_proj.weight holds NaN or infinity"),
        ("qwen2-vl", _integers, {}, r"layers.1.mlp.up_proj.weight as I32"),
        ("qwen2-vl", _quantized, {}, r"layers.1.mlp.up_proj.weight holds torch.int32"),
        ("qwen2-vl", _twice, {}, r"holds model.language_model.layers.1.mlp.up_proj.weight twice"),
    ],
)
def test_unusable_sources_are_refused_and_leave_nothing(tmp_path, kind, spoil, options, message):
    source = make_source(tmp_path / "source", kind)
    if spoil:
        spoil(source)
    with pytest.raises(ValueError, match=message):
        convert(str(source), tmp_path / "out" / "target", **options)
    assert not list((tmp_path / "out").glob("*")) if (tmp_path / "out").exists() else True


def test_no_latent_steps_is_a_choice(tmp_path):
    convert(str(make_source(tmp_path / "source", "qwen2-vl")), tmp_path / "target", num_latent_steps=0)
    assert PlumeForEmbedding.from_pretrained(tmp_path / "target").config.num_latent_steps == 0


def test_a_full_disk_and_an_existing_target_are_refused(tmp_path, monkeypatch):
    source = make_source(tmp_path / "source", "qwen2-vl")
    (tmp_path / "target").mkdir()
    with pytest.raises(ValueError, match="exists already"):
        convert(str(source), tmp_path / "target")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(ValueError, match="MiB left"):
        convert(str(source), tmp_path / "other")


def test_named_tensors_are_ignored_and_reported(tmp_path):
    source = make_source(tmp_path / "source", "qwen2-vl")
    _stranger(source)
    report = convert(str(source), tmp_path / "target", ignore="^extra")
    assert report.tensors["extra.weight"] == "ignored"
    assert json.loads((tmp_path / "target" / "conversion.json").read_text())["kind"] == "qwen2-vl"


@pytest.mark.slow
def test_a_killed_conversion_leaves_no_target_and_the_next_one_clears_up(tmp_path):
    source = make_source(tmp_path / "source", "qwen2-vl", shards=3)
    slow = (
        "import time, plume.hub.convert as c; c.save_file = lambda *a: (print('writing', flush=True), time.sleep(60))"
    )
    code = f"{slow}; from pathlib import Path; c.convert({str(source)!r}, Path({str(tmp_path / 'target')!r}))"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "writing\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(list(tmp_path.glob(".target.*"))) == 2  # a folder and its lock
    other = tmp_path / ".target-b.partial-abc"  # of another target
    other.mkdir()
    convert(str(source), tmp_path / "target")
    assert {path.name for path in tmp_path.iterdir()} == {"source", "target", other.name}


def test_two_conversions_to_one_target_do_not_meet(tmp_path):
    source = make_source(tmp_path / "source", "qwen2-vl")
    with FileLock(tmp_path / ".target.lock"), pytest.raises(ValueError, match="Another process is converting"):
        convert(str(source), tmp_path / "target")
    assert not list(tmp_path.glob(".target.partial*"))


def test_memory_stays_at_one_shard(tmp_path):
    """Shards are read one tensor at a time; what is alive at once is one shard and the adapter."""
    source = make_source(tmp_path / "source", "qwen2-vl", shards=3)
    alive, most = [0], [0]
    real = layout.Source.read

    def counted(self, shard, names):
        alive[0] = 0 if shard != counted.shard else alive[0]
        counted.shard = shard
        tensors = real(self, shard, names)
        alive[0] += sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        most[0] = max(most[0], alive[0])
        return tensors

    counted.shard = None
    layout.Source.read = counted
    try:
        convert(str(source), tmp_path / "target")
    finally:
        layout.Source.read = real
    assert 0 < most[0] <= max(path.stat().st_size for path in source.glob("*.safetensors"))


@pytest.fixture(scope="module")
def converted(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("converted")
    convert(str(make_source(folder / "source", "plume")), folder / "target", num_latent_steps=4)
    return folder / "target"


@pytest.mark.slow
def test_a_converted_checkpoint_passes_its_verification(converted):
    findings = {finding.name: finding for finding in verify(converted)}
    assert all(finding.passed for finding in findings.values()), findings
    assert findings["adapter"].detail == "trained"
    assert "356" in findings["golden positions"].detail
    again = verify_module._fingerprint(
        PlumeForEmbedding.from_pretrained(converted).eval(), PlumeProcessor.from_pretrained(converted)
    )
    assert again == findings["fingerprint"]


def test_verification_notices_what_is_wrong(converted, tmp_path):
    shutil.copytree(converted, tmp_path / "spoilt")
    config = json.loads((tmp_path / "spoilt" / "config.json").read_text())
    config["anchor_token_id"], config["suffix_token_ids"][0] = config["latent_token_id"], 7
    (tmp_path / "spoilt" / "config.json").write_text(json.dumps(config))
    model = PlumeForEmbedding.from_pretrained(tmp_path / "spoilt")
    with torch.no_grad():
        model.model.language_model.norm.weight[0] = float("nan")
    processor = PlumeProcessor.from_pretrained(tmp_path / "spoilt")
    assert not verify_module._token_ids(model, processor).passed
    assert not verify_module._weights(tmp_path / "spoilt", model).passed


@pytest.mark.slow
def test_the_commands_convert_verify_and_publish_dry(tmp_path, monkeypatch, capsys):
    source = make_source(tmp_path / "source", "ume-r1")
    monkeypatch.chdir(tmp_path)

    def said(*arguments):
        assert not command_line.main(list(map(str, arguments)))
        return capsys.readouterr().out

    text = said("convert", source, "target", "--num_latent_steps", "3")
    assert "recognised as ume-r1" in text
    assert "tensors created" in text
    assert said("verify", "target").count("ok  ") == 8
    text = said("publish", "target", "org/name", "--dry-run", "--license", "apache-2.0")
    assert "modeling_plume.py" in text
    assert "The transition adapter is untrained" in text
    assert 'SentenceTransformer("org/name", trust_remote_code=True)' in text
    assert "license: apache-2.0" in text


def test_publishing_sends_everything_with_a_card_of_its_own(converted, tmp_path, monkeypatch):
    from huggingface_hub import HfApi, RepoUrl

    shutil.copytree(converted, tmp_path / "folder")
    for private in ("id_rsa", "token.txt", "trainer_state.json", "train_pairs.jsonl"):
        (tmp_path / "folder" / private).write_text("{}")
    (tmp_path / "folder" / "checkpoint-5").mkdir()
    (tmp_path / "folder" / "checkpoint-5" / "optimizer.pt").write_text("x")
    (tmp_path / "folder" / "1_Dense").mkdir()
    (tmp_path / "folder" / "1_Dense" / "model.safetensors").write_text("x")
    modules = json.loads((tmp_path / "folder" / "modules.json").read_text())
    dense = {"idx": 1, "name": "1", "path": "1_Dense", "type": "sentence_transformers.base.modules.dense.Dense"}
    (tmp_path / "folder" / "modules.json").write_text(json.dumps([*modules, dense]))
    scores = {"data_version": "fixed pages", "condition": "K = 4, fp32", "tasks": {"toy": 12.5}}
    (tmp_path / "folder" / "scores.json").write_text(json.dumps(scores))
    sent: dict[str, str] = {}

    def upload_folder(self, *, repo_id, folder_path, create_pr, delete_patterns, **kwargs):
        assert "model.safetensors" in delete_patterns
        sent.update(
            {str(path.relative_to(folder_path)): path.name for path in Path(folder_path).rglob("*") if path.is_file()}
        )
        sent["card"], sent["pr"] = (Path(folder_path) / "README.md").read_text(), str(create_pr)
        return SimpleNamespace(pr_url=None)

    monkeypatch.setattr(
        HfApi, "create_repo", lambda self, repo_id, **kwargs: RepoUrl(f"https://huggingface.co/{repo_id}")
    )
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    publish(tmp_path / "folder", "org/name", create_pr=True)
    assert {"README.md", "modeling_plume.py", "modules.json", "model.safetensors.index.json", "scores.json"} <= set(
        sent
    )
    assert not [
        name for name in sent if "checkpoint-5" in name or name in ("id_rsa", "token.txt", "trainer_state.json")
    ]
    assert "train_pairs.jsonl" not in sent
    assert "1_Dense/model.safetensors" in sent
    assert sent["pr"] == "True"
    assert "| toy | 12.5 |" in sent["card"]
    assert "Data version: fixed pages. Condition: K = 4, fp32." in sent["card"]
    assert (tmp_path / "folder" / "README.md").read_text() != sent["card"]


def test_an_incomplete_folder_is_not_published(converted, tmp_path):
    shutil.copytree(converted, tmp_path / "folder")
    (tmp_path / "folder" / "modeling_plume.py").unlink()
    with pytest.raises(ValueError, match=r"lacks modeling_plume\.py"):
        files_to_publish(tmp_path / "folder")
    assert "None measured." in build_card(converted, "org/name")


def test_mixtures_of_a_converted_checkpoint_are_batch_invariant(converted):
    model, processor = PlumeForEmbedding.from_pretrained(converted).eval(), PlumeProcessor.from_pretrained(converted)
    inputs = mixed_inputs()[:6]
    with torch.no_grad():
        together = model(**processor.process_queries(inputs, max_pixels=28 * 28 * 16)).embeddings
        for item, vector in zip(inputs, together, strict=True):
            alone = model(**processor.process_queries([item], max_pixels=28 * 28 * 16)).embeddings[0]
            assert (alone - vector).abs().max() <= 1e-5
    assert processor.suffix == RELEASED_LAYOUT.suffix

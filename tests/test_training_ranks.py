"""Training on several ranks: saving and resuming, and streams that are cut evenly."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import launch_fsdp
import launch_shard
import pytest
import torch
from accelerate.data_loader import prepare_data_loader
from corpus import launcher_of_two, write_corpus
from safetensors.torch import load_file
from torch.utils.data import DataLoader
from transformers import AutoModel

from inputs import ROOT, embed, free_port, noise_image
from plume import PlumeProcessor
from plume.hub.random_checkpoint import save_random_plume

pytest.importorskip("trl", reason="training needs the extra `train`")

from processes import run_on_two_ranks

from plume.training.collator import PairCollator
from plume.training.config import PlumeTrainingConfig
from plume.training.data import load_rows
from plume.training.train import main, refuse_split_lora


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """40 pairs, media, and a tiny model."""
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder, rows=40)
    save_random_plume(folder / "model", num_latent_steps=4, max_latent_steps=8)
    return folder


def launch(launcher, settings, flags, timeout: int) -> list[float]:
    """Losses of a run of several processes; a hang ends with the time limit."""
    flat = [str(part) for item in settings.items() for part in item]
    done = subprocess.run(
        [sys.executable, *launcher, *flat, *flags],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CI": "1"}, capture_output=True, text=True, check=False, timeout=timeout,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return losses_of(settings["--output_dir"])


def train_on_two_ranks(corpus, output, *flags) -> list[float]:
    """Losses of `accelerate launch training/train.py` on two processes."""
    arguments = {
        "--model_name_or_path": corpus / "model", "--train_files": corpus / "pairs.jsonl", "--media_root": corpus / "media",
        "--output_dir": output, "--per_device_train_batch_size": 4, "--sub_batch_size": 4, "--report_to": "none", "--bf16": False,
        "--use_cpu": True, "--logging_steps": 1, "--save_strategy": "steps", "--save_steps": 2, "--max_steps": 4,
        "--chunk_tokens": 200, "--learning_rate": 1e-3,
    }  # fmt: skip
    return launch([*launcher_of_two(), str(ROOT / "training" / "train.py")], arguments, flags, timeout=300)


@pytest.mark.slow
def test_two_ranks_save_and_resume_to_the_same_losses(corpus, tmp_path):
    """Chunks by tokens, so that the ranks cut their batches differently."""
    whole = train_on_two_ranks(corpus, tmp_path / "whole")
    assert len(whole) == 4
    assert json.loads((tmp_path / "whole" / "checkpoint-2" / "curriculum.json").read_text())["step"] == 2
    checkpoint = tmp_path / "whole" / "checkpoint-2"
    resumed = train_on_two_ranks(corpus, tmp_path / "resumed", "--resume_from_checkpoint", str(checkpoint))
    assert resumed == whole


def test_ranks_read_equally_many_pairs_of_a_stream(corpus, tmp_path):
    """Of two files of unequal length: every batch of every rank is full, and each row is read."""
    lines = (corpus / "pairs.jsonl").read_text().splitlines()
    files = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for file, some in zip(files, (lines[:13], lines[13:35]), strict=True):
        file.write_text("\n".join(some))
    config = PlumeTrainingConfig(output_dir=str(tmp_path / "out"), use_cpu=True, bf16=False)
    collator = PairCollator(PlumeProcessor.from_pretrained(corpus / "model"), str(corpus / "media"))
    places, sizes = set(), []
    for rank in range(2):
        rows = load_rows([str(file) for file in files], streaming=True)
        loader = prepare_data_loader(
            DataLoader(rows, batch_size=4, collate_fn=collator),
            num_processes=2, process_index=rank, dispatch_batches=config.accelerator_config.dispatch_batches,
        )  # fmt: skip
        batches = list(loader)
        sizes.append([batch["num_pairs"] for batch in batches])
        places |= {place for batch in batches for place in batch["texts"].places}
    assert sizes == [[4] * 5] * 2
    assert len(places) == 35


STEPS = {
    "--per_device_train_batch_size": 4, "--sub_batch_size": 4, "--report_to": "none", "--bf16": False, "--use_cpu": True,
    "--logging_steps": 1, "--save_strategy": "steps", "--save_steps": 2, "--max_steps": 4, "--learning_rate": 1e-3,
    "--adam_epsilon": 1e-2, "--verdict_pairs": 4,  # a smooth optimizer: rounding is not amplified
}  # fmt: skip


def losses_of(output) -> list[float]:
    state = json.loads((output / "checkpoint-4" / "trainer_state.json").read_text())
    return [entry["loss"] for entry in state["log_history"] if "loss" in entry]


def train_sharded(folder, output, *flags) -> list[float]:
    """Losses of training/train.py under our FSDP2 settings, on two ranks; a hang ends with the time limit."""
    settings = {**STEPS, "--model_name_or_path": folder / "model", "--train_files": folder / "pairs.jsonl",
                "--media_root": folder / "media", "--output_dir": output, "--chunk_tokens": 200}  # fmt: skip
    config = ["--config_file", str(ROOT / "training" / "accelerate" / "fsdp2.yaml"), "--num_processes", "2"]
    options = ["--mixed_precision", "no", "--main_process_port", str(free_port())]
    launcher = ["-m", "accelerate.commands.launch", *config, *options, launch_fsdp.__file__]
    return launch(launcher, settings, flags, timeout=240)


@pytest.mark.slow
def test_a_sharded_run_saves_resumes_and_ends_in_the_checkpoint_of_one_rank(tmp_path, remote):
    write_corpus(tmp_path, rows=40)
    save_random_plume(tmp_path / "model", num_latent_steps=4, max_latent_steps=8, expert_dropout=0.0)
    whole = train_sharded(tmp_path, tmp_path / "whole")
    assert (tmp_path / "whole" / "checkpoint-2" / "pytorch_model_fsdp.bin").is_file(), "it was not sharded"
    checkpoint = str(tmp_path / "whole" / "checkpoint-2")
    assert train_sharded(tmp_path, tmp_path / "resumed", "--resume_from_checkpoint", checkpoint) == whole
    settings = {**STEPS, "--per_device_train_batch_size": 8}
    flat = [str(part) for item in settings.items() for part in item]
    names = ["--model_name_or_path", "--train_files", "--media_root", "--output_dir"]
    paths = [tmp_path / name for name in ("model", "pairs.jsonl", "media", "one")]
    main([*(str(part) for pair in zip(names, paths, strict=True) for part in pair), *flat])
    assert losses_of(tmp_path / "one") == pytest.approx(whole, rel=1e-4)
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("one", "whole", "resumed")]
    start = load_file(tmp_path / "model" / "model.safetensors")
    assert start.keys() == weights[0].keys() == weights[1].keys()
    moved = max((weights[0][name] - start[name]).abs().max().item() for name in start)
    for name, weight in weights[0].items():
        assert (weights[1][name] - weight).abs().max() <= 1e-3 * moved, name
        assert weights[2][name].equal(weights[1][name]), name
    vectors = [
        embed(AutoModel.from_pretrained(folder).eval(), PlumeProcessor.from_pretrained(folder), ["a red box"])
        for folder in (tmp_path / "one", tmp_path / "whole")
    ]
    assert (vectors[0] - vectors[1]).abs().max() <= 1e-4
    assert abs(remote("transformers", tmp_path / "whole", ["a red box"]) - vectors[1].numpy()).max() <= 1e-5


def test_lora_is_refused_where_its_weights_are_split():
    for split, uses_lora in ((True, False), (False, True)):
        refuse_split_lora(SimpleNamespace(is_fsdp_enabled=split), uses_lora)
    with pytest.raises(ValueError, match=r"ddp\.yaml or zero2\.yaml"):
        refuse_split_lora(SimpleNamespace(is_fsdp_enabled=True), True)


def shard_corpus(folder) -> None:
    """Four pairs of texts, then four of texts and pictures: the first of two ranks has text alone."""
    lines = []
    for index in range(8):
        noise_image(index).save(folder / f"{index}.png")
        row = {"query": f"query {index}", "positive": f"text {index}" if index < 4 else f"{index}.png"}
        row |= {"rationale_query": "One. Two.", "rationale_positive": "Three."}
        lines.append(json.dumps(row | ({"negative_1": "other"} if index % 4 < 2 else {})))
    (folder / "pairs.jsonl").write_text("\n".join(lines))
    (folder / "media").symlink_to(folder)


@pytest.mark.slow
def test_sharded_gradients_equal_one_rank_s_with_text_next_to_pictures(corpus, tmp_path):
    """FSDP2 over two ranks, whole and in chunks; a rank that left out the vision tower would hang, up to the time limit."""
    shard_corpus(tmp_path)
    (tmp_path / "model").symlink_to(corpus / "model")
    launch_shard.main(tmp_path, tmp_path)
    run_on_two_ranks(launch_shard.main, tmp_path, tmp_path)
    for one, two in zip(*(torch.load(tmp_path / f"shard-{world}.pt") for world in (1, 2)), strict=True):
        scale = max(gradient.abs().max() for gradient in one.values())
        # One rank touches what a stage leaves out, so its gradient there is 0; sharded, there is none.
        for name, gradient in one.items():
            assert (gradient - two.get(name, torch.zeros_like(gradient))).abs().max() <= 1e-5 * scale, name
        assert two["model.visual.merger.mlp.0.weight"].abs().max() > 0

"""Checkpoints of a run: whole or absent, found, refused by the part they lack; a killed run ends as an unkilled one."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from corpus import make_trainer, write_corpus
from kill_training import run_with_kills
from safetensors import SafetensorError
from transformers import AutoModel
from transformers.testing_utils import CaptureLogger
from transformers.utils import logging

from plume.hub.random_checkpoint import save_random_plume

pytest.importorskip("trl", reason="training needs the extra `train`")

from peft import LoraConfig, PeftModel

from plume.training.checkpoints import missing_parts, newest_whole

PARTS = [
    "optimizer.pt", "scheduler.pt", "rng_state.pth", "curriculum.json", "trainer_state.json", "training_args.bin",
    "model.safetensors", "config.json",
]  # fmt: skip


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder, rows=24)
    save_random_plume(folder / "model", num_latent_steps=2, max_latent_steps=8)
    return folder


OPTIONS = {"max_steps": 3, "save_strategy": "steps", "save_steps": 1, "stage_weights": [0, 1, 1], "num_negatives": 0}


LORA = {"r": 2, "target_modules": r".*language_model.*\.(q|v)_proj", "modules_to_save": ["latent_transition"]}


@pytest.fixture(scope="module")
def run(corpus, tmp_path_factory) -> Path:
    """Folder of a run of three steps with three checkpoints."""
    folder = tmp_path_factory.mktemp("run")
    make_trainer(corpus, folder, **OPTIONS).train()
    return folder


def test_a_finished_run_leaves_whole_checkpoints_only(run):
    assert sorted(path.name for path in run.glob("*checkpoint*")) == [f"checkpoint-{step}" for step in (1, 2, 3)]
    assert not (run / ".unfinished").exists()
    assert [missing_parts(run / f"checkpoint-{step}") for step in (1, 2, 3)] == [[], [], []]


@pytest.mark.parametrize("moment", ["_save_optimizer_and_scheduler", "_save_rng_state"])
def test_a_checkpoint_that_is_not_finished_does_not_carry_the_name_of_one(corpus, tmp_path, monkeypatch, moment):
    class Killed(BaseException):
        pass

    def die(*args):
        raise Killed

    trainer = make_trainer(corpus, tmp_path, **OPTIONS)
    monkeypatch.setattr(trainer, moment, die)
    with pytest.raises(Killed):
        trainer.train()
    assert not list(tmp_path.glob("checkpoint-*"))
    make_trainer(corpus, tmp_path, **OPTIONS).train(resume_from_checkpoint=True)
    assert newest_whole(tmp_path).name == "checkpoint-3"
    assert not (tmp_path / ".unfinished").exists()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_full_disk_ends_a_run_and_the_next_one_goes_on(corpus, run, tmp_path, monkeypatch):
    """No file may grow beyond a kilobyte while checkpoint 2 is written: a full disk, but for the number of the error."""
    resource = pytest.importorskip("resource", reason="limits of processes are not known here")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    trainer = make_trainer(corpus, tmp_path, **OPTIONS)
    save = trainer._save_checkpoint

    def save_on_a_disk_that_fills(*args):
        size = soft if trainer.state.global_step == 1 else 1024
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        save(*args)

    monkeypatch.setattr(trainer, "_save_checkpoint", save_on_a_disk_that_fills)
    try:
        with pytest.raises((OSError, SafetensorError, RuntimeError)):
            trainer.train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-1"]
    make_trainer(corpus, tmp_path, **OPTIONS).train(resume_from_checkpoint=True)
    weights = [AutoModel.from_pretrained(folder / "checkpoint-3").state_dict() for folder in (run, tmp_path)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not (tmp_path / ".unfinished").exists()


@pytest.mark.parametrize("part", PARTS)
def test_a_checkpoint_that_lacks_a_part_is_refused_by_its_name(corpus, run, tmp_path, part):
    folder = tmp_path / "checkpoint-2"
    shutil.copytree(run / "checkpoint-2", folder)
    (folder / part).unlink()
    trainer = make_trainer(corpus, tmp_path, **OPTIONS)
    with pytest.raises(ValueError, match=rf"checkpoint-2 lacks {part}: "):
        trainer.train(resume_from_checkpoint=str(folder))


def test_a_missing_shard_is_a_missing_part(tmp_path):
    for name in ("curriculum.json", "trainer_state.json", "training_args.bin", "scheduler.pt", "optimizer.pt",
                 "rng_state.pth", "config.json", "model-1.safetensors"):  # fmt: skip
        (tmp_path / name).touch()
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert missing_parts(tmp_path) == ["model-2.safetensors"]
    assert missing_parts(tmp_path, world_size=2) == ["rng_state_0.pth", "rng_state_1.pth", "model-2.safetensors"]


@pytest.mark.parametrize("asked", [True, "true"])
def test_the_newest_whole_checkpoint_is_taken_and_the_others_are_named(corpus, run, tmp_path, asked):
    for step in (1, 2, 3):
        shutil.copytree(run / f"checkpoint-{step}", tmp_path / f"checkpoint-{step}")
    (tmp_path / "checkpoint-3" / "optimizer.pt").unlink()
    (tmp_path / "checkpoint-3" / "curriculum.json").unlink()
    trainer = make_trainer(corpus, tmp_path, **OPTIONS)
    with CaptureLogger(logging.get_logger("plume.training.checkpoints")) as captured:
        trainer.train(resume_from_checkpoint=asked)
    assert "checkpoint-3 is passed over: it lacks curriculum.json, optimizer.pt." in captured.out
    assert "Resuming from " in captured.out
    assert "checkpoint-2." in captured.out
    assert missing_parts(tmp_path / "checkpoint-3") == []  # written anew


def test_a_run_without_a_checkpoint_begins_anew_and_says_so(corpus, tmp_path):
    trainer = make_trainer(corpus, tmp_path / "new", **{**OPTIONS, "max_steps": 1})
    with CaptureLogger(logging.get_logger("plume.training.checkpoints")) as captured:
        trainer.train(resume_from_checkpoint="true")
    assert "holds no whole checkpoint: starting anew" in captured.out


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_old_checkpoints_are_removed_and_the_best_one_is_loaded_at_the_end(corpus, tmp_path, lora):
    options = {
        **OPTIONS, "save_total_limit": 1, "load_best_model_at_end": True, "metric_for_best_model": "loss",
        "eval_strategy": "steps", "eval_steps": 1,
    }  # fmt: skip
    peft_config = lora and LoraConfig(**lora)
    trainer = make_trainer(corpus, tmp_path, evaluate=8, peft_config=peft_config, **options)
    seen = []
    log = trainer.log

    def fake(logs, *args):
        """The second step is the best one."""
        if "eval_loss" in logs:
            seen.append({name: p.detach().clone() for name, p in trainer.model.named_parameters()})
            logs["eval_loss"] = [3.0, 1.0, 2.0][len(seen) - 1]
        log(logs, *args)

    trainer.log = fake
    trainer.train()
    assert all(p.equal(seen[1][name]) for name, p in trainer.model.named_parameters())
    assert not all(p.equal(seen[2][name]) for name, p in trainer.model.named_parameters())
    best = Path(trainer.state.best_model_checkpoint)
    assert best == tmp_path / "checkpoint-2"
    left = {path.name for path in tmp_path.glob("checkpoint-*")}
    assert left == {best.name}
    saved = json.loads((best / "trainer_state.json").read_text())
    assert saved["best_model_checkpoint"] == str(best)


@pytest.mark.slow
def test_a_lora_run_resumes_to_the_same_losses_and_peft_loads_its_checkpoint(corpus, tmp_path, recwarn):
    runs = []
    for folder, resumed in (("whole", None), ("resumed", str(tmp_path / "whole" / "checkpoint-1"))):
        trainer = make_trainer(corpus, tmp_path / folder, peft_config=LoraConfig(**LORA), **OPTIONS)
        trainer.train(resume_from_checkpoint=resumed)
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        runs.append((losses, {name: p.detach().clone() for name, p in trainer.model.named_parameters()}))
    assert not [warning for warning in recwarn if "deprecated" in str(warning.message)]
    (expected, weights), (found, again) = runs
    assert len(expected) == 3
    assert found == expected
    assert all(again[name].equal(weight) for name, weight in weights.items())
    loaded = PeftModel.from_pretrained(AutoModel.from_pretrained(corpus / "model"), tmp_path / "whole" / "checkpoint-3")
    assert all(weights[name].equal(weight) for name, weight in loaded.named_parameters())


def test_prediction_counts_every_row(corpus, tmp_path):
    trainer = make_trainer(corpus, tmp_path, num_negatives=0, per_device_eval_batch_size=8)
    for rows in (20, 6):
        prediction = trainer.predict(trainer.train_dataset.select(range(rows)))
        assert [len(side) for side in prediction.predictions] == [rows, rows]
    assert trainer.args.dataloader_drop_last


@pytest.mark.slow
def test_a_killed_run_ends_as_an_unkilled_one(corpus, tmp_path):
    """`python tests/kill_training.py --kills 20` is the long form."""
    assert run_with_kills(corpus, tmp_path, kills=2, seed=0) == 2

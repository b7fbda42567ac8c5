"""Runs with a real checkpoint: result files, resume, conditions, devices, the command, and mteb's own mock tasks."""

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import mteb
import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image, Value, load_dataset
from evaluation_world import image_rows, write_dataset, write_table, write_world
from PIL import ImageFile

from inputs import ROOT, noise_image, noise_video
from plume.evaluation import encoder as encoder_module
from plume.evaluation import tasks
from plume.evaluation.__main__ import main
from plume.evaluation.embedders import ModelEmbedder, PooledEmbedder, load_embedder
from plume.evaluation.encoder import PlumeEncoder, describe, finish, to_inputs
from plume.evaluation.parsers.common import Picture
from plume.evaluation.runner import evaluate
from plume.evaluation.store import FailedTasksError, VectorStore
from plume.evaluation.table import MMEB_V2, make_row, read_table, select
from plume.hub.random_checkpoint import save_random_plume
from plume.layouts import RELEASED_LAYOUT

TABLE = read_table()
NAMES = ["ImageNet-1K", "MomentSeeker", "MSVD", "ViDoSeek-doc"]
ROWS = select(TABLE, NAMES)
INPUTS = [
    {"text": "a red bus"},
    {"image": noise_image(1), "text": "two dogs"},
    {"video": noise_video(2, 10), "text": "a clip"},
    {"image": noise_image(3)},
]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mmeb")
    write_world(folder, ROWS)
    return folder


class Counting(ModelEmbedder):
    """Counts what it embeds, and fails where it is told to."""

    seen, fail_at = 0, None

    def encode(self, inputs, role):
        if self.fail_at is not None and self.seen >= self.fail_at:
            raise KeyboardInterrupt
        self.seen += len(inputs)
        return super().encode(inputs, role)


@pytest.fixture
def embedder(model, processor):
    return Counting(model, processor)


# Encoder


def test_the_encoder_gives_the_models_own_vectors_without_instructions(model, processor, embedder):
    with torch.no_grad():
        features = processor.process_documents(INPUTS, prompt="", num_frames=10)
        expected = model(**features).embeddings
    for role in ("query", "document"):
        assert torch.allclose(embedder.encode(INPUTS, role), expected, atol=1e-6)


def test_the_encoder_keeps_all_frames_that_a_task_gives(processor, embedder):
    assert processor.num_frames < 10
    all_frames, eight = {"video": noise_video(2, 10)}, {"video": noise_video(2, 10)[:8]}
    vectors = embedder.encode([all_frames, eight], "document")
    assert not torch.allclose(vectors[0], vectors[1], atol=1e-4)


def test_the_encoder_puts_a_model_in_training_back(model, processor):
    model.train()
    first, second = (ModelEmbedder(model, processor).encode(INPUTS[:1], "query") for _ in range(2))
    assert model.training
    assert torch.equal(first, second)  # no dropout


def test_instructions_for_tasks_of_mteb_are_written_as_the_processor_does(processor):
    batch = {"text": ["a red bus", ""], "image": [None, noise_image(1)]}
    items = to_inputs(batch, "Find it:")
    assert items == [{"text": "Find it:\na red bus"}, {"text": "Find it:", "image": batch["image"][1]}]
    ours = processor.process_documents(items, prompt="")
    theirs = processor.process_queries(["a red bus", {"image": batch["image"][1]}], prompt="Find it:")
    assert torch.equal(ours["input_ids"], theirs["input_ids"])


def test_batches_of_columns_become_inputs():
    picture, clip = noise_image(1), noise_video(1, 2)
    batch = {
        "text": ["a", "b", "", "d"],
        "video": [[], [picture], clip, None],
        "medium": ["text", "image", "video", "text"],
    }
    assert to_inputs(batch) == [{"text": "a"}, {"text": "b", "image": picture}, {"video": clip}, {"text": "d"}]
    assert to_inputs({"image": [picture]}) == [{"image": picture}]


def test_a_decoder_of_mtebs_own_video_tasks_gives_eight_frames(embedder):
    class Decoder:
        """What torchcodec's decoder offers."""

        def __len__(self):
            return 16

        def get_frames_at(self, indices):
            frames = torch.zeros(len(indices), 3, 28, 28, dtype=torch.uint8)
            return type(
                "FrameBatch", (), {"data": frames + torch.tensor(indices, dtype=torch.uint8)[:, None, None, None]}
            )

    [item] = to_inputs({"video": [Decoder()]})
    assert item["video"][:, 0, 0, 0].tolist() == [0, 2, 4, 6, 8, 10, 12, 15]
    assert embedder.encode([item], "document").shape == (1, 32)


def test_vectors_are_finished_and_described():
    vectors = np.array([[3.0, 4.0, 1.0], [3.0, 4.0, 1.0], [-4.0, 3.0, 0.0]], dtype=np.float32)
    finished = finish(vectors, 2)
    assert np.allclose(finished, [[0.6, 0.8], [0.6, 0.8], [-0.8, 0.6]])
    described = describe(finished)
    assert described == {"count": 3, "mean_cosine": pytest.approx(1 / 3, abs=1e-6), "distinct": 2, "dim": 2}
    assert describe(finished[:1])["mean_cosine"] is None


@pytest.mark.slow
def test_several_devices_give_the_same_vectors(checkpoint, embedder):
    pooled = load_embedder(checkpoint, devices=["cpu", "cpu"], batch_size=2)
    assert isinstance(pooled, PooledEmbedder)
    try:
        vectors = pooled.encode(INPUTS, "document")
    finally:
        pooled.close()
    assert torch.allclose(vectors, embedder.encode(INPUTS, "document"), atol=1e-5)
    assert pooled.condition["checkpoint"]["hash"]
    assert {**pooled.condition, "checkpoint": None} == {**embedder.condition, "checkpoint": None}


# Results


def test_a_result_says_under_which_condition_it_holds(world, checkpoint, tmp_path):
    results = evaluate(checkpoint, ROWS, world, tmp_path, progress=False, latent_steps=2, dim=8)
    assert [result["task"] for result in results] == [row.id for row in ROWS]
    for result in results:
        assert json.loads((tmp_path / f"{result['task']}.json").read_text()) == result
        condition = result["condition"]
        assert condition["benchmark"] == "MMEB-v2"
        assert (condition["version"], condition["page_labels"]) == ("v2.1", "fixed")
        assert (condition["latent_steps"], condition["dim"], condition["prompt_set"]) == (2, 8, "clean")
        assert {"min_pixels", "video_max_pixels", "blank_image_size", "checkpoint", "dataset"} <= condition.keys()
        assert (condition["dtype"], result["vectors"]["query"]["dim"]) == ("float32", 8)
        assert len({result["data"]["queries"], result["data"]["corpus"]}) == 2
        assert {"mteb", "torch", "transformers"} <= result["libraries"].keys()
    frames = {result["task"]: result["condition"]["num_frames"] for result in results}
    assert frames == {"ImageNet-1K": None, "MomentSeeker": "all", "MSVD": 8, "ViDoSeek-doc": None}


def test_a_path_and_a_model_in_memory_score_the_same(world, checkpoint, embedder):
    on_disk = evaluate(checkpoint, ROWS, world, progress=False)
    in_memory = evaluate(embedder, ROWS, world, progress=False)
    assert [result["scores"] for result in on_disk] == [result["scores"] for result in in_memory]


def test_extra_keys_of_a_row_stand_next_to_its_score(world, embedder, tmp_path):
    fields = next(f for f in json.loads(MMEB_V2.read_text())["tasks"] if f["id"] == "MSVD")
    moved = {**fields, "dataset_folder": "elsewhere", "hops": 2, "control": True}
    shutil.copytree(world / "VLM2Vec" / "MSVD", tmp_path / "elsewhere")
    [result] = evaluate(embedder, [moved], tmp_path, media_root=world, progress=False)
    assert (result["hops"], result["control"], result["condition"]["benchmark"]) == (2, True, "unnamed")


def test_latent_steps_change_vectors_and_a_single_pass_has_none(world, checkpoint, tmp_path):
    for name, options in {"k3": {}, "k0": {"latent_steps": 0}, "single": {"baseline": "single-pass"}}.items():
        evaluate(checkpoint, ROWS[:1], world, tmp_path / name, progress=False, **options)
    vectors = {
        name: np.load(next((tmp_path / name / "vectors" / "ImageNet-1K").glob("query-*/000000.npy")))
        for name in ("k3", "k0", "single")
    }
    assert np.array_equal(vectors["k0"], vectors["single"])
    assert not np.allclose(vectors["k3"], vectors["k0"], atol=1e-3)
    with pytest.raises(ValueError, match="contradicts"):
        evaluate(checkpoint, ROWS[:1], world, latent_steps=2, baseline="single-pass")
    with pytest.raises(ValueError, match="no effect"):
        evaluate(load_embedder(checkpoint), ROWS[:1], world, latent_steps=2)


def test_the_released_prompt_brings_the_official_instructions(world, tmp_path):
    model, processor = save_random_plume(tmp_path / "released", layout=RELEASED_LAYOUT, num_latent_steps=1)
    [result] = evaluate(ModelEmbedder(model, processor), ROWS[3:], world, progress=False)
    assert result["condition"]["prompt_set"] == "official"
    [result] = evaluate(ModelEmbedder(model, processor), ROWS[3:], world, progress=False, prompt_set="clean")
    assert result["condition"]["prompt_set"] == "clean"


# Resume


def test_a_second_run_encodes_nothing(world, embedder, tmp_path):
    first = evaluate(embedder, ROWS, world, tmp_path, progress=False)
    seen = embedder.seen
    assert seen == sum(result["n"] + result["num_candidates"] for result in first)
    assert evaluate(embedder, ROWS, world, tmp_path, progress=False) == first
    assert embedder.seen == seen
    for result in first:  # without the results, their vectors are still there
        (tmp_path / f"{result['task']}.json").unlink()
    again = evaluate(embedder, ROWS, world, tmp_path, progress=False)
    assert embedder.seen == seen
    assert [result["scores"] for result in again] == [result["scores"] for result in first]


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_stopped(world, embedder, model, processor, tmp_path, monkeypatch):
    monkeypatch.setattr(encoder_module, "_PART", 2)
    whole = evaluate(embedder, ROWS, world, progress=False, batch_size=1)
    killed = Counting(model, processor)
    killed.fail_at = 5
    with pytest.raises(KeyboardInterrupt):
        evaluate(killed, ROWS, world, tmp_path, progress=False, batch_size=1)
    kept = sum(len(np.load(file)) for file in tmp_path.rglob("*.npy"))
    assert kept == 5  # three queries and the first whole part of their candidates
    (next(tmp_path.rglob("document-*")) / "000002.tmp").write_bytes(b"half a part")
    resumed = Counting(model, processor)
    results = evaluate(resumed, ROWS, world, tmp_path, progress=False, batch_size=1)
    assert resumed.seen == embedder.seen - kept
    assert [result["scores"] for result in results] == [result["scores"] for result in whole]


def test_results_and_vectors_of_another_condition_are_refused(world, checkpoint, model, processor, tmp_path):
    evaluate(checkpoint, ROWS[:1], world, tmp_path, progress=False)
    with pytest.raises(ValueError, match="latent_steps: 3 there, 1 here"):
        evaluate(checkpoint, ROWS[:1], world, tmp_path, progress=False, latent_steps=1)
    (tmp_path / "ImageNet-1K.json").unlink()
    with pytest.raises(ValueError, match="vectors of another checkpoint"):
        evaluate(checkpoint, ROWS[:1], world, tmp_path, progress=False, latent_steps=1)
    with torch.no_grad():
        model.latent_transition.experts.down_bias.add_(1.0)
    with pytest.raises(ValueError, match="vectors of another checkpoint"):  # weights in memory are told apart
        evaluate(ModelEmbedder(model, processor), ROWS[:1], world, tmp_path, progress=False)


def test_vectors_of_other_frames_or_media_are_not_reused(world, embedder, tmp_path):
    """The texts of a task of clips may all be the same."""
    rows, moved = select(TABLE, ["MSVD"]), tmp_path / "media"
    evaluate(embedder, rows, world, tmp_path / "eight", progress=False)
    vectors, seen = tmp_path / "eight" / "vectors", embedder.seen
    [four] = evaluate(embedder, rows, world, tmp_path / "four", num_frames=4, vectors=vectors, progress=False)
    assert embedder.seen > seen
    [alone] = evaluate(embedder, rows, world, num_frames=4, progress=False)
    assert four["scores"] == alone["scores"]
    assert four["vectors"] == alone["vectors"]
    shutil.copytree(world, moved)
    seen = embedder.seen
    evaluate(embedder, rows, world, tmp_path / "moved", vectors=vectors, media_root=moved, progress=False)
    assert embedder.seen == seen  # the same files elsewhere
    for frame in moved.rglob("frame_1.jpg"):
        noise_image(7, 32, 32).save(frame, format="PNG")
    evaluate(embedder, rows, world, tmp_path / "other", vectors=vectors, media_root=moved, progress=False)
    assert embedder.seen > seen


def test_settings_of_a_checkpoint_and_the_wording_of_a_task_are_part_of_the_condition(world, checkpoint, tmp_path):
    other = tmp_path / "checkpoint"
    shutil.copytree(checkpoint, other)
    evaluate(other, ROWS[:1], world, tmp_path / "out", progress=False)
    reworded = replace(ROWS[0], query=replace(ROWS[0].query, instruction="Look at it."))
    with pytest.raises(ValueError, match="definition: "):
        evaluate(other, [reworded], world, tmp_path / "out", progress=False)
    settings = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**settings, "num_active_experts": 1}))
    with pytest.raises(ValueError, match="checkpoint: "):
        evaluate(other, ROWS[:1], world, tmp_path / "out", progress=False)
    (tmp_path / "out" / "ImageNet-1K.json").unlink()
    with pytest.raises(ValueError, match="vectors of another checkpoint"):
        evaluate(other, ROWS[:1], world, tmp_path / "out", progress=False)


def test_fewer_dimensions_reuse_the_vectors(world, embedder, tmp_path):
    evaluate(embedder, ROWS, world, tmp_path / "all", progress=False)
    seen = embedder.seen
    vectors = tmp_path / "all" / "vectors"
    evaluate(embedder, ROWS, world, tmp_path / "dim8", dim=8, vectors=vectors, progress=False)
    assert embedder.seen == seen


def test_a_gap_in_stored_vectors_ends_what_is_read(tmp_path):
    store = VectorStore(tmp_path, {"a": 1})
    for start in (0, 2, 6):
        store.append(start, np.full((2, 3), start, dtype=np.float32))
    assert [part[0, 0] for part in VectorStore(tmp_path, {"a": 1}).read()] == [0, 2]


def test_changed_local_data_are_read_again(embedder, tmp_path):
    """datasets alone would give the old rows: it caches local folders by name and config."""
    row = select(TABLE, ["DiDeMo"])[0]
    write_world(tmp_path, [row])
    assert evaluate(embedder, [row], tmp_path, progress=False)[0]["n"] == 3
    two = Dataset.from_list([{"video": f"test/{700 + i}.mp4", "caption": f"new {i}"} for i in range(2)])
    write_dataset(tmp_path / "VLM2Vec" / "DiDeMo", None, "test", two)
    assert evaluate(embedder, [row], tmp_path, progress=False)[0]["n"] == 2


# Errors


def test_unusable_data_say_so(world, embedder, tmp_path):
    (tmp_path / "VLM2Vec" / "MSVD").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"could not be read from '.*VLM2Vec/MSVD'.*Put a copy"):
        evaluate(embedder, select(TABLE, ["MSVD"]), tmp_path, progress=False)
    blank = [{**fields, "tgt_text": ["", "b"]} for fields in image_rows(ROWS[0])]
    write_dataset(tmp_path / "ziyjiang" / "MMEB_Test_Instruct", "ImageNet-1K", "test", Dataset.from_list(blank))
    with pytest.raises(ValueError, match="nothing to embed"):
        evaluate(embedder, ROWS[:1], tmp_path, media_root=world, progress=False)
    unknown = make_row({**json.loads(MMEB_V2.read_text())["tasks"][0], "parser": "image_sound"})
    with pytest.raises(ValueError, match="unknown parser 'image_sound'"):
        evaluate(embedder, [unknown], world, progress=False)


# Cut files and failed tasks


@pytest.fixture
def damaged(tmp_path):
    """A task of clips and one of pages; clips are real JPEGs, one frame of the first is cut in its middle."""
    rows = select(TABLE, ["MSVD", "ViDoSeek-doc"])
    write_world(tmp_path, rows)
    frames = sorted((tmp_path / rows[0].media).rglob("*.jpg"))
    for seed, frame in enumerate(frames):
        noise_image(seed, 64, 64).save(frame, format="JPEG")
    cut = tmp_path / rows[0].media / "700" / "frame_1.jpg"
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    return tmp_path, rows, cut


def warnings_of(monkeypatch):
    told = []
    monkeypatch.setattr("plume.evaluation.parsers.common.logger.warning_once", told.append)
    return told


def test_a_cut_frame_is_read_as_far_as_it_goes_and_named(damaged, embedder, monkeypatch):
    folder, rows, cut = damaged
    told = warnings_of(monkeypatch)
    results = evaluate(embedder, rows, folder, progress=False)
    assert [result["task"] for result in results] == ["MSVD", "ViDoSeek-doc"]
    assert {message.split(" was cut off")[0] for message in told} == {str(cut)}
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_what_a_cut_picture_lacks_is_padded(kind, monkeypatch):
    told, buffer = warnings_of(monkeypatch), io.BytesIO()
    whole = noise_image(1, 64, 64)
    whole.save(buffer, format=kind)
    data = buffer.getvalue()
    read = Picture().decode_example({"path": None, "bytes": data[: len(data) // 2]})
    pixels, expected = np.asarray(read), np.asarray(Picture().decode_example({"path": None, "bytes": data}))
    assert pixels.shape == (64, 64, 3)
    assert (pixels[:8] == expected[:8]).all()
    assert len(np.unique(pixels[56:])) == 1
    assert len(told) == 1


@pytest.mark.parametrize("data", [b"", b"no picture", b"\xff\xd8\xff\xe0"])
def test_what_is_no_picture_is_named_as_such(tmp_path, data):
    file = tmp_path / "a.jpg"
    file.write_bytes(data)
    with pytest.raises(ValueError, match=rf"{file} is no picture"):
        Picture().decode_example({"path": str(file), "bytes": None})


def test_a_cut_picture_inside_a_data_set_is_read_too(damaged, embedder, monkeypatch):
    folder, rows, _ = damaged
    told, buffer = warnings_of(monkeypatch), io.BytesIO()
    noise_image(1, 64, 64).save(buffer, format="JPEG")
    cut = {"bytes": buffer.getvalue()[:1000], "path": "page.jpg"}
    pages = load_dataset(str(folder / rows[1].dataset["repo"]), "corpus", split="test").cast_column(
        "image", Image(decode=False)
    )
    pages = [{**page, "image": cut if place == 1 else page["image"]} for place, page in enumerate(pages)]
    features = Features({"corpus-id": Value("int64"), "image": Image()})
    write_dataset(folder / rows[1].dataset["repo"], "corpus", "test", Dataset.from_list(pages, features=features))
    [result] = evaluate(embedder, rows[1:], folder, progress=False)
    assert result["num_candidates"] == 3
    assert [message.split(" was cut off")[0] for message in told] == ["page.jpg"]


def test_a_task_that_fails_is_recorded_and_the_others_run(damaged, checkpoint, capsys):
    folder, rows, cut = damaged
    cut.write_bytes(b"no picture")
    out, table = folder / "out", folder / "tasks.json"
    fields = [f for f in json.loads(MMEB_V2.read_text())["tasks"] if f["id"] in ("MSVD", "ViDoSeek-doc")]
    write_table(table, fields)
    command = ["run", "--model", str(checkpoint), "--table", str(table), "--data-root", str(folder), "--out", str(out)]
    assert main(command) == 1
    printed = capsys.readouterr().out
    assert "ViDoSeek-doc" in printed
    assert f"FAILED  ValueError: {cut} is no picture" in printed
    assert "frame_1.jpg" in json.loads((out / "failed" / "MSVD.json").read_text())["reason"]
    assert (out / "ViDoSeek-doc.json").exists()
    assert not (out / "MSVD.json").exists()
    assert main(["table", str(out), "--table", str(table)]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("| out"))
    assert line.split("|")[-2].strip() == "-", "no mean over a failed task"
    noise_image(0, 64, 64).save(cut, format="JPEG")
    assert main(command) == 0
    assert not (out / "failed" / "MSVD.json").exists()


def test_a_run_without_a_network_ends_at_the_first_task_that_needs_it(damaged, embedder, monkeypatch):
    folder, rows, _ = damaged
    asked = []
    monkeypatch.setattr(tasks, "load_dataset", lambda source, *_, **__: asked.append(source) or refuse_connection())
    with pytest.raises(ConnectionError, match=r"MSVD could not be read: .* cannot be reached \(no route\).*--tasks"):
        evaluate(embedder, rows, folder / "elsewhere", folder / "out", progress=False)
    assert len(asked) == 1
    assert not (folder / "out" / "failed").exists()


def test_the_check_of_the_data_asks_the_hub_only_once_without_a_network(tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(tasks, "load_dataset", lambda source, *_, **__: asked.append(source) or refuse_connection())
    assert main(["tasks", "--check", "--data-root", str(tmp_path), "--tasks", "I-QA"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 5
    assert len(asked) == 1
    assert all("cannot be reached" in line for line in lines)


def refuse_connection() -> None:
    raise ConnectionError("no route")


def test_all_failures_are_raised_together_with_the_results_of_the_others(damaged, embedder):
    folder, rows, cut = damaged
    cut.write_bytes(b"no picture")
    with pytest.raises(FailedTasksError, match="1 of 2 tasks failed") as caught:
        evaluate(embedder, rows, folder, progress=False)
    assert [result["task"] for result in caught.value.results] == ["ViDoSeek-doc"]
    assert list(caught.value.reasons) == ["MSVD"]


def test_another_condition_is_refused_before_anything_is_run(damaged, embedder, checkpoint, tmp_path):
    folder, rows, _ = damaged
    evaluate(embedder, rows[1:], folder, folder / "out", progress=False)
    seen = embedder.seen
    with pytest.raises(ValueError, match="dim: None there, 8 here"):
        evaluate(embedder, rows, folder, folder / "out", progress=False, dim=8)
    assert embedder.seen == seen
    assert not (folder / "out" / "failed").exists()


def test_settings_of_vectors_are_whole_or_absent(tmp_path, monkeypatch):
    def full(self, *_, **__):
        self.touch()
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(OSError, match="No space"):
            VectorStore(tmp_path, {"a": 1})
    VectorStore(tmp_path, {"a": 1})  # as if nothing had been there


# The command


def test_the_check_of_the_data_goes_on_after_data_that_cannot_be_read(world, capsys):
    assert main(["tasks", "--check", "--data-root", str(world), "--tasks", "DiDeMo", "ImageNet-1K"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert "could not be read" in "".join(lines)
    assert "3 queries, the table has 1000" in "".join(lines)


def test_the_old_command_for_costs_names_the_new_one(capsys):
    assert main(["efficiency", "--size", "2b"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_command_runs_another_table(world, checkpoint, tmp_path, capsys):
    rows = [f for f in json.loads(MMEB_V2.read_text())["tasks"] if f["id"] in NAMES]
    table = write_table(tmp_path / "tasks.json", [{**fields, "hops": 1} for fields in rows])
    out = tmp_path / "out"
    command = ["run", "--model", str(checkpoint), "--table", str(table), "--data-root", str(world), "--out", str(out)]
    assert main([*command, "--tasks", "V-RET", "ViDoSeek-doc", "--batch-size", "2"]) == 0
    printed = capsys.readouterr().out
    assert "MSVD" in printed
    assert "ImageNet-1K" not in printed
    assert json.loads((out / "MSVD.json").read_text())["hops"] == 1
    assert main(["table", str(out), "--table", str(table)]) == 0
    assert "small v1" in capsys.readouterr().out


# mteb's mock tasks


@pytest.mark.slow  # test_evaluation_metrics.py runs every task of the benchmark through mteb
def test_mtebs_mock_tasks_run():
    """With plume-tiny: text, image and mixed tasks of every kind; the video ones need torchcodec, which is not installed."""
    done = mteb.mock_run(PlumeEncoder(load_embedder(ROOT / "checkpoints" / "plume-tiny")))
    ran = {name for name, status in done.task_results.items() if isinstance(status, mteb.TaskResult)}
    failed = {name: str(status) for name, status in done.task_results.items() if status and name not in ran}
    assert not {name: error for name, error in failed.items() if "torchcodec" not in error}
    assert len(ran) >= 40

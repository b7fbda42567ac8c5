"""The world: splits share no layout, nothing but the media tells the answer, and both pipelines read it."""

import hashlib
import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("mteb")

from inputs import ROOT
from plume.evaluation.runner import evaluate
from plume.evaluation.table import read_table
from plume.playground.ablate import Plan, Sweep
from plume.playground.corpora import MediaFolder, conditions, write_evaluation, write_training
from plume.playground.puzzles import SPLITS, make_puzzle, split_of
from plume.playground.sheet import draw_sheet
from plume.playground.student import build_processor, build_student
from plume.playground.tasks import EXTRAPOLATION, LONGER, PLAIN, TASKS, draw_example
from plume.training.data import parse_row

CHAINS = [name for name, task in TASKS.items() if not task.control]
VARIED = (1, 2, 3, 4)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    write_training(folder / "train", 60, 0, progress=False)
    write_evaluation(folder / "test", conditions("test"), 40, 0, progress=False)
    return folder


@pytest.mark.parametrize("name", TASKS)
def test_splits_share_no_layout(name):
    rng = random.Random(0)
    layouts = {split: {draw_example(TASKS[name], rng, split).layout for _ in range(40)} for split in SPLITS}
    assert {split_of(layout) for layout in layouts["test"]} == {"test"}
    assert not layouts["train"] & (layouts["dev"] | layouts["test"])
    assert not layouts["dev"] & layouts["test"]


@pytest.mark.parametrize("hops", range(1, 7))
def test_thoughts_follow_the_puzzle(hops):
    names, signs = tuple("abcdefghi"), tuple("1234")
    for seed in range(20):
        puzzle = make_puzzle(random.Random(seed), names, signs, hops)
        assert sorted(puzzle.names) == sorted(names)
        for chain in puzzle.chains:
            assert [puzzle.holds(name) for name in chain[:-1]] == list(chain[1:])
        assert any(len(chain) > hops for chain in puzzle.chains)


@pytest.mark.parametrize("hops", [2, 3, 4])
@pytest.mark.parametrize("name", [name for name in CHAINS if TASKS[name].extrapolates])
def test_questions_take_as_many_lookups_as_they_say(name, hops):
    example = draw_example(TASKS[name], random.Random(3), "test", hops)
    assert len(example.thought) == hops
    assert example.answer.split()[-2:] == [step.strip(" .") for step in example.thought[-2:]]


def test_an_unknown_hop_count_is_refused():
    with pytest.raises(ValueError, match="hops=7"):
        make_puzzle(random.Random(0), tuple("abcdefghi"), tuple("1234"), 7)


def test_the_world_of_today_stays_what_it_is():
    """Layouts, texts and thoughts of every task with its own numbers of look-ups, as plume-tiny learned them."""
    drawn = hashlib.blake2b(digest_size=8)

    def told(item):
        return item.text, item.image and item.image.size, [frame.size for frame in item.video]

    for name, task in TASKS.items():
        for hops in (task.hops, *(EXTRAPOLATION if task.extrapolates else ())):
            rng = random.Random(f"{name}-{hops}")
            for _ in range(4):
                one = draw_example(task, rng, "test", hops)
                items = told(one.query), told(one.target), [told(other) for other in one.others]
                drawn.update(repr((one.layout, one.thought, one.answer, *items)).encode())
    assert drawn.hexdigest() == "b42d0bf6af39ea8b"


# Chains of one to four look-ups in one training set


@pytest.mark.parametrize("name", TASKS)
def test_a_task_varies_its_look_ups_or_keeps_its_own(name):
    task = TASKS[name]
    lookups = task.lookups(VARIED)
    assert task.lookups(()) == (task.hops,)
    assert lookups == ((task.hops,) if task.control else VARIED[task.fewest - 1 :])
    for hops in (*lookups, *(() if task.control else LONGER)):
        for seed in range(5):
            example = draw_example(task, random.Random(seed), "train", hops)
            assert task.control or len(example.thought) == hops
            assert example.answer.split()[-1] == example.thought[-1].strip(" .")


def test_in_clips_every_chain_that_is_asked_for_can_be_followed():
    """Two look-ups too: a scene shows three boxes, so a fourth chain would not be seen."""
    for hops in (*VARIED, *LONGER):
        for seed in range(20):
            example = draw_example(TASKS["video-track"], random.Random(seed), "train", hops)
            names, contents = example.layout
            chain = [example.query.text.split()[-1]]
            while chain[-1] in names:
                chain.append(contents[names.index(chain[-1])])
            assert [f" {step}." for step in chain[1:]] == list(example.thought)
            assert len(example.query.video) >= 2 * hops


def test_a_training_set_with_varied_chains_has_all_of_them_equally_often(tmp_path):
    tasks = ["image-chain", "mixed-chain", "image-look"]
    file = write_training(tmp_path, 72, 0, tasks, progress=False, hops=VARIED)
    counts = {name: [] for name in tasks}
    for line in file.read_text().splitlines():
        pair = parse_row(line, tmp_path / "media")
        counts[pair.dataset].append(pair.query.rationale.count("."))
    assert sorted(counts["image-chain"]) == [1] * 6 + [2] * 6 + [3] * 6 + [4] * 6
    assert sorted(counts["mixed-chain"]) == [2] * 8 + [3] * 8 + [4] * 8
    assert counts["image-look"] == [len(PLAIN)] * 24


@pytest.mark.slow
def test_longer_chains_than_trained_are_the_extrapolation_of_a_varied_world(tmp_path):
    names = ["image-chain", "mixed-chain", "image-look"]
    wanted = conditions("test", names, hops=VARIED)
    assert [condition.name for condition in wanted] == [
        *(f"image-chain-test-h{hops}" for hops in (1, 2, 3, 4, 5, 6)),
        *(f"mixed-chain-test-h{hops}" for hops in (2, 3, 4, 5, 6)),
        "image-look-test-h1",
    ]
    dev = [condition.hops for condition in conditions("dev", names[:1], extrapolate=False, hops=VARIED)]
    assert dev == list(VARIED)
    table = read_table(write_evaluation(tmp_path, wanted, 8, 0, progress=False))
    results = evaluate(Blind("nothing"), table.rows, tmp_path, progress=False)
    assert {(result["task"], result["hops"]) for result in results} == {(c.name, c.hops) for c in wanted}


# Files that are whole or absent


def full_disk(monkeypatch, cls, name):
    """Half of what is written, and then no space."""

    def write(self, target, *_, **__):
        Path(self if cls is Path else target).touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cls, name, write)


def test_pairs_and_tables_are_whole_or_absent(tmp_path, monkeypatch):
    full_disk(monkeypatch, Path, "write_text")
    with pytest.raises(OSError, match="No space"):
        write_training(tmp_path / "train", 6, 0, ["image-name"], progress=False)
    with pytest.raises(OSError, match="No space"):
        write_evaluation(tmp_path, [], 6, 0, progress=False)
    assert not (tmp_path / "train/pairs.jsonl").exists()
    assert not (tmp_path / "tasks.json").exists()


def test_a_picture_that_could_not_be_written_is_written_the_next_time(tmp_path, monkeypatch):
    media, picture = MediaFolder(tmp_path), Image.new("RGB", (28, 28), "red")
    with monkeypatch.context() as patch:
        full_disk(patch, Image.Image, "save")
        with pytest.raises(OSError, match="No space"):
            media.add(picture)
    assert Image.open(tmp_path / media.add(picture)).getpixel((0, 0)) == (255, 0, 0)


def test_a_sweep_writes_pairs_again_that_are_not_all_there(tmp_path):
    plan = Plan(tasks=("image-name",), rows=24, queries=6)
    sweep = Sweep(plan, tmp_path, ROOT / "training/recipes/playground.yaml")
    sweep.write_world()
    whole = sweep.pairs.read_text()
    sweep.pairs.write_text("".join(whole.splitlines(keepends=True)[:11]))
    sweep.write_world()
    assert sweep.pairs.read_text() == whole


# What it looks like


def test_the_sheet_has_no_empty_bands():
    sheet = np.asarray(draw_sheet())
    blank = (sheet == 255).all(axis=(1, 2))
    longest = max(len(run) for run in "".join("x" if row else " " for row in blank).split())
    assert longest <= 40


@pytest.mark.slow
def test_training_rows_are_read_by_the_trainers_reader(world):
    lines = (world / "train/pairs.jsonl").read_text().splitlines()
    pairs = [parse_row(line, world / "train/media") for line in lines]
    assert {pair.dataset for pair in pairs} == set(TASKS)
    for pair in pairs:
        assert pair.query.rationale.startswith(" ")  # each word of the thought is the token that the question has
        # What a control's latent steps stand for must not hold the answer.
        assert bool(pair.query.answer) is not TASKS[pair.dataset].control
        if TASKS[pair.dataset].control:
            assert pair.query.rationale == "".join(PLAIN)


@pytest.mark.slow
def test_the_same_seed_writes_the_same_world(world, tmp_path):
    again = write_training(tmp_path / "train", 60, 0, progress=False)
    assert again.read_text() == (world / "train/pairs.jsonl").read_text()
    other = write_training(tmp_path / "other", 60, 1, progress=False)
    assert other.read_text() != again.read_text()


def test_every_task_is_in_the_table(world):
    table = read_table(world / "test/tasks.json")
    wanted = [condition.name for condition in conditions("test")]
    assert [row.id for row in table.rows] == wanted
    assert len(wanted) == len(TASKS) + len(EXTRAPOLATION) * sum(task.extrapolates for task in TASKS.values())
    assert {row.pool for row in table.rows} == {"local", "global"}


class Blind:
    """Embeds nothing of an input, its text as a whole, or its words, by a hash: what a model without eyes could know."""

    def __init__(self, reads: str) -> None:
        self.reads, self.condition = reads, {"latent_steps": 0, "checkpoint": {"name": f"blind-{reads}"}}

    def encode(self, inputs, role):
        vectors = []
        for item in inputs:
            text = item.get("text", "")
            parts = {"nothing": [""], "text": [text], "words": [text, *text.split() * 9]}[self.reads]
            vectors.append(sum(np.random.default_rng(hash_of(part)).standard_normal(256) for part in parts))
        return torch.nn.functional.normalize(torch.tensor(np.array(vectors)).float(), dim=-1)


def hash_of(text: str) -> int:
    import zlib

    return zlib.crc32(text.encode())


@pytest.mark.slow
@pytest.mark.parametrize("reads", ["nothing", "text", "words"])
def test_a_model_without_eyes_scores_at_chance(world, reads):
    table = read_table(world / "test/tasks.json")
    rows = [row for row in table.rows if TASKS[row.extras["playground_task"]].needs_media]
    results = evaluate(Blind(reads), rows, world / "test", progress=False, num_frames=None)
    for result in results:
        chance = 1 / (10 if result["task"].startswith("video-moment") else 9)
        if reads == "words" and result["task"].startswith("image-look"):
            chance = 1 / 4  # its answers name the box of the question: 4 of 36 are left
        spread = 3 * (chance * (1 - chance) / result["n"]) ** 0.5
        assert result["score"] <= chance + spread, result["task"]


def test_the_evaluation_scores_plume_tiny_on_the_world(world, tmp_path):
    """The same path as the 78 tasks; chains of three in pictures are what its card says that it learned."""
    rows = [row for row in read_table(world / "test/tasks.json").rows if row.id == "image-chain-test-h3"]
    (thinking,) = evaluate(ROOT / "checkpoints/plume-tiny", rows, world / "test", tmp_path / "k8", progress=False)
    (single,) = evaluate(
        ROOT / "checkpoints/plume-tiny", rows, world / "test", tmp_path / "k0", baseline="single-pass", progress=False
    )
    assert thinking["score"] >= 0.9
    assert single["score"] <= 0.4
    assert thinking["hops"] == 3
    assert not thinking["control"]


def test_file_names_say_nothing_about_the_answer(world):
    """Names are hashes of pixels, and candidates other than the positive stand in the order of these hashes."""
    table = json.loads((world / "test/tasks.json").read_text())
    for row in table["tasks"]:
        media = world / "test" / (row["media"] or "none")
        for file in media.glob("*.png"):
            assert len(file.stem) == 20
            assert int(file.stem, 16) >= 0


def test_a_fresh_student_can_look_at_the_token_before():
    """Half of the induction head that it starts with; the other half finds what the first wrote."""
    processor = build_processor()
    model = build_student(processor).eval()
    decoder = model.get_decoder()
    decoder.config._attn_implementation = "eager"
    ids = torch.tensor([processor.tokenizer("holds red Blue, green Red, show GREEN").input_ids])
    positions = torch.arange(ids.shape[1]).expand(3, 1, -1)
    with torch.no_grad():
        rows = model.get_input_embeddings()(ids)
        weights_QK = decoder(inputs_embeds=rows, position_ids=positions, output_attentions=True).attentions[0][0, 0]
    assert weights_QK.diagonal(-1).min() > 0.9

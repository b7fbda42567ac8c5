"""The world: splits share no layout, nothing but the media tells the answer, and both pipelines read it."""

import json
import random

import numpy as np
import pytest
import torch

pytest.importorskip("mteb")

from inputs import ROOT
from plume.evaluation.runner import evaluate
from plume.evaluation.table import read_table
from plume.playground.corpora import conditions, write_evaluation, write_training
from plume.playground.puzzles import SPLITS, make_puzzle, split_of
from plume.playground.student import build_processor, build_student
from plume.playground.tasks import EXTRAPOLATION, PLAIN, TASKS, draw_example
from plume.training.data import parse_row

CHAINS = [name for name, task in TASKS.items() if not task.control]


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


@pytest.mark.parametrize("hops", [1, 2, 3, 4])
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
    """Names are hashes of pixels, and candidates beside the positive stand in the order of these hashes."""
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

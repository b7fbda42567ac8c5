"""What a run does where it was not told, and what it says of itself at the end."""

import csv
import json
from pathlib import Path

import pytest
from corpus import make_trainer, write_corpus, write_own_pairs

from inputs import ROOT
from plume.hub.random_checkpoint import save_random_plume

pytest.importorskip("trl", reason="training needs the extra `train`")

from plume.training.config import PlumeTrainingConfig
from plume.training.curriculum import Curriculum
from plume.training.data import Contents, load_rows, look
from plume.training.plan import AGAIN, FINAL_ONLY, Facts, decide
from plume.training.report import Scores, find_alarms, measure
from plume.training.train import expand, main, parse


def planned(tmp_path, given=(), options=None, **changes) -> dict:
    args = PlumeTrainingConfig(output_dir=str(tmp_path), use_cpu=True, **(options or {}))
    held = Contents(*(changes.pop(name, 0) for name in Contents._fields))
    known = {"num_rows": 1000, "width": 1536, "is_trained": True, "uses_lora": False, "contents": held, **changes}
    facts = Facts(**known)
    return {decision.name: decision.value for decision in decide(args, set(given), facts)}


@pytest.mark.parametrize(
    ("rows", "batch", "steps"),
    [
        (1, 1, 150),
        (3, 3, 150),
        (4, 2, 150),
        (50, 25, 150),
        (64, 32, 150),
        (1000, 62, 150),
        (5000, 63, 239),
        (1_000_000, 64, 46875),
    ],
)
def test_batch_and_steps_follow_from_the_rows(tmp_path, rows, batch, steps):
    plan = planned(tmp_path, num_rows=rows)
    assert (plan["per_device_train_batch_size"], plan["max_steps"]) == (batch, steps)
    assert batch <= rows


def test_ranks_share_a_pool_of_at_least_two_pairs(tmp_path, monkeypatch):
    monkeypatch.setattr(PlumeTrainingConfig, "world_size", 2)
    assert planned(tmp_path, num_rows=3)["per_device_train_batch_size"] == 1
    assert planned(tmp_path, num_rows=9)["per_device_train_batch_size"] == 2


@pytest.mark.parametrize(("width", "lora", "rate"), [(1536, False, 5e-5), (128, False, 6e-4), (2048, True, 7.5e-5)])
def test_the_learning_rate_follows_from_the_width(tmp_path, width, lora, rate):
    assert planned(tmp_path, width=width, uses_lora=lora)["learning_rate"] == rate


@pytest.mark.parametrize(
    ("trained", "rationales", "stages", "own_schedule"),
    [(True, 0, FINAL_ONLY, None), (False, 0, FINAL_ONLY, None), (True, 9, AGAIN, True), (False, 9, None, True)],
)
def test_the_stages_follow_from_rationales_and_checkpoint(tmp_path, trained, rationales, stages, own_schedule):
    plan = planned(tmp_path, is_trained=trained, rationales=rationales)
    assert (plan.get("stage_weights"), plan.get("final_schedule")) == (stages, own_schedule)
    assert plan.get("latent_view_weight") == (1.0 if stages == AGAIN else None)
    assert plan["max_steps"] == (225 if stages == AGAIN else 150), "150 of them are the last stage's"


def test_what_is_given_stays(tmp_path):
    given = {"per_device_train_batch_size", "max_steps", "learning_rate", "stage_weights", "num_negatives"}
    assert planned(tmp_path, given, negatives=3, scores=3, rationales=9) == {}
    assert planned(tmp_path)["chunk_tokens"] > 0
    assert "chunk_tokens" not in planned(tmp_path, {"chunk_size"})
    assert planned(tmp_path, negatives=9)["num_negatives"] == 4
    assert "teacher" not in planned(tmp_path, negatives=9)
    assert planned(tmp_path, negatives=9, scores=1)["teacher"] == "scores"


def test_a_batch_is_never_above_the_rows(tmp_path):
    options = {"per_device_train_batch_size": 64}
    assert planned(tmp_path, {"per_device_train_batch_size"}, options, num_rows=50)["per_device_train_batch_size"] == 50
    with pytest.raises(ValueError, match="0 training rows for 1 devices"):
        planned(tmp_path, num_rows=0)


def test_rationales_and_negatives_are_counted_in_both_formats(tmp_path):
    write_corpus(tmp_path, rows=3, negatives=2)
    flat = [{"query": "a", "positive": "b", "rationale_query": "c", "rationale_positive": "d", "negative": ["e"]},
            {"query": "a", "positive": "b", "rationale_query": "c"}]  # fmt: skip
    (tmp_path / "flat.jsonl").write_text("\n".join(map(json.dumps, flat)) + "\nno row")
    assert look(load_rows([str(tmp_path / "pairs.jsonl")])) == (3, 2, 3)
    assert look(load_rows([str(tmp_path / "flat.jsonl")])) == (1, 1, 0)


def test_three_names_in_front_are_model_pairs_and_output():
    expanded = expand(["m", "a.csv", "b.csv", "out", "--max_steps", "3"])
    assert expanded[:7] == ["--model_name_or_path", "m", "--train_files", "a.csv", "b.csv", "--output_dir", "out"]
    assert expanded[-2:] == ["--max_steps", "3"]
    assert expand(["--max_steps", "3"]) == ["--max_steps", "3"]
    with pytest.raises(ValueError, match="give MODEL PAIRS... OUTPUT"):
        expand(["m", "a.csv"])


def test_flags_and_recipes_count_as_given(tmp_path):
    (tmp_path / "r.yaml").write_text("learning_rate: 5.0e-5\nuse_cpu: true\n")
    *_, given = parse(["--config", str(tmp_path / "r.yaml"), "--max_steps", "3", "--output_dir", str(tmp_path)])
    assert given == {"config", "learning_rate", "use_cpu", "max_steps", "output_dir"}


def logs(stages, rates, losses) -> list[dict]:
    columns = zip(stages, rates, losses, strict=True)
    return [
        {"step": 10 * i, "stage": s, "learning_rate": r, "loss_embedding": x, "loss": x}
        for i, (s, r, x) in enumerate(columns, 1)
    ]


def scores(hit=0.9, without=0.5, cosine=0.2) -> Scores:
    return Scores({"a": {"hit@1": hit, "hit@5": 1.0}}, {"a": {"hit@1": without, "hit@5": 1.0}}, {"a": 50}, cosine)


GOOD = logs([0, 0, 4, 4, 4, 4], [1.0] * 6, [2, 1, 1, 0.5, 0.1, 0.05])


@pytest.mark.parametrize(
    ("history", "before", "after", "words"),
    [
        (GOOD, scores(0.1), scores(), []),
        (logs([0, 4, 4, 4, 4], [1.0] * 5, [3, 3, 2, 1.6, 1.2]), scores(0.1), scores(), ["not converged", "--max_steps 100"]),
        (logs([0, 0, 4, 4], [1, 0.5, 0.2, 0.0], [3, 2, 1, 1]), scores(0.1), scores(),
         ["20% of the peak learning rate", "--final_schedule true", "--stage_weights 0 0 0 0 1"]),
        (logs([0, 1, 2], [1, 1, 1], [3, 2, 1]), scores(0.1), scores(), ["not trained for as long as one log"]),
        (GOOD, scores(0.95), scores(0.6), ["Worse than before: Hit@1 fell from 0.95 to 0.60", "--learning_rate"]),
        (GOOD, scores(0.1), scores(cosine=0.99), ["have collapsed", "0.99"]),
        (GOOD, scores(0.1), scores(0.9, 0.9), ["latent steps are not used", "--num_latent_steps 0"]),
        (GOOD, scores(0.1), scores(1.0, 1.0), []),
    ],
)  # fmt: skip
def test_alarms_name_the_cause_and_the_flag(tmp_path, history, before, after, words):
    args = PlumeTrainingConfig(output_dir=str(tmp_path), use_cpu=True, max_steps=50)
    alarms = find_alarms(history, before, after, args, Curriculum(8))
    assert bool(alarms) == bool(words)
    assert len(alarms) <= 1
    assert all(word in " ".join(alarms) for word in words), alarms


@pytest.mark.slow
def test_measuring_leaves_the_run_as_it_was(tmp_path):
    """Dropout and order of a measured run are those of an unmeasured one."""
    write_corpus(tmp_path, rows=24)
    save_random_plume(tmp_path / "model", num_latent_steps=2, max_latent_steps=8)
    losses = []
    for measured in (False, True):
        trainer = make_trainer(tmp_path, tmp_path / "out", max_steps=3, num_negatives=0, expert_dropout=0.3)
        if measured:
            found = measure(trainer, trainer.train_dataset.select(range(9)))
            assert found.pairs == {"boxes": 3, "clips": 3, "words": 3}
            assert found.hits.keys() == found.hits_without.keys() == found.pairs.keys()
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert losses[0] == losses[1]


def fine_tune(folder: Path, *flags: str) -> tuple[Path, str, str]:
    """Output, report and the row of the 50 pairs in it, of a run from the shipped model."""
    pairs, output = write_own_pairs(folder), folder / "mine"
    main([str(ROOT / "checkpoints" / "plume-tiny"), str(pairs), str(output), *flags])
    report = (output / "report.md").read_text()
    return output, report, next(line for line in report.splitlines() if line.startswith("| unnamed | 50 |"))


def add_rationales(pairs: Path) -> Path:
    """The 50 pairs with a rationale on both sides, in a file of their own."""
    with open(pairs) as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        _, inner, shape, _, outer = row["query"].split()
        thought = f"<think>It is {outer}. It holds a {shape}. That is {inner}.</think><answer>{row['query']}</answer>"
        row |= {"rationale_query": thought, "rationale_positive": thought}
    output = pairs.with_name("with_rationales.jsonl")
    output.write_text("\n".join(map(json.dumps, rows)))
    return output


@pytest.mark.slow
@pytest.mark.parametrize("planned", [False, True])
def test_a_run_whose_last_stage_is_the_tail_of_a_decay_is_named_and_the_plan_s_is_none(tmp_path, planned):
    """130 steps of the stages of the paper end without what was learned before them; the plan's own do not."""
    pairs, output = add_rationales(write_own_pairs(tmp_path)), tmp_path / "mine"
    flags = [] if planned else ["--max_steps", "130", "--stage_weights", "3", "0.333", "0.333", "0.333", "1"]
    main([str(ROOT / "checkpoints" / "plume-tiny"), str(pairs), str(output), *flags, "--save_strategy", "no"])
    report = (output / "report.md").read_text()
    row = next(line for line in report.splitlines() if line.startswith("| unnamed | 50 |"))
    hit = float(row.split("|")[4].split("/")[0])
    assert (hit >= 0.9) == planned, report
    assert ("the tail of a decay. Give it a schedule of its own: --final_schedule true" in report) != planned


@pytest.mark.slow
def test_the_verdict_is_reported_drawn_and_printed(tmp_path, capsys):
    output, report, row = fine_tune(tmp_path, "--max_steps", "4", "--save_strategy", "no")
    assert "stage_weights [0.0, 0.0, 0.0, 0.0, 1.0]: no row has rationales" in report
    assert (output / "curves.png").stat().st_size > 10_000
    assert row in (output / "README.md").read_text(), "the card shows the verdict"
    assert row in capsys.readouterr().out
    assert "- Not measured on new pairs: " in report
    assert "50 pairs that the run was trained on (none were held out)" in report


def test_a_dry_run_works_before_there_are_enough_rows_and_writes_nothing(tmp_path, capsys):
    (tmp_path / "pairs.csv").write_text("query,positive\na,b\n")
    save_random_plume(tmp_path / "model", num_latent_steps=2, max_latent_steps=8)
    main([str(tmp_path / "model"), str(tmp_path / "pairs.csv"), str(tmp_path / "out"), "--dry_run"])
    said = capsys.readouterr().out
    assert "1 pairs, 150 optimizer steps" in said
    assert "s per step, measured on two of the last stage" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_pairs_are_held_out_where_there_are_enough(tmp_path, capsys):
    lines = [f'{{"query": "red {i}", "positive": "bus {i}"}}' for i in range(200)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    save_random_plume(tmp_path / "model", num_latent_steps=1, max_latent_steps=8)
    flags = ["--max_steps", "1", "--save_strategy", "no", "--use_cpu"]
    main([str(tmp_path / "model"), str(tmp_path / "pairs.jsonl"), str(tmp_path / "out"), *flags])
    said = capsys.readouterr().out
    assert "180 pairs in 3 equal batches" in said
    assert "on 20 held-out pairs" in said
    assert "Not measured on new pairs" not in said

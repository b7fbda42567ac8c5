"""The curve over K in one pass, and early exit, through the evaluation and its command."""

import json

import pytest
from evaluation_world import write_world

from plume.evaluation.__main__ import main
from plume.evaluation.curve import CurveEncoder, evaluate_curve
from plume.evaluation.embedders import EarlyEmbedder, ModelEmbedder, load_embedder
from plume.evaluation.runner import evaluate
from plume.evaluation.table import MMEB_V2, read_table, select

NAMES = ["ImageNet-1K", "MomentSeeker"]
ROWS = select(read_table(), NAMES)
QUIET = {"progress": False}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mmeb")
    write_world(folder, ROWS)
    return folder


def test_the_curve_equals_a_run_per_k_and_embeds_every_input_once(world, checkpoint, tmp_path, monkeypatch):
    embedded, read = [], CurveEncoder._read
    monkeypatch.setattr(CurveEncoder, "_read", lambda self, items: (embedded.extend(items), read(self, items))[1])
    results = evaluate_curve(checkpoint, ROWS, world, tmp_path, steps=[0, 2, 3], **QUIET)
    assert [result["condition"]["latent_steps"] for result in results] == [0, 0, 2, 2, 3, 3]
    for steps in (0, 2, 3):
        alone = evaluate(checkpoint, ROWS, world, latent_steps=steps, **QUIET)
        kept = [json.loads((tmp_path / f"k{steps}" / f"{row.id}.json").read_text()) for row in ROWS]
        for ours, theirs in zip(kept, alone, strict=True):
            assert ours["scores"] == pytest.approx(theirs["scores"], abs=1e-6)
            assert ours["condition"] == json.loads(json.dumps(theirs["condition"]))
    seen = len(embedded)
    assert seen == sum(result["vectors"][role]["count"] for result in results[:2] for role in ("query", "document"))
    assert evaluate_curve(checkpoint, ROWS, world, tmp_path, steps=[0, 2, 3], **QUIET) == json.loads(
        json.dumps(results)
    )
    assert len(embedded) == seen, "what is there is not embedded again"


def test_the_command_takes_several_k_and_a_threshold(world, checkpoint, tmp_path, capsys):
    common = [
        "run",
        "--model",
        str(checkpoint),
        "--table",
        str(MMEB_V2),
        "--tasks",
        NAMES[0],
        "--data-root",
        str(world),
    ]
    assert main([*common, "--output", str(tmp_path / "curve"), "--latent-steps", "0", "3"]) == 0
    said = capsys.readouterr().out
    assert "K=0" in said
    assert "K=3" in said
    assert (
        main([*common, "--output", str(tmp_path / "early"), "--exit-threshold", "0.2", "--exit-steps", "0", "1"]) == 0
    )
    assert "steps per query" in capsys.readouterr().out
    result = json.loads((tmp_path / "early" / f"{NAMES[0]}.json").read_text())
    assert 0 < result["mean_steps"]["query"] <= 3
    assert (result["condition"]["exit_threshold"], result["condition"]["exit_steps"]) == (0.2, [0, 1])


def test_an_early_embedder_reports_the_steps_it_took(model, processor):
    embedder = EarlyEmbedder(model, processor, 1e-12)
    items = [{"text": "a bus"}, {"text": "two dogs"}]
    assert (
        embedder.encode(items, "query") - ModelEmbedder(model, processor).encode(items, "query")
    ).abs().max() <= 1e-5
    assert embedder.mean_steps() == {"query": 3.0}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": [2, 1]}, "must be increasing integers"),
        ({"steps": [0, 99]}, "outside 0..8"),
        ({"steps": [0, 1], "baseline": "single-pass"}, "baseline: not with several numbers"),
        ({"steps": [0, 1], "devices": ["cpu", "cpu"]}, "runs on one device"),
    ],
)
def test_a_curve_that_cannot_be_drawn_is_refused(world, checkpoint, options, message):
    with pytest.raises(ValueError, match=message):
        evaluate_curve(checkpoint, ROWS, world, **QUIET, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"exit_threshold": 1.5}, "must be between 0 and 1"),
        ({"exit_threshold": 0.1, "exit_steps": [4]}, "must be increasing integers from 0 to num_latent_steps=3"),
    ],
)
def test_an_impossible_exit_is_refused_before_the_first_task(world, checkpoint, options, message):
    with pytest.raises(ValueError, match=message):
        evaluate(checkpoint, ROWS, world, **QUIET, **options)


def test_a_threshold_that_would_have_no_effect_is_refused(world, checkpoint, model, processor):
    with pytest.raises(ValueError, match="no effect on an embedder in memory"):
        evaluate(ModelEmbedder(model, processor), ROWS, world, exit_threshold=0.1)
    with pytest.raises(ValueError, match="takes no latent steps"):
        evaluate(checkpoint, ROWS, world, exit_threshold=0.1, baseline="single-pass")
    with pytest.raises(ValueError, match="runs on one device"):
        load_embedder(checkpoint, devices=["cpu", "cpu"], exit_threshold=0.1)

"""The sweep of the ablations: equal steps for all, rows as documented, and nothing is run twice."""

import json

import pytest

pytest.importorskip("mteb")
pytest.importorskip("trl")

from inputs import ROOT
from plume.playground import ablate
from plume.playground.report import PAPER

RECIPE = ROOT / "training/recipes/playground.yaml"
FEW = ["--rows", "24", "--queries", "6", "--explicit_steps", "1", "--latent_steps", "5", "--batch_size", "8"]


def run(folder, *options):
    results = folder / "docs"
    where = ["--output", str(folder / "sweep"), "--results", str(results), "--recipe", str(RECIPE)]
    ablate.main([*where, "--tasks", "image-chain", "--seeds", "0", *FEW, *options])
    return json.loads((results / "results/ablations.json").read_text())


@pytest.mark.parametrize("name", ablate.VARIANTS)
def test_every_variant_takes_the_same_number_of_latent_steps(name):
    phases = ablate.VARIANTS[name].phases(550)
    assert sum(phase["max_steps"] for phase in phases) == 550
    assert all(phase["stage_weights"][0] == 0 for phase in phases)
    assert phases[-1]["stage_weights"][-1] > 0


def test_every_variant_of_the_paper_is_there():
    assert set(ablate.VARIANTS) == {"full", *PAPER}


def test_a_finished_run_is_not_run_again(tmp_path, monkeypatch):
    rows = run(tmp_path, "--variants", "full")
    assert {(row["variant"], row["seed"], row["task"]) for row in rows} == {("full", 0, "image-chain")}
    assert sorted((row["split"], row["hops"]) for row in rows) == [
        ("extrapolation", 2),
        ("extrapolation", 4),
        ("test", 3),
    ]
    assert all(0 <= row["hit_at_1"] <= 1 and row["n"] == 6 for row in rows)
    assert json.loads((tmp_path / "docs/results/tasks.json").read_text())["image-chain"]["control"] is False
    assert "| image-chain | 3 |" in (tmp_path / "docs/results.md").read_text()

    def refuse(*_):
        raise AssertionError("trained again")

    monkeypatch.setattr(ablate.Sweep, "_continue", refuse)
    assert run(tmp_path, "--variants", "full") == rows  # from the run's file
    (tmp_path / "sweep").rename(tmp_path / "gone")
    assert run(tmp_path, "--variants", "full") == rows  # from the results
    with pytest.raises(AssertionError, match="trained again"):
        run(tmp_path, "--variants", "full", "k4")


def test_another_plan_in_the_same_folder_is_refused(tmp_path):
    ablate.Sweep(ablate.Plan(rows=24), tmp_path, RECIPE)
    with pytest.raises(ValueError, match="another plan"):
        ablate.Sweep(ablate.Plan(rows=25), tmp_path, RECIPE)

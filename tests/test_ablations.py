"""The sweep of the ablations: equal steps for all, rows as documented, and nothing is run twice."""

import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("mteb")
pytest.importorskip("trl")

from examples import train_demo
from inputs import ROOT
from plume import PlumeForEmbedding, PlumeProcessor
from plume.playground import ablate
from plume.playground.report import PAPER, collect, compare
from plume.playground.variants import VARIANTS

RECIPE = ROOT / "training/recipes/playground.yaml"
FEW = ["--mastered=99", "--rows=24", "--queries=6", "--explicit_steps=1", "--latent_steps=5", "--batch_size=8"]


def run(folder, *options):
    results = folder / "docs"
    where = ["--output", str(folder / "sweep"), "--results", str(results), "--recipe", str(RECIPE)]
    ablate.main([*where, "--tasks", "image-chain", "image-name", "--seeds", "0", *FEW, *options])
    return json.loads((results / "results/ablations.json").read_text())


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """Folder of a sweep that ran the full variant, and its rows."""
    folder = tmp_path_factory.mktemp("full")
    return folder, run(folder, "--variants", "full")


@pytest.fixture
def swept(full, tmp_path):
    """A copy of it, to be changed."""
    shutil.copytree(full[0], tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_takes_the_same_number_of_latent_steps(name):
    phases = VARIANTS[name].phases(550)
    assert sum(phase["max_steps"] for phase in phases) == 550
    assert all(phase["stage_weights"][0] == 0 for phase in phases)
    assert phases[-1]["stage_weights"][-1] > 0


def test_every_variant_of_the_paper_is_there():
    assert set(VARIANTS) == {"full", *PAPER}


@pytest.mark.slow
def test_a_run_leaves_scores_and_a_page(full):
    folder, rows = full
    assert {(row["variant"], row["seed"]) for row in rows} == {("full", 0)}
    assert sorted((row["task"], row["split"], row["hops"]) for row in rows) == [
        ("image-chain", "extrapolation", 2),
        ("image-chain", "extrapolation", 4),
        ("image-chain", "test", 3),
        ("image-name", "test", 0),
    ]
    assert all(0 <= row["hit_at_1"] <= 1 and row["n"] == 6 for row in rows)
    assert json.loads((folder / "docs/results/tasks.json").read_text())["image-chain"]["control"] is False
    page = (folder / "docs/results.md").read_text()
    assert "| image-chain | 3 |" in page
    assert "| image-name | control, 0 |" in page


@pytest.mark.slow
def test_a_finished_run_is_not_run_again(full, swept, monkeypatch):
    def refuse(*_):
        raise AssertionError("trained again")

    monkeypatch.setattr(ablate.Sweep, "_continue", refuse)
    assert run(swept, "--variants", "full") == full[1]  # from the run's file
    (swept / "sweep").rename(swept / "gone")
    assert run(swept, "--variants", "full") == full[1]  # from the results
    with pytest.raises(AssertionError, match="trained again"):
        run(swept, "--variants", "full", "k4")


def test_variants_are_compared_seed_by_seed():
    full = {0: 90.0, 1: 80.0, 2: 100.0}
    assert compare(full, {0: 89.0, 1: 79.0, 2: 98.0}) == ([-1.0, -1.0, -2.0], "yes")
    assert compare(full, {0: 91.0, 1: 81.0, 2: 102.0}) == ([1.0, 1.0, 2.0], "no")
    assert compare(full, {0: 95.0, 1: 70.0, 2: 99.0})[1] == "within spread"
    assert compare(full, {1: 70.0, 2: 99.0}) == ([-10.0, -1.0], "too few seeds")
    assert compare(full, full)[1] == "within spread"


def test_results_from_another_start_are_not_mixed(swept):
    moved = swept / "sweep/explicit-0/model.safetensors"
    weights = load_file(moved)
    save_file({name: tensor + 1 for name, tensor in weights.items()}, moved, {"format": "pt"})
    (swept / "sweep/full-0.json").unlink()
    with pytest.raises(ValueError, match="other weights"):
        run(swept, "--variants", "k4")


def test_results_of_a_plan_that_lacks_a_newer_field_are_not_taken_for_any(tmp_path):
    (tmp_path / "plan.json").write_text('{"explicit_rate": 0.4}')
    (tmp_path / "docs/results").mkdir(parents=True)
    (tmp_path / "docs/results/plan.json").write_text("{}")
    (tmp_path / "docs/results/ablations.json").write_text('[{"seed": 0}]')
    with pytest.raises(ValueError, match="another plan"):
        collect(tmp_path, tmp_path / "docs")


def test_runs_without_their_explicit_stage_are_refused(tmp_path):
    (tmp_path / "plan.json").write_text("{}")
    (tmp_path / "full-0.json").write_text('[{"seed": 0}]')
    with pytest.raises(ValueError, match=r"seeds \[0\] but not the explicit stage"):
        collect(tmp_path, tmp_path / "docs")


def test_a_sweep_whose_plan_lacks_a_newer_field_goes_on(tmp_path):
    ablate.Sweep(ablate.Plan(rows=24), tmp_path, RECIPE)
    plan = json.loads((tmp_path / "plan.json").read_text())
    del plan["explicit_rate"]
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    ablate.Sweep(ablate.Plan(rows=24), tmp_path, RECIPE)


@pytest.mark.slow
def test_a_task_that_is_never_mastered_ends_the_sweep(tmp_path, monkeypatch):
    plan = ablate.Plan(tasks=("image-chain", "image-name"), rows=24, explicit_steps=3, batch_size=8, mastered=0.0)
    monkeypatch.setattr(ablate, "_EXPLICIT_RUNS", 2)
    with pytest.raises(ValueError, match="After 4 explicit steps a task of seed 0"):
        ablate.Sweep(plan, tmp_path, RECIPE).explicit(0)


def test_another_plan_in_the_same_folder_is_refused(tmp_path):
    ablate.Sweep(ablate.Plan(rows=24), tmp_path, RECIPE)
    with pytest.raises(ValueError, match="another plan"):
        ablate.Sweep(ablate.Plan(rows=25), tmp_path, RECIPE)


def test_results_of_another_number_of_steps_are_not_mixed(swept):
    (swept / "sweep").rename(swept / "gone")
    with pytest.raises(ValueError, match="another plan"):
        run(swept, "--variants", "full", "--latent_steps", "6")


@pytest.mark.slow
def test_the_explicit_stage_goes_on_until_every_task_is_mastered(tmp_path, monkeypatch):
    """One step, then runs of a third of three; a sweep that was cut goes on from the last one."""
    plan = ablate.Plan(tasks=("image-chain", "image-name"), rows=24, explicit_steps=3, batch_size=8, mastered=0.5)
    entropies = iter([2.0, 1.0, 0.4])
    monkeypatch.setattr(ablate.Sweep, "hardest_ce", lambda self, model: next(entropies))
    folder = ablate.Sweep(plan, tmp_path, RECIPE).explicit(0)
    history = json.loads((folder / "history.json").read_text())
    assert [(log["step"], log["hardest_ce"]) for log in history if "hardest_ce" in log] == [
        (3, 2.0),
        (4, 1.0),
        (5, 0.4),
    ]
    ablate.Sweep(plan, tmp_path, RECIPE).explicit(0)  # mastered: draws no further entropy


@pytest.mark.parametrize(("owner", "name", "passed"), [(ablate.Path, "rename", 0), (ablate.Path, "rename", 1), (ablate.shutil, "rmtree", 2)])  # fmt: skip
def test_a_checkpoint_survives_a_kill_while_it_is_replaced(tmp_path, monkeypatch, owner, name, passed):
    """Either the one of before is there or the new one, whole."""
    sweep, folder = ablate.Sweep(ablate.Plan(rows=24), tmp_path, RECIPE), tmp_path / "explicit-0"
    model = ablate.build_student(sweep.processor)
    sweep._keep(model, folder, [{"step": 1}])
    calls, original = [], vars(owner)[name]

    def die(*args, **kwargs):
        calls.append(args)
        if len(calls) > passed:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, die)
    with pytest.raises(KeyboardInterrupt):
        sweep._keep(model, folder, [{"step": 2}])
    monkeypatch.undo()
    (log,) = json.loads((ablate._restored(folder) / "history.json").read_text())
    assert log["step"] in (1, 2)
    PlumeForEmbedding.from_pretrained(folder)


@pytest.mark.slow
def test_mastery_is_the_cross_entropy_of_the_queries(tmp_path):
    """A head that says nothing leaves every token at the logarithm of the vocabulary; plume-tiny writes better."""
    plan = ablate.Plan(tasks=("image-chain", "image-name"), rows=64, batch_size=8)
    sweep = ablate.Sweep(plan, tmp_path, RECIPE)
    sweep.write_world()
    model = PlumeForEmbedding.from_pretrained(ROOT / "checkpoints/plume-tiny")
    sweep.processor = PlumeProcessor.from_pretrained(ROOT / "checkpoints/plume-tiny")
    chance = math.log(model.config.text_config.vocab_size)
    assert sweep.hardest_ce(model) < chance - 1
    torch.nn.init.zeros_(model.lm_head.weight)
    assert sweep.hardest_ce(model) == pytest.approx(chance, abs=1e-3)


@pytest.mark.slow
def test_the_training_demo_draws_what_it_trained(tmp_path, monkeypatch):
    few = ablate.Plan(
        tasks=("image-chain",),
        rows=24,
        queries=6,
        explicit_steps=1,
        mastered=99.0,
        latent_steps=5,
        batch_size=8,
        rates=(1.0,),
    )
    monkeypatch.setattr(train_demo, "PLAN", few)
    monkeypatch.setattr(train_demo.torch, "set_num_threads", lambda count: None)
    scores = {variant: train_demo._train(variant, tmp_path) for variant in train_demo.VARIANTS}
    assert all(0 <= score <= 1 for score in scores.values())
    train_demo.draw_curves(tmp_path, scores, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 5000

"""The sweep of the anytime checkpoint: one set of phases, variants as data, and rows that say how they were made."""

import json

import pytest

pytest.importorskip("mteb")
pytest.importorskip("trl")

from plume.playground import anytime, anytime_sweep
from plume.playground.anytime_sweep import PHASES, VARIANTS, AnytimeSweep, main, phase_options
from plume.training.config import PlumeTrainingConfig


def curriculum(variant, place, tmp_path):
    options = phase_options(variant, place, 1.0, 10)
    args = PlumeTrainingConfig(output_dir=str(tmp_path), use_cpu=True, report_to="none", **options)
    return args, args.curriculum(args.num_latent_steps if args.num_latent_steps is not None else 8)


@pytest.mark.parametrize("place", range(len(PHASES)))
@pytest.mark.parametrize("name", VARIANTS)
def test_variants_differ_in_the_view_of_the_embedding_and_not_in_stages_rates_and_steps(name, place):
    own = {"readout_steps", "readout_weights", "latent_view_weight", "matryoshka_dims", "matryoshka_weights"}
    own |= {"steps_per_sentence", "num_latent_steps"}
    options, reference = (phase_options(variant, place, 0.5, 30) for variant in (name, "fixed_k8"))
    assert {k: v for k, v in options.items() if k not in own} == {k: v for k, v in reference.items() if k not in own}
    assert options["learning_rate"] == PHASES[place]["learning_rate"] / 2
    assert options["max_steps"] == 30


def test_the_variants_with_steps_have_two_for_every_sentence(tmp_path):
    for name in ("anytime", "fixed_k8", "fixed_k8_view"):
        _, stages = curriculum(name, 1, tmp_path)
        assert [stage.num_latent_steps for stage in stages.stages] == [0, 2, 4, 6, 8, 8], name
        assert [stage.num_replaced(4) for stage in stages.stages[:5]] == [0, 1, 2, 3, 4], name


def test_without_latent_steps_the_rationale_goes_sentence_by_sentence_too(tmp_path):
    _, stages = curriculum("no_latent", 1, tmp_path)
    assert [stage.num_latent_steps for stage in stages.stages] == [0] * 6
    assert [stage.num_replaced(4) for stage in stages.stages[:5]] == [0, 1, 2, 3, 4]


def test_only_the_view_tells_fixed_k8_from_fixed_k8_view(tmp_path):
    read = {name: curriculum(name, 1, tmp_path) for name in ("fixed_k8", "fixed_k8_view", "anytime")}
    found = {name: args.readouts(stages.stages[3]) for name, (args, stages) in read.items()}
    assert found == {
        "fixed_k8": {},
        "fixed_k8_view": {6: 0.3},
        "anytime": {**dict.fromkeys(range(6), pytest.approx(0.25 / 9)), 6: pytest.approx(0.3 + 0.25 / 9)},
    }


def test_the_first_seed_chooses_among_the_rates_on_dev_and_only_once(tmp_path, monkeypatch):
    sweep, hits, read = AnytimeSweep(tmp_path), {1.0: 0.2, 0.5: 0.9, 2.0: 0.4}, []
    monkeypatch.setattr(AnytimeSweep, "run", lambda self, variant, seed, rate: rate)
    monkeypatch.setattr(AnytimeSweep, "table", lambda self, split: split)

    def score(rate, split, *_, **__):
        read.append((rate, split))
        return [{"hit_at_1": hits[rate]}, {"hit_at_1": hits[rate]}]

    monkeypatch.setattr(anytime, "measure_checkpoint", score)
    assert [sweep.choose_rate("fixed_k8", 42) for _ in range(2)] == [0.5, 0.5]
    assert read == [(rate, "dev") for rate in sweep.rates]


def test_a_folder_of_another_plan_is_refused(tmp_path):
    AnytimeSweep(tmp_path, rows=24)
    with pytest.raises(ValueError, match="rows: 24 there, 25 here"):
        AnytimeSweep(tmp_path, rows=25)


@pytest.mark.slow
def test_one_command_trains_measures_and_adds_rows(tmp_path, monkeypatch):
    """From an empty folder; a second call finds its rows, and another variant starts from the same explicit stage."""
    results = tmp_path / "rows.json"
    few = ["--rows", "70", "--queries", "4", "--explicit-steps", "1", "--steps", "1", "1", "1", "--rates", "1"]
    where = ["--output", str(tmp_path / "sweep"), "--results", str(results), "--tasks", "text-chain", "image-name"]
    main([*where, *few, "--variants", "anytime", "--seeds", "42"])
    rows = json.loads(results.read_text())
    assert {(row["variant"], row["seed"], row["latent_steps"], row["rate"]) for row in rows} == {("anytime", 42, 3, 1)}
    assert {row["hops"] for row in rows if row["task"] == "text-chain"} == set(range(1, 7))
    assert {row["exit_by"] for row in rows if row["exit_threshold"]} == {"head"}
    monkeypatch.setattr(anytime_sweep, "write_world", None)
    monkeypatch.setattr(AnytimeSweep, "run", None)
    main([*where, *few, "--variants", "anytime", "--seeds", "42"])
    assert json.loads(results.read_text()) == rows
    monkeypatch.undo()
    main([*where, *few, "--variants", "no_latent", "--seeds", "42"])
    assert {row["k_query"] for row in json.loads(results.read_text()) if row["variant"] == "no_latent"} == {0}

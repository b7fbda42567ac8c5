"""The measurement of a checkpoint at every K, width and number of look-ups."""

import json

import pytest
import torch

import plume
from inputs import mixed_inputs
from plume.playground.anytime import curves, main, stop
from plume.playground.corpora import TABLE, conditions, write_evaluation


def test_stopping_among_readouts_is_what_early_exit_gives(model, processor):
    features, steps = processor.process_documents(mixed_inputs()[:8]), [0, 1, 3, 6]
    with torch.no_grad():
        found = model(**features, num_latent_steps=6, readout_steps=steps).readout_embeddings
    readouts = dict(zip(steps, found.unbind(dim=1), strict=True))
    threshold = (1 - (readouts[0] * readouts[1]).sum(dim=-1)).quantile(0.5).item()
    vectors, taken = stop(readouts, steps, threshold)
    settled = plume.embed_early(model, features, threshold, num_latent_steps=6, readout_steps=steps)
    assert settled.steps.tolist() == taken.tolist()
    assert (settled.embeddings - vectors).abs().max() <= 1e-5


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    write_evaluation(folder, conditions("test", ["text-chain"], hops=[1, 2])[:2], 6, 0, progress=False)
    return folder


def test_rows_say_what_each_k_width_and_exit_is_worth(world, tmp_path):
    output = tmp_path / "rows.json"
    command = ["--model", "checkpoints/plume-tiny", "--table", str(world / TABLE), "--output", str(output)]
    for seed in ("0", "1", "1"):
        fit = ["--fit-exit-on", str(world / TABLE)] if seed == "0" else []
        main([*command, *fit, "--seed", seed, "--exit-threshold", "0.05", "--plot", str(tmp_path / "curve.png")])
    assert (tmp_path / "curve.png").stat().st_size > 5000
    rows = json.loads(output.read_text())
    assert {row["seed"] for row in rows} == {0, 1}
    assert len(rows) == 2 * 2 * (9 + 8 + 3 + 1), "two seeds, two tasks; the run of a seed replaces its older rows"
    first = [row for row in rows if (row["seed"], row["hops"]) == (0, 1)]
    assert {"variant", "seed", "task", "hops", "k_query", "k_document", "dim", "n", "hit_at_1", "mean_steps"} <= set(
        first[0]
    )
    curve = [row for row in first if row["k_query"] == row["k_document"] and row["dim"] == 128]
    assert [row["mean_steps"] for row in curve[:9]] == list(range(9))
    assert [row["k_document"] for row in first if row["k_query"] == 8 and row["k_document"] < 8] == list(range(8))
    assert [row["dim"] for row in first if row["dim"] < 128] == [16, 32, 64]
    (early,) = [row for row in first if row["exit_threshold"] is not None]
    assert early["exit_by"] == "head"
    assert 0 <= early["mean_steps"] <= 8
    (early,) = [row for row in rows if row["exit_threshold"] is not None and (row["seed"], row["hops"]) == (1, 1)]
    assert early["exit_by"] == "cosine"
    assert 2 <= early["mean_steps"] <= 8


def test_a_curve_is_a_mean_over_tasks_for_each_seed_and_leaves_controls_and_cheaper_conditions_out():
    def row(seed, task, hit, **changed):
        whole = {"k_query": 2, "k_document": 2, "dim": 128, "exit_threshold": None, "hops": 1}
        return {"seed": seed, "task": task, "hit_at_1": hit, **whole, **changed}

    chains = [row(1, "text-chain", 0.5), row(1, "image-chain", 0.7), row(0, "text-chain", 1.0)]
    others = [{"k_document": 0}, {"dim": 16}, {"exit_threshold": 0.1}, {"task": "image-look"}]
    rows = [*chains, *(row(**{"seed": 1, "task": "text-chain", "hit": 0.0, **changed}) for changed in others)]
    assert curves(rows) == {1: {2: [100.0, pytest.approx(60.0)]}}

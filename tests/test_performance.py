"""The benchmarks measure what they claim."""

import json
import statistics

import pytest
import torch

from plume import PlumeForEmbedding, cache_plume
from plume.benchmarks import __main__ as command
from plume.benchmarks import compare, parts, report, systems, training
from plume.benchmarks.models import build_inputs, build_model


def count_reads(monkeypatch) -> list[int]:
    """How many positions every pass after a prefix reads."""
    reads, step = [], cache_plume.CachedContext._step

    def counted(self, inputs, *args):
        reads.append(inputs.shape[1])
        return step(self, inputs, *args)

    monkeypatch.setattr(cache_plume.CachedContext, "_step", counted)
    return reads


@pytest.fixture(scope="module")
def random_model() -> PlumeForEmbedding:
    return build_model("tiny").speed_up()


@pytest.mark.parametrize("kind", ["text64", "image448", "video8"])
def test_the_compared_systems_compute_the_same_vectors(random_model, kind):
    inputs = build_inputs(random_model, kind, 2)
    with torch.inference_mode():
        assert inputs["input_ids"].shape[1] == {"text64": 64, "image448": 320, "video8": 640}[kind]
        single = systems.single_pass(random_model, inputs)
        none, eight = (random_model(**inputs, num_latent_steps=k).embeddings for k in (0, 8))
        assert (single - none).abs().max() <= 1e-5
        assert (systems.one_at_a_time(random_model, inputs) - eight).abs().max() <= 1e-5
        assert (systems.plume(random_model, inputs, 8, fast=False) - eight).abs().max() <= 1e-5
        assert (eight - none).abs().max() > 1e-3


CELLS = [compare.Cell("tiny", "fp32", 2, "text64"), compare.Cell("tiny", "bf16", 1, "image448")]


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """A result file of both cells, from the command itself."""
    path = tmp_path_factory.mktemp("benchmark") / "result.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare, "plan", lambda device, quick: CELLS)
        patch.setattr(systems, "COT_MEASURED", 2)
        patch.setattr(compare, "Effort", lambda **kwargs: _Once(**kwargs))
        options = command.build_parser().parse_args(["compare", "--device", "cpu", "--output", str(path)])
        command.run_compare(options)
    return path


class _Once(compare.Effort):
    def __init__(self, minutes=18.0, **kwargs):
        super().__init__(rounds=(3, 3), seconds=0.0, minutes=minutes)


@pytest.mark.parametrize(
    ("milliseconds", "longest", "warm", "turns"), [(1000, 100.0, 4, 5), (20_000, 100.0, 1, 2), (1000, 12.0, 4, 4)]
)
def test_turns_go_forth_and_back_until_the_time_is_over(monkeypatch, milliseconds, longest, warm, turns):
    """Every system has a turn to warm up; of turns that take a tenth of the time, only the first system."""
    now, calls = [0.0], []

    def timer_of(system, model, inputs):
        def timed():
            now[0] += milliseconds / 1000
            calls.append(system)
            return milliseconds + 10.0 * len(calls)

        return timed

    monkeypatch.setattr(compare, "timer_of", timer_of)
    monkeypatch.setattr(compare, "build_inputs", lambda *args: {})
    monkeypatch.setattr(compare.time, "monotonic", lambda: now[0])
    names = ["single_pass", "plume_k4", "plume_k8", "plume_k8_plain"]
    effort = compare.Effort(rounds=(5, 15), seconds=10.0, longest=longest)
    rows = compare.measure(None, CELLS[0], names, "cpu", effort)
    first = ["plume_k8", "single_pass", "plume_k4", "plume_k8_plain"][:warm]
    assert calls == first + [name for turn in range(turns) for name in names[:: 1 if turn % 2 == 0 else -1]]
    assert [row["turns"] for row in rows] == [turns] * 4
    measured = [milliseconds + 10.0 * (i + 1) for i, name in enumerate(calls) if i >= warm and name == "plume_k4"]
    assert rows[1]["ms_median"] == pytest.approx(statistics.median(measured))


def test_a_result_has_all_rows_and_columns(result):
    written = json.loads(result.read_text())
    assert set(written) == {"header", "rows"}
    assert written["header"]["machine"]["torch"] == torch.__version__
    assert written["header"]["left_out"] == []
    assert len(written["rows"]) == len(CELLS) * len(compare.SYSTEMS)
    for row in written["rows"]:
        assert tuple(row) == compare.COLUMNS
        assert row["ms_median"] > 0
        assert row["per_second"] == pytest.approx(1000 * row["batch"] / row["ms_median"], rel=1e-2)
        assert row["latent_steps"] == systems.LATENT_STEPS[row["system"]]
        assert (row["ms_iqr"] is None) == (row["system"] in systems.SLOW)
    assert {row["system"] for row in written["rows"]} == set(compare.SYSTEMS)


def test_a_resumed_run_keeps_rows_and_measures_the_rest(result, tmp_path):
    machine = compare.describe_machine("cpu")
    rows = compare.read_rows(result, machine, quick=False)
    lost = [row for row in rows if row["system"] == "plume_k4"]
    kept = [row for row in rows if row not in lost]
    saved = []
    compare.run(CELLS, lambda cell: compare.SYSTEMS, "cpu", _Once(), kept, lambda: saved.append(len(kept)))
    assert saved == [len(rows) - 1, len(rows)]
    assert [row["system"] for row in kept[-2:]] == ["plume_k4"] * 2
    assert compare.run(CELLS, lambda cell: compare.SYSTEMS, "cpu", _Once(minutes=-1), [], lambda: None) == CELLS
    with pytest.raises(ValueError, match="would mean nothing"):
        compare.read_rows(result, {**machine, "threads": 99}, quick=False)
    with pytest.raises(ValueError, match="would mean nothing"):
        compare.read_rows(result, machine, quick=True)


def test_table_claims_and_chart_say_what_the_rows_say(result, tmp_path):
    written = json.loads(result.read_text())
    table = report.format_table(written["rows"])
    assert table.count("single_pass") == 2
    assert "tiny bf16, batch 1, image448" in table
    assert report.claims(written["rows"]) == []
    as_2b = [{**row, "size": "2b", "batch": 1, "input": "image448", "dtype": "bf16"} for row in written["rows"]]
    for row, ms in zip(as_2b, (100.0, 1.0, 1.0, 120.0, 1.0, 1.0, 3600.0), strict=False):
        row["ms_median"] = ms
    found = {name: value for name, value, _ in report.claims(as_2b[: len(compare.SYSTEMS)])}
    assert found["plume_k8 / single_pass, 2b bf16 1 image448"] == 1.2
    assert found["explicit_cot / plume_k8, 2b bf16 1 image448"] == 30.0
    report.draw(as_2b[: len(compare.SYSTEMS)], written["header"], tmp_path / "chart.png")
    assert (tmp_path / "chart.png").stat().st_size > 5000
    with pytest.raises(ValueError, match="to its end"):
        report.draw(written["rows"], written["header"], tmp_path / "none.png")


def test_quick_and_full_plans_begin_with_the_cells_of_the_claims():
    for device in ("cpu", "cuda"):
        quick, full = compare.plan(device, quick=True), compare.plan(device, quick=False)
        assert set(quick) <= set(full)
        assert len(full) == len(set(full))
        claimed = report.claimed(device)
        assert set(quick) == set(claimed)
        assert all(systems <= set(compare.SYSTEMS) and len(systems) > 1 for systems in claimed.values())
        assert full.index(max(claimed, key=full.index)) <= 4


def test_a_step_demands_every_weight_once(random_model):
    demand = parts.step_demand(random_model, batch=2, columns=10, dtype=torch.float32)
    width, inner, keys = 32, 64, 2 * 8  # two key-value heads of 8
    attention = 2 * width * width + width + 2 * (width * keys + keys)
    layer = attention + 3 * width * inner + 2 * width
    experts = 5 * (2 * width * 2 * width + 2 * width + width)
    router = 2 * width * 4 + 4
    assert demand["weight_bytes"] == 4 * (2 * layer + experts + router + 2 * width)
    assert demand["cache_bytes"] == 2 * 10 * 2 * keys * 2 * 4
    assert demand["operations"] == 2 * 2 * demand["weight_bytes"] / 4 + 4 * 2 * 10 * width * 2


def pieces(num_latent_steps: int) -> list[int]:
    return [4] if num_latent_steps == 0 else [*[1] * (num_latent_steps - 1), 5]


def test_training_steps_are_compared_at_three_numbers_of_latent_steps(monkeypatch):
    monkeypatch.setattr(training, "_TURNS", 1)
    reads = count_reads(monkeypatch)
    table = training.latent_steps_table("tiny", prefix=16, suffix=4, pairs=4, chunk=4)
    assert [row["latent_steps"] for row in table] == [0, 4, 8]
    # Two turns of both passes over two chunks; the last latent step is read with the suffix.
    assert reads == [length for _ in range(2) for k in (0, 4, 8) for _ in range(4) for length in pieces(k)]
    assert all(row["ms"] > 0 for row in table)

"""The benchmark: systems that compute what they claim, on equal inputs, in turns, in a result file that goes on."""

import json
import statistics
import time

import pytest
import torch

from inputs import ROOT
from plume.benchmarks import __main__ as command
from plume.benchmarks import compare, parts, report, systems, training
from plume.benchmarks.models import build_model, draw_items
from plume.benchmarks.names import INPUTS, SYSTEMS
from plume.evaluation.baselines import ExplicitCoT
from plume.evaluation.embedders import prepare
from plume.hub import MODEL_TYPES
from plume.speed import prefixes
from plume.speed.int8 import computes_exactly

TOKENS = {"text64": 64, "text512": 512, "image448": 320, "page896": 1324, "video8": 640}


@pytest.fixture(scope="module")
def loaded():
    model, processor = build_model("tiny")
    return model.speed_up(reuse=False), processor


@pytest.fixture(scope="module")
def backbones(loaded):
    return {name: loaded if name == "qwen2_vl" else build_model("tiny", model_type=name) for name in MODEL_TYPES}


def read(loaded, kind, batch=1):
    model, processor = loaded
    return prepare(model, processor, draw_items(processor, kind, batch))


# Inputs


@pytest.mark.parametrize("kind", TOKENS)
def test_inputs_have_the_tokens_that_they_promise(loaded, kind):
    inputs = read(loaded, kind)
    assert inputs["input_ids"].shape == (1, TOKENS[kind])
    assert inputs["attention_mask"].all()
    again = read(loaded, kind)
    assert all(torch.equal(inputs[name], again[name]) for name in inputs)


def test_the_short_query_has_twelve_words_after_the_instruction(loaded):
    instruction, _, words = draw_items(loaded[1], "query12", 1)[0]["text"].partition("\n")
    assert instruction == loaded[1].query_prompt
    assert len(words.split()) == 12


def test_rows_of_a_batch_differ_and_need_no_padding(loaded):
    inputs = read(loaded, "text64", 3)
    assert inputs["attention_mask"].all()
    assert len({tuple(row) for row in inputs["input_ids"].tolist()}) == 3


def test_a_picture_has_the_tokens_that_its_backbone_makes_of_it(backbones):
    """Patches of 16 pixels make fewer tokens than patches of 14; the text is as long as before."""
    lengths = {name: read(loaded, "image448")["input_ids"].shape[1] for name, loaded in backbones.items()}
    assert lengths == {"qwen2_vl": 64 + 256, "qwen2_5_vl": 64 + 256, "qwen3_vl": 64 + 196}


def test_random_weights_have_the_dtype_asked_for():
    model, _ = build_model("tiny", torch.bfloat16)
    assert model.dtype == torch.bfloat16
    assert not model.training
    assert all(parameter.isfinite().all() and parameter.std() > 0 for parameter in model.parameters())


# Systems


@pytest.mark.parametrize("kind", ["text64", "image448", "video8"])
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_the_compared_systems_compute_the_same_vectors_on_every_backbone(backbones, model_type, kind):
    model, inputs = backbones[model_type][0], read(backbones[model_type], kind, 2)
    with torch.inference_mode():
        none, eight = (model(**inputs, num_latent_steps=k).embeddings for k in (0, 8))
        assert (systems.single_pass(model, inputs) - none).abs().max() <= 1e-5
        assert (systems.one_at_a_time(model, inputs) - eight).abs().max() <= 1e-5
        assert (eight - none).abs().max() > 1e-3


def test_systems_take_the_steps_that_their_names_say(loaded, monkeypatch):
    model, steps, written = loaded[0], [], []
    monkeypatch.setattr(systems, "COT_MEASURED", 2)
    think = ExplicitCoT.think
    monkeypatch.setattr(ExplicitCoT, "think", lambda *args: written.append(think(*args)) or written[-1])
    hook = model.latent_transition.register_forward_hook(lambda *_: steps.append(1))
    counted = {}
    try:
        for name, timer in systems.timers(*loaded, "query12", 1).items():
            steps.clear()
            with torch.inference_mode():
                assert timer() > 0
            counted[name] = len(steps)
    finally:
        hook.remove()
    expected = {system: systems.LATENT_STEPS[system] for system in SYSTEMS}
    expected["one_at_a_time"] = 0  # its own way through the experts
    assert counted == expected
    assert [len(rationale.token_ids[0]) for rationale in written] == [3]


def test_the_plain_system_shares_the_weights_and_leaves_the_fast_one_fast(loaded):
    def sped_up(model):
        return sum("forward" in vars(module) for module in model.modules())

    before = sped_up(loaded[0])
    plain = systems.timers(*loaded, "text64", 1)["plume_k8_plain"].args[0].func
    assert before == sped_up(loaded[0]) > sped_up(plain) == 0
    assert all(one is other for one, other in zip(loaded[0].parameters(), plain.parameters(), strict=True))


def test_reuse_meets_other_words_after_the_same_instruction(loaded, monkeypatch):
    """Nothing but the instruction is known at any turn, and eight bits are those of the weights."""
    timers, columns, find = systems.timers(*loaded, "query12", 1), [], prefixes._find

    def spy(*args):
        found = find(*args)
        columns.append(found[1])
        return found

    monkeypatch.setattr(prefixes, "_find", spy)
    with torch.inference_mode():
        for _ in range(30):
            timers["plume_k8_reuse"]()
    batches = [draw_items(loaded[1], "query12", 1, variant) for variant in (1, 2)]
    one, other = (prepare(*loaded, batch)["input_ids"][0] for batch in batches)
    length = min(len(one), len(other))
    assert columns == [0, *[int((one[:length] == other[:length]).long().cumprod(0).sum())] * 29]
    model, eight = loaded[0], timers["plume_k8_int8"].args[0].args[0]
    with torch.inference_mode():
        expected, found = (each(**read(loaded, "query12"), num_latent_steps=8).embeddings for each in (model, eight))
    cosine = (expected * found).sum()
    assert cosine > 0.99
    assert (cosine < 1 - 1e-6) == computes_exactly()  # a CPU that cannot keeps the weights in their own dtype


def test_processor_time_is_another_condition(tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "plan", lambda device, quick: CELLS[:1])
    arguments = ["compare", "--device", "cpu", "--systems", "single_pass", "--output", str(tmp_path / "r.json")]
    command.main([*arguments, "--processor-time", "--minutes", "0.01"])
    assert json.loads((tmp_path / "r.json").read_text())["header"]["machine"]["clock"] == "processor time"
    with pytest.raises(ValueError, match="clock"):
        command.main([*arguments, "--resume"])


def test_the_time_of_a_rationale_is_extrapolated_from_its_tokens(loaded, monkeypatch):
    """One second per call of the clock: the prefix takes one, each token one."""
    seconds = iter(range(1000))
    monkeypatch.setattr(systems, "clock", lambda model, now: next(seconds))
    monkeypatch.setattr(systems, "COT_MEASURED", 4)
    assert systems.explicit_cot_ms(*loaded, read(loaded, "text64"), time.perf_counter) == 1000 * (
        1 + systems.COT_TOKENS
    )


# The run


CELLS = [compare.Cell("tiny", "fp32", 2, "query12"), compare.Cell("tiny", "bf16", 1, "image448")]


class _Once(compare.Effort):
    def __init__(self, minutes=18.0, **kwargs):
        super().__init__(rounds=(3, 3), seconds=0.0, minutes=minutes)


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """A result file of both cells, from the command itself."""
    path = tmp_path_factory.mktemp("benchmark") / "result.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare, "plan", lambda device, quick: CELLS)
        patch.setattr(systems, "COT_MEASURED", 2)
        patch.setattr(compare, "Effort", lambda **kwargs: _Once(**kwargs))
        command.main(["compare", "--device", "cpu", "--output", str(path)])
    return path


@pytest.mark.parametrize(
    ("milliseconds", "longest", "warm", "turns"), [(1000, 100.0, 4, 5), (20_000, 100.0, 1, 2), (1000, 12.0, 4, 4)]
)
def test_turns_go_forth_and_back_until_the_time_is_over(monkeypatch, milliseconds, longest, warm, turns):
    """Every system has a turn to warm up; of turns that take a tenth of the time, only the first system."""
    now, calls = [0.0], []
    names = ["single_pass", "plume_k4", "plume_k8", "plume_k8_plain"]

    def timer_of(system):
        def timed():
            now[0] += milliseconds / 1000
            calls.append(system)
            return milliseconds + 10.0 * len(calls)

        return timed

    monkeypatch.setattr(compare, "timers", lambda *args: {name: timer_of(name) for name in names})
    monkeypatch.setattr(compare.time, "monotonic", lambda: now[0])
    effort = compare.Effort(rounds=(5, 15), seconds=10.0, longest=longest)
    rows = compare.measure((None, None), CELLS[0], names, "cpu", effort)
    first = ["plume_k8", "single_pass", "plume_k4", "plume_k8_plain"][:warm]
    assert calls == first + [name for turn in range(turns) for name in names[:: 1 if turn % 2 == 0 else -1]]
    assert [row["turns"] for row in rows] == [turns] * 4
    measured = [milliseconds + 10.0 * (i + 1) for i, name in enumerate(calls) if i >= warm and name == "plume_k4"]
    assert rows[1]["ms_median"] == pytest.approx(statistics.median(measured))


@pytest.mark.slow
def test_a_result_has_all_rows_and_columns(result):
    written = json.loads(result.read_text())
    assert set(written) == {"header", "rows"}
    assert written["header"]["machine"]["torch"] == torch.__version__
    assert written["header"]["left_out"] == []
    assert len(written["rows"]) == len(CELLS) * len(SYSTEMS) - 2  # a picture is no query
    for row in written["rows"]:
        assert tuple(row) == compare.COLUMNS
        assert row["ms_median"] > 0
        assert row["per_second"] == pytest.approx(1000 * row["batch"] / row["ms_median"], rel=1e-2)
        assert row["latent_steps"] == systems.LATENT_STEPS[row["system"]]
        assert (row["ms_iqr"] is None) == (row["system"] in systems.SLOW)
    assert {row["system"] for row in written["rows"]} == set(SYSTEMS)


def test_the_committed_result_is_read_by_todays_code():
    written = json.loads((ROOT / "docs/results/benchmark-cpu.json").read_text())
    assert {tuple(row) for row in written["rows"]} == {compare.COLUMNS}
    ratios = dict((name, value) for name, value, _ in report.claims(written["rows"]))
    assert ratios["plume_k8 / single_pass, 2b bf16 1 image448"] == pytest.approx(1.15, abs=0.005)


@pytest.mark.slow
def test_a_resumed_run_keeps_rows_and_measures_the_rest(result):
    machine = {**compare.describe_machine("cpu"), "backbone": "qwen2_vl"}
    rows = compare.read_rows(result, machine, quick=False)
    lost = [row for row in rows if row["system"] == "plume_k4"]
    kept = [row for row in rows if row not in lost]
    saved = []
    compare.run(CELLS, lambda cell: SYSTEMS, "cpu", _Once(), kept, lambda: saved.append(len(kept)))
    assert saved == [len(rows) - 1, len(rows)]
    assert [row["system"] for row in kept[-2:]] == ["plume_k4"] * 2
    assert compare.run(CELLS, lambda cell: SYSTEMS, "cpu", _Once(minutes=-1), [], lambda: None) == CELLS


@pytest.mark.parametrize("changed", [{"threads": 99}, {"quick": True}, {"weights": {"hash": "1"}}])
def test_a_run_does_not_go_on_from_rows_of_another_condition(result, changed):
    asked = {**compare.describe_machine("cpu"), "backbone": "qwen2_vl", "quick": False, **changed}
    with pytest.raises(ValueError, match=rf"another condition \({next(iter(changed))}: .*Run without --resume"):
        compare.read_rows(result, asked, quick=asked.pop("quick"))


def test_a_checkpoint_is_measured_as_well_as_random_weights(checkpoint, tmp_path, capsys):
    arguments = ["compare", "--model", str(checkpoint), "--device", "cpu", "--output", str(tmp_path / "costs.json")]
    arguments += ["--inputs", "query12", "--batch", "1", "2", "--minutes", "0.01", "--resume"]
    command.main([*arguments, "--systems", "prepare", "single_pass", "plume_k8"])
    written = json.loads((tmp_path / "costs.json").read_text())
    assert [(row["size"], row["dtype"], row["batch"], row["system"]) for row in written["rows"]][:3] == [
        (checkpoint.name, "fp32", 1, system) for system in ("prepare", "single_pass", "plume_k8")
    ]
    assert len(written["header"]["machine"]["weights"]["hash"]) == 32
    assert "| plume_k8 " in capsys.readouterr().out


def test_a_checkpoint_without_so_many_steps_leaves_those_systems_out(checkpoint, tmp_path):
    _, _, _, steps = compare.plan_checkpoint(str(checkpoint), "cpu", [1])
    assert steps == 8
    assert compare.runnable(SYSTEMS, 4) == ["prepare", "single_pass", "plume_k4", "explicit_cot"]


def test_table_claims_and_chart_say_what_the_rows_say(result, tmp_path):
    written = json.loads(result.read_text())
    table = report.format_table(written["rows"])
    assert table.count("single_pass") == 2
    assert "tiny bf16, batch 1, image448" in table
    assert report.claims(written["rows"]) == []
    ours = ("single_pass", "plume_k4", "plume_k8", "one_at_a_time", "explicit_cot")
    as_2b = [
        {**row, "size": "2b", "batch": 1, "input": "image448", "dtype": "bf16"}
        for row in written["rows"][: len(SYSTEMS)]
        if row["system"] in ours
    ]
    for row, ms in zip(as_2b, (100.0, 1.0, 120.0, 1.0, 3600.0), strict=True):
        row["ms_median"] = ms
    found = {name: value for name, value, _ in report.claims(as_2b)}
    assert found["plume_k8 / single_pass, 2b bf16 1 image448"] == 1.2
    assert found["explicit_cot / plume_k8, 2b bf16 1 image448"] == 30.0
    (tmp_path / "rows.json").write_text(json.dumps({"header": written["header"], "rows": as_2b}))
    command.main(["chart", str(tmp_path / "rows.json"), str(tmp_path / "chart.png")])
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
        assert all(names <= set(SYSTEMS) and len(names) > 1 for names in claimed.values())
        assert full.index(max(claimed, key=full.index)) <= 4
        assert {cell.input for cell in full} <= INPUTS.keys()
        assert compare.Cell("2b", "bf16", 1, "query12") in full


# Parts and training


def test_a_step_demands_every_weight_once(loaded):
    demand = parts.step_demand(loaded[0], batch=2, columns=10)
    width, inner, keys = 32, 64, 2 * 8  # two key-value heads of 8
    attention = 2 * width * width + width + 2 * (width * keys + keys)
    layer = attention + 3 * width * inner + 2 * width
    experts = 5 * (2 * width * 2 * width + 2 * width + width)
    router = 2 * width * 4 + 4
    assert demand["weight_bytes"] == 4 * (2 * layer + experts + router + 2 * width)
    assert demand["cache_bytes"] == 2 * 10 * 2 * keys * 2 * 4
    assert demand["operations"] == 2 * 2 * demand["weight_bytes"] / 4 + 4 * 2 * 10 * width * 2


@pytest.mark.slow
def test_the_parts_command_prints_and_writes_what_it_found(tmp_path, capsys):
    command.main(
        ["parts", "--size", "tiny", "--batch", "2", "--device", "cpu", "--min-seconds", "0.01", "--json", str(tmp_path / "p.json")]
    )  # fmt: skip
    (row,) = json.loads((tmp_path / "p.json").read_text())["rows"]
    assert row["ms"]["PLUME K=8"] > row["ms"]["single pass"] > 0
    assert row["ms"]["all read-outs of K=0, 1, 2, 4, 8"] > row["ms"]["single pass"]
    assert "| one latent step " in capsys.readouterr().out


def test_training_steps_are_compared_at_three_numbers_of_latent_steps(monkeypatch):
    monkeypatch.setattr(training, "_TURNS", 1)
    seen, step = [], training.train_step
    monkeypatch.setattr(
        training, "train_step", lambda model, rows, chunk: (seen.append(rows.inputs["num_latent_steps"]), step(model, rows, chunk))[1]
    )  # fmt: skip
    table = training.latent_steps_table("tiny", prefix=16, suffix=4, pairs=4, chunk=4)
    assert [row["latent_steps"] for row in table] == [0, 4, 8]
    assert seen == [0, 4, 8] * 2, "two turns, one to warm up"
    assert all(row["ms"] > 0 for row in table)


def test_both_ways_of_training_give_the_same_gradients(monkeypatch):
    model = training.build_training_model("tiny")
    rows, found = training.build_rows(model.config, 4, 16, 4), []
    monkeypatch.setattr(model, "zero_grad", lambda: None)
    for step in (lambda: training.train_step(model, rows, 2), lambda: training.one_at_a_time(model, rows)):
        for parameter in model.parameters():
            parameter.grad = None
        step()
        found.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5 * max(1.0, one.abs().max().item()), rtol=1e-4)

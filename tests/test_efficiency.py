"""The protocol of Table 2: what is counted, what is timed, how it is summarised, and that it goes on after a stop."""

import json
import time

import pytest
import torch
from PIL import ImageChops

from plume.evaluation.efficiency import main, random_checkpoint
from plume.evaluation.efficiency import protocol as protocol_file
from plume.evaluation.efficiency.inputs import DRAWS, Sizes, draw_inputs
from plume.evaluation.efficiency.protocol import SYSTEMS, Protocol, build_system, measure, time_set
from plume.evaluation.efficiency.report import summarize, table
from plume.evaluation.embedders import prepare

SMALL = Sizes(text_words=6, image_size=56, page_size=84, frame_size=56, num_frames=2)
QUICK = Protocol(inputs=3, warmup=1, draws=2, rationale_tokens=5, modalities=("text", "image"))


@pytest.fixture(scope="module")
def tiny():
    return random_checkpoint("tiny", "cpu", "auto")


def test_inputs_follow_from_seed_and_sizes():
    for modality in DRAWS:
        first, again, other = (list(draw_inputs(modality, 3, seed, SMALL)) for seed in (0, 0, 1))
        for one, two in zip(first, again, strict=True):
            assert same(one, two)
        assert not any(same(one, two) for one in first for two in other)
        assert not same(first[0], first[1])
    assert len(next(draw_inputs("text", 1, 0, SMALL))["text"].split()) == 6
    assert next(draw_inputs("image", 1, 0, SMALL))["image"].size == (56, 56)
    assert next(draw_inputs("page", 1, 0, SMALL))["image"].size == (84, 119)
    frames = next(draw_inputs("video", 1, 0, SMALL))["video"]
    assert [frame.size for frame in frames] == [(56, 56)] * 2
    assert ImageChops.difference(*frames).getbbox(), "boxes move"
    with pytest.raises(ValueError, match="modality 'sound'"):
        next(draw_inputs("sound", 1, 0, SMALL))


def same(one, two):
    return one.keys() == two.keys() and all(
        [frame.tobytes() for frame in (value if isinstance(value, list) else [value])]
        == [frame.tobytes() for frame in (two[key] if isinstance(two[key], list) else [two[key]])]
        if key != "text"
        else value == two[key]
        for key, value in one.items()
    )


def test_systems_do_what_their_names_say(tiny):
    model, processor = tiny
    prepared = prepare(model, processor, list(draw_inputs("text", 2, 0, SMALL)))
    passes = []
    hook = model.latent_transition.register_forward_hook(lambda *_: passes.append(1))
    counted = {}
    for name in SYSTEMS:
        passes.clear()
        counted[name] = (build_system(name, model, processor, 7)(prepared), len(passes))
    hook.remove()
    assert counted == {
        "plume-k4": (4, 4),
        "plume-k6": (6, 6),
        "plume-k8": (8, 8),
        "single-pass": (0, 0),
        "explicit-cot": (7, 0),
    }
    with pytest.raises(ValueError, match="no system 'plume-k5'"):
        build_system("plume-k5", model, processor, 7)


def test_the_clock_counts_reading_and_embedding_apart_and_leaves_the_warm_up_out():
    def read(batch):
        time.sleep(0.5 if batch == ["cold"] else 0.02)
        return {}

    def embed(prepared):
        time.sleep(0.05)
        return 8.0

    cell = time_set(embed, read, iter([["cold"], ["a", "b"], ["c", "d"]]), 1, "cpu")
    assert (cell["n"], cell["reasoning"]) == (4, 8.0)
    assert 20 <= cell["prepare_ms"] < 250, "half a second of warm-up is not in it"
    assert cell["model_ms"] >= 50
    assert cell["latency_ms"] == pytest.approx(cell["prepare_ms"] + cell["model_ms"])
    assert cell["throughput"] == pytest.approx(2000 / cell["latency_ms"])


def test_every_set_of_every_system_is_measured_on_the_same_inputs(tiny):
    model, processor = tiny
    cells = measure(model, processor, QUICK, SMALL)
    assert len(cells) == 2 * 2 * 5
    assert {cell["n"] for cell in cells} == {3}
    order = [cell["system"] for cell in cells[:5]]
    assert order == list(SYSTEMS), "systems take turns within a set"
    assert {c["system"]: c["reasoning"] for c in cells}["explicit-cot"] == 5


def test_each_draw_has_a_seed_of_its_own_and_all_systems_share_it(tiny, monkeypatch):
    seen = []
    monkeypatch.setattr(
        protocol_file, "draw_inputs", lambda *arguments: (seen.append(arguments[:3]), draw_inputs(*arguments))[1]
    )
    protocol = Protocol(systems=("single-pass", "plume-k4"), modalities=("text",), inputs=2, warmup=3, draws=2, seed=5)
    measure(*tiny, protocol, SMALL)
    assert seen == [("text", 5, 5)] * 2 + [("text", 5, 6)] * 2


def test_latency_grows_with_the_work(tiny):
    model, processor = tiny
    protocol = Protocol(inputs=8, warmup=2, draws=1, rationale_tokens=40, modalities=("text",))
    rows = {row["system"]: row for row in summarize(measure(model, processor, protocol, SMALL))}
    single, eight, explicit = (rows[name]["model_ms"]["mean"] for name in ("single-pass", "plume-k8", "explicit-cot"))
    assert single < eight < explicit


def test_the_summary_is_mean_and_spread_over_draws():
    cells = [
        {"draw": d, "modality": m, "system": s, "n": 10, "prepare_ms": 1.0, "model_ms": v - 1, "latency_ms": v,
         "throughput": 1000 / v, "reasoning": 8}
        for d, m, s, v in (
            (0, "text", "plume-k8", 10.0), (1, "text", "plume-k8", 14.0), (0, "page", "plume-k8", 30.0),
            (1, "page", "plume-k8", 30.0), (0, "text", "single-pass", 6.0), (1, "text", "single-pass", 6.0),
            (0, "page", "single-pass", 20.0), (1, "page", "single-pass", 20.0),
        )
    ]  # fmt: skip
    rows = {(row["modality"], row["system"]): row for row in summarize(cells)}
    text = rows["text", "plume-k8"]
    assert text["latency_ms"] == {"mean": 12.0, "std": pytest.approx(8**0.5)}
    assert text["over_single_pass"] == 2.0
    assert "faster_than_explicit" not in text
    everything = rows["all", "plume-k8"]
    assert everything["latency_ms"] == {"mean": 21.0, "std": pytest.approx(2**0.5)}
    assert everything["throughput"]["mean"] == pytest.approx((1000 / 20 + 1000 / 22) / 2)
    assert "| text | plume-k8 | 8 | 12.0 ± 2.8 | 11.0 ± 2.8 |" in table(list(rows.values()))


def test_the_command_writes_a_table_and_goes_on_where_it_stopped(tmp_path):
    arguments = ["--size", "tiny", "--out", str(tmp_path), "--inputs", "2", "--warmup", "1", "--draws", "2", "--device"]
    arguments += [
        "cpu",
        "--rationale-tokens",
        "3",
        "--modalities",
        "text",
        "page",
        "--text-words",
        "5",
        "--page-size",
        "84",
    ]
    shown = main(arguments)
    assert "| all | explicit-cot | 3 |" in shown
    report = json.loads((tmp_path / "efficiency.json").read_text())
    assert report["condition"]["weights"] == "random, tiny"
    assert report["condition"]["page_size"] == 84
    assert len(report["cells"]) == 2 * 2 * 5
    assert len(report["rows"]) == 3 * 5
    assert (tmp_path / "efficiency.png").stat().st_size > 5000
    assert "efficiency.png" in (tmp_path / "efficiency.md").read_text()

    report["cells"][0]["latency_ms"] = 12345.0
    missing = report["cells"].pop()
    (tmp_path / "efficiency.json").write_text(json.dumps(report))
    main(arguments)
    cells = json.loads((tmp_path / "efficiency.json").read_text())["cells"]
    assert cells[0]["latency_ms"] == 12345.0, "a finished set is not measured again"
    assert [cells[-1][key] for key in ("draw", "modality", "system")] == [
        missing[key] for key in ("draw", "modality", "system")
    ]
    with pytest.raises(ValueError, match=r"another condition \(inputs\)"):
        main([*arguments, "--inputs", "3"])


def test_a_checkpoint_is_measured_as_well_as_random_weights(checkpoint, tmp_path):
    shown = main(
        ["--model", str(checkpoint), "--systems", "single-pass", "--modalities", "text", "--inputs", "1", "--draws", "1",
         "--warmup", "0", "--device", "cpu", "--out", str(tmp_path)]
    )  # fmt: skip
    assert "| text | single-pass | 0 |" in shown
    assert "hash" in json.loads((tmp_path / "efficiency.json").read_text())["condition"]["weights"]


def test_nothing_to_measure_is_an_error():
    for fields in ({"inputs": 0}, {"draws": 0}, {"warmup": -1}, {"systems": ()}):
        with pytest.raises(ValueError, match="measure"):
            Protocol(**fields)


def test_random_weights_have_the_dtype_asked_for():
    model, _ = random_checkpoint("tiny", "cpu", "bfloat16")
    assert model.dtype == torch.bfloat16
    assert not model.training

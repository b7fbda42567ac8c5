"""Means, versions, the printed tables, the doctor and the plots."""

import copy
import json
import random
from dataclasses import replace

import pytest
from matplotlib.projections.polar import PolarAxes
from PIL import Image

from plume.evaluation.__main__ import main
from plume.evaluation.doctor import diagnose
from plume.evaluation.plots import measured_points, radar, tradeoff
from plume.evaluation.report import group_table, report, task_table
from plume.evaluation.scores import (
    Column,
    check_same_version,
    choose_references,
    mean,
    means,
    read_vlm2vec,
    reference_columns,
    results_column,
)
from plume.evaluation.table import Table, read_table

TABLE = read_table()
CHANGED = TABLE.meta["incomparable"]


def reference(model, version):
    return next(c for c in reference_columns() if c.model == model and c.version.startswith(version))


PLUME, UME = reference("PLUME", "PLUME"), reference("UME-R1-2B", "PLUME")
V2 = reference("VLM2Vec-V2.0-Qwen2VL-2B", "v2.0.0")


def write_results(folder, scores=None, **changes):
    """A result file per task, as a run writes them; ``scores`` in percent."""
    folder.mkdir(exist_ok=True)
    rng = random.Random(0)
    for row in TABLE.rows:
        score = scores[row.id] / 100 if scores else rng.random()
        condition = {
            "benchmark": "MMEB-v2", "version": "v2.1", "page_labels": "fixed", "metric": row.metric,
            "prompt_set": "clean", "num_frames": row.num_frames, "dim": None, "dataset": dict(row.dataset),
            "latent_steps": 8, "checkpoint": {"hash": "1"}, "definition": row.definition,
        }  # fmt: skip
        seen = {"count": 100, "distinct": 100, "mean_cosine": 0.3, "dim": 8}
        result = {
            "task": row.id, "group": row.group, "metric": row.metric, "score": score, "n": row.num_queries,
            "num_candidates": row.pool_size if isinstance(row.pool_size, int) else 5, "condition": condition,
            "vectors": {"query": dict(seen), "document": dict(seen)},
        }  # fmt: skip
        (folder / f"{row.id}.json").write_text(json.dumps(result))
    return folder


def change(folder, task, path, value):
    """Change one entry of a task's result file."""
    file = folder / f"{task}.json"
    result = json.loads(file.read_text())
    place = result
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    file.write_text(json.dumps(result))


# Means


def test_published_columns_recompute_to_the_known_means():
    rounded = {
        column.model: {key: round(means(column, TABLE.rows)[key], 3) for key in ("image", "video", "visdoc", "all")}
        for column in (UME, V2)
    }
    assert list(rounded["UME-R1-2B"].values()) == [66.556, 42.228, 63.875, 60.117]
    assert list(rounded["VLM2Vec-V2.0-Qwen2VL-2B"].values()) == [64.853, 34.578, 65.360, 58.022]


@pytest.mark.parametrize("column", reference_columns(), ids=lambda c: f"{c.model}@{c.version}")
def test_every_published_column_agrees_with_its_stored_aggregates(column):
    from plume.evaluation.scores import REFERENCES

    stored = next(
        row["aggregates"]
        for row in json.loads(REFERENCES.read_text())["rows"]
        if (row["model"], row["version"]) == (column.model, column.version)
    )
    computed = means(column, TABLE.rows)
    for key, value in stored.items():
        assert computed[key] == (None if value is None else pytest.approx(value, abs=1e-3)), key


def test_without_the_changed_tasks_umer1_is_ahead():
    assert means(UME, TABLE.rows, CHANGED)["all"] == pytest.approx(61.53, abs=0.005)
    assert means(PLUME, TABLE.rows, CHANGED)["all"] == pytest.approx(61.45, abs=0.005)
    assert means(PLUME, TABLE.rows)["all"] == pytest.approx(61.45, abs=0.005)


def test_a_mean_needs_every_task():
    assert mean({"a": 1.0, "b": 3.0}, ["a", "b"]) == 2.0
    assert mean({"a": 1.0, "b": None}, ["a", "b"]) is None
    assert mean({"a": 1.0}, ["a", "b"]) is None
    assert mean({}, []) is None


@pytest.mark.parametrize("row", TABLE.rows[::7], ids=lambda row: row.id)
def test_one_missing_task_takes_its_means_and_no_others(row):
    scores = {task: score for task, score in UME.scores.items() if task != row.id}
    full, holed = means(UME, TABLE.rows), means(Column("x", "v", "wrong", scores), TABLE.rows)
    assert {key for key in full if holed[key] is None} == {row.group, row.modality, "all"}
    assert all(holed[key] == full[key] for key in full if holed[key] is not None)


# Tables


def test_with_one_task_missing_no_mean_is_printed(tmp_path, capsys):
    out = write_results(tmp_path / "ours")
    assert main(["table", str(out), "--reference"]) == 0
    complete = capsys.readouterr().out
    (out / "GQA.json").unlink()
    assert main(["table", str(out), "--reference"]) == 0
    holed = capsys.readouterr().out
    line, whole = (next(x for x in text.splitlines() if x.startswith("| ours")) for text in (holed, complete))
    heads = next(x for x in holed.splitlines() if x.startswith("| model")).split("|")
    empty = {head.split()[0] for head, cell in zip(heads, line.split("|"), strict=True) if cell.strip() == "-"}
    assert empty == {"I-QA", "image", "all"}
    assert " - " not in whole


def test_the_table_prints_what_the_papers_rows_recompute_to():
    printed = report([UME, PLUME], TABLE)
    assert "printed all 61.6 (recomputed 61.45)" in printed
    assert "visdoc 67.5 (recomputed 67.30)" in printed
    plume = next(line for line in printed.splitlines() if line.startswith("| PLUME"))
    assert plume.split("|")[-2].strip() == "61.45"
    ume = next(line for line in printed.splitlines() if line.startswith("| UME-R1-2B"))
    assert ume.split("|")[-2].strip() == "60.12"
    assert "UME-R1-2B, PLUME paper tables 7/8: printed" not in printed


def test_versions_are_never_in_one_full_table():
    with pytest.raises(ValueError, match="different data versions"):
        check_same_version([UME, PLUME])
    with pytest.raises(ValueError, match="different data versions"):
        group_table([UME, PLUME], TABLE.rows)
    with pytest.raises(ValueError, match="different data versions"):
        group_table([V2, UME], TABLE.rows)
    assert group_table([UME, reference("DUME-2B", "PLUME")], TABLE.rows).count("\n") == 3


def test_the_changed_tasks_are_set_apart_where_versions_meet():
    printed = report([UME, PLUME], TABLE)
    full, rest = printed.split("## The 75 tasks")
    assert full.count("## All 78 tasks") == 2
    shared, apart = rest.split("## Not comparable between versions: ")
    assert apart.splitlines()[0] == "MomentSeeker, ViDoSeek-page, MMLongBench-page"
    assert [line.split("|")[-2].strip() for line in shared.splitlines() if "pages" in line] == ["61.53", "61.45"]
    assert "all (75)" in shared
    assert "OOD (2)" in shared
    assert "Not comparable" not in report([UME], TABLE)


def test_the_tables_title_names_version_and_page_labels():
    assert report([PLUME], TABLE).startswith("# MMEB-v2 v2.1, fixed pages\n")


def test_per_task_table_has_all_tasks():
    lines = task_table([PLUME], TABLE.rows).splitlines()
    assert len(lines) == 80
    assert "63.50" in next(line for line in lines if "MomentSeeker" in line)


def test_our_results_stand_next_to_published_ones_of_their_version(tmp_path, capsys):
    out = write_results(tmp_path / "ours")
    names = ["VLM2Vec-V2.0-Qwen2VL-2B@v2.1", "UME-R1-2B"]
    assert main(["table", str(out), "--reference", *names, "--per-task"]) == 0
    printed = capsys.readouterr().out
    same = printed.split("## All 78 tasks: v2.1, pages fixed")[1].split("##")[0]
    assert "| ours (K=8, clean prompts) " in same
    assert "| VLM2Vec-V2.0-Qwen2VL-2B " in same
    assert "UME-R1" not in same
    with pytest.raises(ValueError, match="no published scores"):
        choose_references(["GPT"])


def test_results_of_mixed_conditions_make_no_column(tmp_path):
    out = write_results(tmp_path / "ours")
    assert results_column(out, TABLE).scores.keys() == {row.id for row in TABLE.rows}
    change(out, "GQA", ["condition", "latent_steps"], 4)
    with pytest.raises(ValueError, match="differ in latent_steps"):
        results_column(out, TABLE)
    change(out, "GQA", ["condition", "latent_steps"], 8)
    for file in out.glob("*.json"):
        change(out, file.stem, ["condition", "version"], "v2.0.0")
    with pytest.raises(ValueError, match=r"v2\.0\.0, the table is MMEB-v2 v2\.1"):
        results_column(out, TABLE)
    with pytest.raises(ValueError, match="no result"):
        results_column(tmp_path / "empty", TABLE)


def playground_results(folder):
    """Results of another table."""
    write_results(folder)
    for file in list(folder.glob("*.json"))[3:]:
        file.unlink()
    for number, file in enumerate(sorted(folder.glob("*.json"))):
        change(folder, file.stem, ["condition", "benchmark"], "playground")
        change(folder, file.stem, ["condition", "version"], "seed 0, 200 queries")
        change(folder, file.stem, ["task"], f"image-chain-test-h{number}")
    return folder


def test_results_of_another_table_say_to_pass_it(tmp_path, capsys):
    out = playground_results(tmp_path / "ours")
    with pytest.raises(ValueError, match=r"of playground seed 0.*Pass --table FILE.*WORLD/test/tasks\.json"):
        main(["table", str(out)])
    assert main(["doctor", str(out)]) == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("fault")
    assert "Pass --table FILE" in line


def test_failed_tasks_are_told_by_table_and_doctor(tmp_path, capsys):
    out = write_results(tmp_path / "ours")
    (out / "GQA.json").unlink()
    (out / "failed").mkdir()
    (out / "failed" / "GQA.json").write_text(json.dumps({"task": "GQA", "reason": "ValueError: no picture"}))
    assert main(["table", str(out), "--reference"]) == 0
    printed = capsys.readouterr().out
    assert "failed, so no mean includes them: GQA" in printed
    assert next(line for line in printed.splitlines() if line.startswith("| ours")).split("|")[-2].strip() == "-"
    assert main(["doctor", str(out)]) == 1
    assert "GQA: ValueError: no picture" in capsys.readouterr().out


# Doctor


def findings(path, level=None):
    return {(f.check, f.detail.split(":")[0]) for f in diagnose(path, TABLE) if level in (None, f.level)}


def test_a_clean_folder_has_no_fault(tmp_path, capsys):
    out = write_results(tmp_path / "ours")
    assert findings(out, "fault") == findings(out, "warning") == set()
    assert main(["doctor", str(out)]) == 0
    assert "all 78 tasks, each once" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("path", "value", "check"),
    [
        (["condition", "version"], "v2.0.0", "version"),
        (["condition", "page_labels"], "wrong", "page labels"),
        (["metric"], "accuracy", "metric"),
        (["condition", "latent_steps"], 4, "latent_steps"),
        (["condition", "prompt_set"], "official", "prompt_set"),
        (["condition", "checkpoint"], {"hash": "2"}, "checkpoint"),
        (["condition", "num_frames"], 4, "frames"),
        (["condition", "definition"], "other", "task"),
        (["condition", "dataset", "repo"], "VLM2Vec/ViDoSeek-page", "data"),
        (["n"], 1141, "queries"),
        (["num_candidates"], 5000, "candidates"),
        (["vectors", "document", "distinct"], 1, "vectors"),
    ],
)
def test_the_doctor_finds(tmp_path, capsys, path, value, check):
    out = write_results(tmp_path / "ours")
    change(out, "ViDoSeek-page", path, value)
    assert check in {name for name, _ in findings(out, "fault")}
    assert main(["doctor", str(out)]) == 1
    assert capsys.readouterr().out.startswith("fault")


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (["vectors", "query", "mean_cosine"], 0.995, "nearly collapsed"),
        (["vectors", "query", "distinct"], 10, "are distinct"),
        (["score"], 1.0, "exactly 100"),
    ],
)
def test_the_doctor_warns(tmp_path, path, value, words):
    out = write_results(tmp_path / "ours")
    change(out, "GQA", path, value)
    assert findings(out, "fault") == set()
    assert any(words in finding.detail for finding in diagnose(out, TABLE) if finding.level == "warning")


def test_the_doctor_finds_missing_unknown_and_doubled_tasks(tmp_path):
    out = write_results(tmp_path / "ours")
    (out / "GQA.json").rename(out / "copy-of-OK-VQA.json")
    change(out, "copy-of-OK-VQA", ["task"], "OK-VQA")
    change(out, "TextVQA", ["task"], "TextVQA-2")
    found = diagnose(out, TABLE)
    assert any(f.level == "warning" and "2 of 78 tasks are missing (GQA, TextVQA)" in f.detail for f in found)
    assert any(f.level == "fault" and f.detail == "tasks that are not in the table: TextVQA-2" for f in found)
    assert any(f.level == "fault" and f.detail == "tasks with two scores: OK-VQA" for f in found)


def test_the_doctor_recognises_published_scores_under_another_name(tmp_path):
    out = write_results(tmp_path / "ours", {**UME.scores})
    assert ("duplicates", "78 scores equal those published for UME-R1-2B (PLUME paper tables 7/8)") in findings(
        out, "fault"
    )


def vlm2vec_file(file, column, moment_rows=1602, fixed=False):
    """A score file in the layout that VLM2Vec releases."""
    metrics = {"image": {}, "video": {}, "visdoc": {}}
    for row in TABLE.rows:
        score = column.scores[row.id]
        if score is None:
            continue
        name = f"{row.id}-fixed" if fixed and row.id.endswith("-page") else row.id
        values = {"hit@1": score / 100, "ndcg_linear@5": score / 100, "ndcg_exponential@5": score / 100}
        metrics[row.modality][name] = {
            **values,
            "num_data": moment_rows if row.id == "MomentSeeker" else row.num_queries,
        }
    file.write_text(json.dumps({"metadata": {"model_name": column.model}, "metrics": metrics}))
    return file


def test_the_doctor_reads_the_vlm2vec_layout(tmp_path):
    old = vlm2vec_file(tmp_path / "old.json", V2, moment_rows=1800)
    checks = {name for name, _ in findings(old, "fault")}
    assert checks == {"page labels", "version"}
    column, _ = read_vlm2vec(old)
    assert means(column, TABLE.rows)["all"] == pytest.approx(58.022, abs=1e-3)
    new = vlm2vec_file(tmp_path / "new.json", reference("VLM2Vec-V2.0-Qwen2VL-2B", "v2.1"), fixed=True)
    assert findings(new, "fault") == set()
    assert ("page labels", "the page tasks are named -page-fixed") in findings(new, "ok")


def test_the_doctor_finds_a_file_that_is_mostly_another_models(tmp_path):
    """The released UME-R1 file: VLM2Vec-V2.0's with the video block replaced."""
    mixed = copy.copy(dict(V2.scores))
    mixed.update({row.id: UME.scores[row.id] for row in TABLE.rows if row.modality == "video"})
    file = vlm2vec_file(tmp_path / "ume.json", Column("UME-R1-Qwen2VL-2B", "v", "unknown", mixed))
    details = [f.detail for f in diagnose(file, TABLE) if f.check == "duplicates"]
    assert any("60 scores equal those published for VLM2Vec-V2.0-Qwen2VL-2B (v2.0.0)" in detail for detail in details)
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ValueError, match="VLM2Vec layout"):
        diagnose(tmp_path / "other.json", TABLE)


# Plots


def test_the_radar_leaves_out_the_changed_tasks_where_versions_differ(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "plume.evaluation.plots.means", lambda c, rows, without: seen.append(without) or means(c, rows, without)
    )
    radar([UME], TABLE, tmp_path / "one.png")
    radar([UME, PLUME], TABLE, tmp_path / "two.png")
    assert seen == [(), CHANGED, CHANGED]


def test_the_radar_draws_each_column_whatever_its_name(tmp_path, monkeypatch):
    drawn, plot = [], PolarAxes.plot

    def recorded(self, angles, heights, **options):
        drawn.append(heights)
        return plot(self, angles, heights, **options)

    monkeypatch.setattr(PolarAxes, "plot", recorded)
    half = replace(UME, scores={task: score / 2 for task, score in UME.scores.items()})
    radar([UME, half], TABLE, tmp_path / "radar.png")
    assert len(drawn) == 2
    assert drawn[1] == pytest.approx([height / 2 for height in drawn[0]])


def test_the_radar_leaves_out_incomplete_groups_and_says_so(tmp_path):
    holed = Column("holed", "v", "wrong", {**UME.scores, "GQA": None})
    assert radar([UME, holed], TABLE, tmp_path / "radar.png") == ["I-QA"]
    assert Image.open(tmp_path / "radar.png").size[0] > 600


def test_a_radar_that_cannot_be_drawn_says_what_to_pass(tmp_path):
    lacking = {task: score for task, score in UME.scores.items() if task in {r.id for r in TABLE.rows if r.group in ("I-QA", "V-QA")}}  # fmt: skip
    with pytest.raises(ValueError, match=r"I-CLS: mine;.*run --tasks I-CLS I-RET.*--reference without names"):
        radar([Column("mine", "v", "wrong", lacking)], TABLE, tmp_path / "none.png")
    few = Table(TABLE.meta, [row for row in TABLE.rows if row.group in ("I-QA", "V-QA")])
    with pytest.raises(ValueError, match=r"has I-QA, V-QA\. Drop --radar"):
        radar([UME], few, tmp_path / "none.png")
    with pytest.raises(ValueError, match="at most 6 models, there are 7"):
        radar([UME] * 7, TABLE, tmp_path / "none.png")


COSTS = {"text64": (28.0, 18.0), "image448": (60.0, 40.0)}  # of PLUME and of the single pass


def cost(system, kind, milliseconds):
    """A row of the benchmark's result."""
    cell = {"size": "2b", "device": "cpu", "dtype": "bf16", "batch": 2, "input": kind}
    return {"system": system, **cell, "ms_median": milliseconds}


def test_the_tradeoff_joins_scores_and_latencies(tmp_path, capsys):
    ours = write_results(tmp_path / "k8", {**UME.scores})
    single = write_results(tmp_path / "single", {**V2.scores})
    for row in TABLE.rows:
        change(single, row.id, ["condition", "latent_steps"], 0)
    costs = [cost(system, kind, ms) for kind, (plume, single) in COSTS.items() for system, ms in (("plume_k8", plume), ("single_pass", single))]  # fmt: skip
    costs += [cost("prepare", "text64", 4.0), cost("plume_k8", "video8", 9000.0)]
    (tmp_path / "costs.json").write_text(json.dumps({"rows": costs}))
    columns = [results_column(folder, TABLE) for folder in (ours, single)]
    points = measured_points(columns, TABLE, costs)
    assert [(p["name"], p["latency_ms"], round(p["score"], 2)) for p in points] == [
        ("plume_k8", pytest.approx((14 + 30) / 2 + 1), 60.12),  # two rows a batch; half of the cells know `prepare`
        ("single_pass", pytest.approx((9 + 20) / 2 + 1), 58.02),
    ]
    drawn = ["--radar", str(tmp_path / "r.png"), "--tradeoff", str(tmp_path / "t.png")]
    command = ["table", str(ours), str(single), "--reference", *drawn]
    assert main([*command, "--efficiency", str(tmp_path / "costs.json")]) == 0
    assert capsys.readouterr().out.count("drawn: ") == 2
    assert Image.open(tmp_path / "t.png").size[0] > 600
    with pytest.raises(ValueError, match="needs latencies"):
        main(command)
    (ours / "GQA.json").unlink()
    with pytest.raises(ValueError, match="cannot be placed"):
        measured_points([results_column(ours, TABLE)], TABLE, costs)
    with pytest.raises(ValueError, match="measured together"):
        measured_points(columns[:1], TABLE, costs[1:2])
    with pytest.raises(ValueError, match="positive latency"):
        tradeoff([], tmp_path / "none.png")

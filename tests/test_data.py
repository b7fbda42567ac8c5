"""Training rows: the UME-R1 format with its quirks, and what a check of a corpus reports."""

import json

import pytest
from corpus import write_corpus

from inputs import MEDIA

pytest.importorskip("datasets", reason="training needs the extra `train`")

from plume.training.collator import PairCollator
from plume.training.data import RowError, check, load_rows, parse_row
from plume.training.data.__main__ import main

DIRECTIVE = "Represent the above input text, images, videos, or any combination of the three as embeddings."


def side(value: str, reply: str = "<think>One. Two.</think><answer>three\n<gen_emb>", **media) -> dict:
    question = f"{value}\n<disc_emb>\n{DIRECTIVE}"
    return {**media, "conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": reply}]}


def row(**changes) -> dict:
    query = side("<image>\nFind me a picture: two dogs.", image="bus.png")
    return {
        "dataset_name": "MSCOCO",
        "qry": query,
        "pos": side("<image>\nRepresent the given image.", image=["boat.png"]),
        **changes,
    }


def test_a_row_is_read_with_its_unclosed_answer_and_without_its_marks():
    pair = parse_row(json.dumps(row()), MEDIA)
    assert pair.dataset == "MSCOCO"
    assert pair.query.text == "Find me a picture: two dogs."
    assert pair.query.images == (str(MEDIA / "bus.png"),)
    assert (pair.query.rationale, pair.query.answer) == ("One. Two.", "three")
    assert pair.target.images == (str(MEDIA / "boat.png"),)


def test_a_closed_answer_and_box_marks_are_kept_as_text():
    reply = "<think>One.</think><answer>A bus.\n<|begin_of_box|>bus<|end_of_box|></answer>\n<gen_emb>"
    answer = parse_row(row(qry=side("a", reply)), MEDIA).query.answer
    assert answer == "A bus.\n<|begin_of_box|>bus<|end_of_box|>"


def test_aliases_of_fields_roles_and_dataset_names():
    query = {
        "images": ["bus.png", "boat.png"],
        "messages": [
            {"role": "user", "content": "<image><image>\nboth"},
            {"role": "assistant", "content": "<think>x</think>"},
        ],
    }
    pair = parse_row({"source": "CIRR", "qry": query, "pos": side("a")}, MEDIA)
    assert (pair.dataset, len(pair.query.images), pair.query.text, pair.query.rationale) == ("CIRR", 2, "both", "x")


def test_videos_are_files_or_lists_of_frames():
    frames = parse_row(row(qry=side("<video>\na", videos=["bus.png", "boat.png"])), MEDIA).query
    assert frames.videos == ((str(MEDIA / "bus.png"), str(MEDIA / "boat.png")),)
    assert frames.content()["video"] == [[str(MEDIA / "bus.png"), str(MEDIA / "boat.png")]]
    file = parse_row(row(qry=side("<video>\na", video="rolling_ball.mp4")), MEDIA).query
    assert file.videos == (str(MEDIA / "rolling_ball.mp4"),)


def test_equal_targets_have_one_identity():
    first, second = (parse_row(row(), MEDIA).target.identity() for _ in range(2))
    other = parse_row(row(pos=side("something else")), MEDIA).target.identity()
    assert first == second != other
    assert 0 <= first < 2**63


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"pos": None}, "missing side"),
        ({"qry": side("<image>\na", image="absent.png")}, "missing media"),
        ({"qry": side("<image>\na", image="../make_media.py")}, "media outside the root"),
        ({"qry": side("<image>\na", image="/etc/passwd")}, "media outside the root"),
        ({"qry": side("<image><image>\na", image="bus.png")}, "miscounted media"),
        ({"qry": side("<image>\na", image=7)}, "unknown media"),
        ({"qry": side("")}, "empty side"),
        ({"qry": {"conversations": ["hello"]}}, "malformed row"),
        ({"qry": {"messages": [{"role": "user", "content": [{"type": "text"}]}]}}, "malformed row"),
        ({"neg": [side("<image>\na", image="absent.png")]}, "missing media"),
    ],
)
def test_unusable_rows_name_their_fault(changes, kind):
    with pytest.raises(RowError) as error:
        parse_row(row(**changes), MEDIA)
    assert error.value.kind == kind


@pytest.fixture
def files(tmp_path):
    """A JSON and a JSONL file with six rows, three of them bad."""
    broken = MEDIA / "bus.png"
    (tmp_path / "cut.png").write_bytes(broken.read_bytes()[:60])
    (tmp_path / "bus.png").write_bytes(broken.read_bytes())
    good = row(qry=side("<image>\na", image="bus.png"), pos=side("b"))
    silent = row(qry=side("c", "<answer>no thought\n<gen_emb>"), pos=side("b"))
    bad = [row(qry=side("<image>\na", image=name), pos=side("b")) for name in ("absent.png", "cut.png")]
    (tmp_path / "a.json").write_text(json.dumps([good, silent, *bad]))
    (tmp_path / "b.jsonl").write_text(
        "\n".join(json.dumps(r) for r in [row(pos=None), {**good, "dataset_name": "VOC"}]) + "\n\n"
    )
    return tmp_path


def test_a_check_counts_datasets_and_problems_and_finds_the_usable_rows(files, processor):
    rows = load_rows([str(files / "a.json"), str(files / "b.jsonl")])
    report, usable = check(rows, str(files), collate=PairCollator(processor, str(files)))
    assert (report.rows, report.usable, usable) == (6, 3, [0, 1, 5])
    assert report.datasets == {"MSCOCO": 2, "VOC": 1}
    assert report.problems == {
        "no rationale (usable)": 1, "missing media": 1, "cannot be encoded": 1, "missing side": 1
    }  # fmt: skip
    assert report.examples["missing side"][0].startswith(str(files / "b.jsonl") + ":1: ")
    assert check(rows, str(files))[0].usable == 4, "without the processor the broken picture is not noticed"


def test_the_check_is_a_command(files, capsys):
    report = files / "out.json"
    with pytest.raises(SystemExit) as left:
        main(["check", str(files / "a.json"), "--media_root", str(files), "--report", str(report)])
    assert left.value.code == 1
    assert json.loads(report.read_text())["problems"]["missing media"] == 1
    assert json.loads(capsys.readouterr().out)["usable"] == 3


def test_streamed_rows_are_the_same_rows(tmp_path):
    file = str(write_corpus(tmp_path / "c", rows=7))
    assert list(load_rows([file], streaming=True)) == list(load_rows([file]))


def test_rows_that_are_no_objects_are_unusable(tmp_path):
    (tmp_path / "a.jsonl").write_text("\ufeff" + json.dumps(row(qry=side("a"), pos=side("b"))) + "\n")
    assert check(load_rows([str(tmp_path / "a.jsonl")]))[0].usable == 1, "a byte order mark is no fault"
    (tmp_path / "b.jsonl").write_text(json.dumps({"qry": None}) + "\n[1]\n7\nnull\n")
    assert check(load_rows([str(tmp_path / "b.jsonl")]))[0].usable == 0


def test_missing_and_empty_files_are_refused(tmp_path):
    for name in ("absent.jsonl", "absent.csv", "absent.parquet"):
        with pytest.raises(ValueError, match="does not exist"):
            load_rows([name])
    (tmp_path / "a.xlsx").touch()
    with pytest.raises(ValueError, match=r"none of the endings that are read: \.jsonl"):
        load_rows([str(tmp_path / "a.xlsx")])
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="hold no rows"):
        load_rows([str(tmp_path / "empty.jsonl")])

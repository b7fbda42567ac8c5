"""The same rows in every format are the same tensors, and rows that cannot be read are named by file, line and reason."""

import datetime
import io
import json
from pathlib import Path

import datasets
import pandas
import pytest
import torch
from corpus import make_trainer
from PIL import Image
from transformers.testing_utils import CaptureLogger
from transformers.utils import logging

from inputs import noise_image
from plume.hub.random_checkpoint import save_random_plume

pytest.importorskip("trl", reason="training needs the extra `train`")

from plume.training.collator import PairCollator
from plume.training.data import RowError, check, load_rows, parse_columns, parse_row
from plume.training.data.__main__ import main

PLAIN = ["query", "positive", "negative_1", "negative_2", "rationale_query", "rationale_positive", "dataset"]
SCORED = [*PLAIN, "teacher_scores"]


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> tuple[Path, list[dict]]:
    """20 rows of texts and pictures, with none, one or two negatives, and scores; pictures are PNG and JPEG files."""
    folder, table = tmp_path_factory.mktemp("rows"), []
    for index in range(20):
        name = f"picture {index}.png" if index % 2 else f"picture-{index}.jpg"
        noise_image(index).save(folder / name)
        table.append({
            "query": f"caption {index}, \"quoted\"\nand é 🙂", "positive": name,
            "negative_1": "picture-0.jpg" if index % 3 else None, "negative_2": "no file.png here" if index % 3 == 2 else None,
            "rationale_query": "One. Two." if index % 2 else None, "rationale_positive": "Three." if index % 2 else None,
            "dataset": "even" if index % 2 else "odd", "teacher_scores": [2.5, 0.25 * index, -1.0][: 1 + index % 3],
        })  # fmt: skip
    return folder, table


def embedded(folder: Path, table: list[dict], kind: str) -> list[dict]:
    """The rows with pictures inside them."""

    def value(cell):
        if not (isinstance(cell, str) and (folder / cell).is_file()):
            return cell
        content = (folder / cell).read_bytes()
        return {"bytes": content, "path": None} if kind == "struct" else content

    return [{key: value(cell) for key, cell in row.items()} for row in table]


def in_image_columns(folder: Path, table: list[dict]) -> datasets.Dataset:
    """A dataset with PIL pictures in Image features, and a date that no one uses."""

    def picture(name):
        # A copy, which knows no file format: `datasets` would write a JPEG anew, with a loss of its own.
        return name and Image.open(io.BytesIO((folder / name).read_bytes())).copy()

    pictures = [{name: picture(row[name]) for name in ("positive", "negative_1")} for row in table]
    filled = [{**row, **held, "when": datetime.date(2020, 1, 1)} for row, held in zip(table, pictures, strict=True)]
    kinds = {name: datasets.Value("string") for name in PLAIN} | {"when": datasets.Value("date32")}
    kinds |= {"positive": datasets.Image(), "negative_1": datasets.Image()}
    kinds |= {"teacher_scores": datasets.Sequence(datasets.Value("float64"))}
    return datasets.Dataset.from_list(filled, features=datasets.Features(kinds))


def write(folder: Path, table: list[dict], out: Path, form: str) -> str:
    """A file of a form; its name."""
    frame, file = pandas.DataFrame(table, columns=SCORED), out / f"rows.{form.split('-')[0]}"
    if form == "jsonl":
        file.write_text("\n".join(json.dumps({k: v for k, v in row.items() if v}) for row in table), "utf-8")
    elif form == "json-uris":
        file.write_text(
            json.dumps([{**row, "query": {"text": row["query"]}, "positive": [row["positive"]]} for row in table])
        )
    elif form in ("csv", "tsv"):
        frame.to_csv(file, index=False, sep="\t" if form == "tsv" else ",")
    elif form == "csv-bom":
        frame.to_csv(file, index=False, encoding="utf-8-sig", lineterminator="\r\n")
    elif form == "parquet":
        frame.to_parquet(file)
    elif form in ("parquet-bytes", "parquet-struct"):
        pandas.DataFrame(embedded(folder, table, form.removeprefix("parquet-"))).to_parquet(file)
    elif form == "parquet-image":
        in_image_columns(folder, table).to_parquet(str(file))
    elif form in ("arrow", "disk"):
        in_image_columns(folder, table).save_to_disk(out / "disk")
        file = next((out / "disk").glob("*.arrow")) if form == "arrow" else out / "disk"
    return str(file)


FORMS = [
    "json-uris",
    "csv",
    "csv-bom",
    "tsv",
    "parquet",
    "parquet-bytes",
    "parquet-struct",
    "parquet-image",
    "arrow",
    "disk",
]


def collated(processor, folder, loaded) -> dict:
    return PairCollator(processor, str(folder), num_negatives=2)(list(loaded))


@pytest.fixture(scope="module")
def reference(processor, rows, tmp_path_factory) -> dict:
    folder, table = rows
    return collated(processor, folder, load_rows([write(folder, table, tmp_path_factory.mktemp("jsonl"), "jsonl")]))


def assert_same(batch: dict, reference: dict) -> None:
    assert batch["prefix"].keys() == reference["prefix"].keys()
    for name, tensor in reference["prefix"].items():
        assert torch.equal(batch["prefix"][name], tensor), name
    assert batch["texts"].rows == reference["texts"].rows
    torch.testing.assert_close(batch["teacher_scores"], reference["teacher_scores"], rtol=0, atol=0, equal_nan=True)
    assert batch["texts"].num_media == reference["texts"].num_media
    same = [ids[:, None] == ids[None] for ids in (batch["candidate_ids"], reference["candidate_ids"])]
    assert torch.equal(*same), "other candidates count as equal"


@pytest.mark.parametrize("streaming", [False, True], ids=["loaded", "streamed"])
@pytest.mark.parametrize("form", FORMS)
def test_every_format_reads_the_same_rows_to_the_same_tensors(processor, rows, reference, tmp_path, form, streaming):
    folder, table = rows
    found = load_rows([write(folder, table, tmp_path, form)], streaming)
    assert [row["dataset"] for row in found] == [row["dataset"] for row in table]
    assert_same(collated(processor, folder, found), reference)


def test_columns_are_renamed(processor, rows, reference, tmp_path):
    folder, table = rows
    other = [{"caption": row.pop("query"), "photo": row.pop("positive"), **row} for row in map(dict, table)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, other)))
    columns = parse_columns(["query=caption", "positive=photo"])
    assert_same(collated(processor, folder, load_rows([str(tmp_path / "rows.jsonl")], columns=columns)), reference)
    with pytest.raises(ValueError, match="renames nothing"):
        parse_columns(["caption"])
    with pytest.raises(RowError, match=r"no query or anchor; its columns are caption, photo.* --column query=NAME"):
        parse_row({**other[0]}, folder)


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ({"negative": ["c", "d"], "teacher_scores": [3, 2, 1]}, (3.0, 2.0, 1.0)),
        ({"negative_1": "c", "negative_2": None, "scores": [3, 2]}, (3.0, 2.0)),
        ({"negative": "c", "score": 0.7}, ()),  # of the pair: it ranks nothing
        ({"negative": "c", "teacher_scores": []}, ()),
    ],
)
def test_a_teacher_s_scores_stand_for_positive_and_negatives(row, found):
    assert parse_row({"query": "a", "positive": "b", **row}).scores == found


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([1, 2], "holds 2 numbers for a positive and 2 negatives. Give one for each"),
        ([1, 2, "three"], "something else than finite numbers"),
        ([1, 2, float("nan")], "something else than finite numbers"),
        ([1, 2, True], "something else than finite numbers"),
    ],
)
def test_scores_that_rank_nothing_are_refused(scores, message):
    for row in ({"query": "a", "positive": "b", "negative": ["c", "d"]}, as_conversations("a", "b", "c", "d")):
        with pytest.raises(RowError, match=message):
            parse_row({**row, "teacher_scores": scores})


def as_conversations(query: str, positive: str, *negatives: str) -> dict:
    """A row in the UME-R1 format."""

    def side(text: str) -> dict:
        return {"conversations": [{"from": "human", "value": text}]}

    return {"qry": side(query), "pos": side(positive), "neg": [side(text) for text in negatives]}


def test_a_negative_has_a_rationale_of_its_own_column():
    row = {"query": "a", "positive": "b", "negative_1": "c", "negative_2": "d", "rationale_negative_2": "It is d."}
    assert [side.rationale for side in parse_row(row).negatives] == ["", "It is d."]


def test_the_names_of_sentence_transformers_mean_the_same(tmp_path):
    noise_image(1).save(tmp_path / "a.png")
    pair = parse_row({"anchor": "a", "document": {"text": "b", "image": ["a.png"]}, "negative": ["c", "d"]}, tmp_path)
    assert (pair.query.text, pair.target.text, pair.target.images) == ("a", "b", (str(tmp_path / "a.png"),))
    assert [side.text for side in pair.negatives] == ["c", "d"]
    several = parse_row({"query": ["a.png", "a.png", "both"], "positive": "b", "negative_1": ["c", "a.png"]}, tmp_path)
    assert (len(several.query.images), several.query.text, len(several.negatives)) == (2, "both", 1)
    assert parse_row({"query": "see a.png", "positive": 7}, tmp_path).query.text == "see a.png"


def test_an_embedded_clip_is_the_clip_of_its_file(processor, tmp_path):
    clip = Path(__file__).parents[1] / "examples" / "media" / "rolling_ball.mp4"
    pandas.DataFrame([{"query": "a ball", "positive": clip.read_bytes()}]).to_parquet(tmp_path / "a.parquet")
    (tmp_path / "a.jsonl").write_text(json.dumps({"query": "a ball", "positive": clip.name}))
    batches = [collated(processor, clip.parent, load_rows([str(tmp_path / f"a.{e}")])) for e in ("parquet", "jsonl")]
    assert "pixel_values_videos" in batches[0]["prefix"]
    assert_same(*batches)


BAD_LINES = {
    "half an emoji": (b'{"query": "\\ud83d", "positive": "b"}', "half a character"),
    "Latin-1": (b'{"query": "caf\xe9", "positive": "b"}', "byte 0xe9 is no UTF-8"),
    "NUL": (b'{"query": "a\0", "positive": "b"}', "NUL bytes"),
    "escaped NUL": (b'{"query": "a\\u0000", "positive": "b"}', "character NUL"),
    "deep": (b"[" * 100_000, "nested too deeply"),
    "cut": (b'{"query": "a", ', "is no JSON"),
    "long name": (json.dumps({"query": "a", "positive": "x" * 300 + ".png"}).encode(), "no usable path"),
    "loop": (b'{"query": "a", "positive": "loop.png"}', "no usable path|is not in the media root"),
    "huge number": (b'{"query": ' + b"1" * 5000 + b', "positive": "b"}', "is no JSON"),
    "turns": (
        b'{"qry": {"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}, "pos": {}}',
        "another turn of 'user'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("bad", BAD_LINES)
def test_a_bad_line_is_named_and_the_others_are_read(tmp_path, bad):
    line, reason = BAD_LINES[bad]
    (tmp_path / "loop.png").symlink_to("loop.png")
    good = b'{"query": "a", "positive": "b"}'
    (tmp_path / "rows.jsonl").write_bytes(b"\n".join([good, b"", line, good]))
    report, usable = check(load_rows([str(tmp_path / "rows.jsonl")]), str(tmp_path))
    assert (report.rows, usable) == (3, [0, 2])
    problem = next(kind for kind in report.problems if "usable" not in kind)
    assert report.problems[problem] == 1
    assert report.examples[problem][0].startswith(f"{tmp_path / 'rows.jsonl'}:3: ")
    assert any(part in report.examples[problem][0] for part in reason.split("|"))


@pytest.mark.parametrize(
    ("name", "content", "place", "reason"),
    [
        ("a.csv", b"query,positive\nx,y\ncaf\xe9,y\nx,y,z\n", "a.csv:3", "byte 0xe9"),
        ("b.csv", b"query,positive\nx,y\nx,y,z\n", "b.csv:3", "it has 3 cells, the header has 2"),
        ("c.csv", b"caf\xe9,positive\nx,y\n", "c.csv:1", "byte 0xe9"),
        ("d.csv", "query,positive\nx,y\n".encode("utf-16"), "d.csv:1", "UTF-16"),
        ("e.jsonl", '{"query": "x", "positive": "y"}\n'.encode("utf-16"), "e.jsonl:1", "UTF-16"),
        ("f.json", b'[{"query": "caf\xe9"}]', "f.json:1", "byte 0xe9"),
        ("g.json", b'{"query": "a"}', "g.json", "Rename a file of one row a line to .jsonl"),
        ("h.parquet", b"PAR1 and then nothing", "h.parquet:1", "the table cannot be read"),
    ],
)
def test_a_bad_file_is_named_with_line_and_reason(tmp_path, name, content, place, reason):
    (tmp_path / name).write_bytes(content)
    report, _ = check(load_rows([str(tmp_path / name)]), str(tmp_path))
    examples = [text for kind, texts in report.examples.items() for text in texts]
    assert examples[0].startswith(f"{tmp_path / place}: ")
    assert reason in examples[0]


def test_values_of_a_table_that_are_neither_text_nor_media_are_named(rows, tmp_path):
    frame = pandas.DataFrame([{"query": "a", "positive": datetime.date(2020, 1, 1)}, {"query": "a", "positive": None}])
    frame.to_parquet(tmp_path / "a.parquet")
    pandas.DataFrame([{"query": "a", "positive": b"no picture"}]).to_parquet(tmp_path / "b.parquet")
    report, usable = check(load_rows([str(tmp_path / "a.parquet"), str(tmp_path / "b.parquet")]))
    assert (usable, report.problems) == ([], {"unknown value": 2, "missing side": 1})
    assert "date is neither a text nor media" in report.examples["unknown value"][0]
    assert "10 bytes that are neither a picture nor a clip" in report.examples["unknown value"][1]


def test_the_run_says_file_line_and_reason(processor, tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(b'{"query": "caf\xe9"}')
    with pytest.raises(ValueError, match=r"rows\.jsonl:1 cannot be trained on: byte 0xe9 is no UTF-8.*--skip_bad_rows"):
        PairCollator(processor)([load_rows([str(tmp_path / "rows.jsonl")])[0]])


def test_a_check_runs_the_processor_as_the_run_would(checkpoint, tmp_path, capsys):
    Image.new("RGB", (9000, 30)).save(tmp_path / "banner.png")  # it opens, but cannot be cut into patches
    (tmp_path / "rows.csv").write_text("query,positive\na,banner.png\na,b\n")
    flags = ["check", str(tmp_path / "rows.csv"), "--media_root", str(tmp_path)]
    for more, problems in (([], {}), (["--decode", "--model_name_or_path", str(checkpoint)], {"cannot be encoded": 1})):
        with pytest.raises(SystemExit) as left:
            main([*flags, *more])
        report = json.loads(capsys.readouterr().out)
        assert {kind: n for kind, n in report["problems"].items() if "usable" not in kind} == problems
        assert left.value.code == bool(problems)
    with pytest.raises(SystemExit):
        main([*flags, "--decode"])
    assert "--decode runs a checkpoint's processor" in capsys.readouterr().err


@pytest.mark.slow
def test_unequal_numbers_of_negatives_train_and_absent_ones_do_not_count(tmp_path):
    """A pair without negatives next to one with two: the loss is that of the candidates that exist."""
    save_random_plume(tmp_path / "model", num_latent_steps=2, max_latent_steps=8)
    table = [{"query": "a", "positive": "b"}, {"query": "c", "positive": "d", "negative_1": "e", "negative_2": "f"},
             {"query": "g", "positive": "h", "negative": "i"}, {"query": "j", "positive": "k"}]  # fmt: skip
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, table)))
    options = {"per_device_train_batch_size": 4, "expert_dropout": 0.0, "stage_weights": [0, 1], "temperature": 0.5}
    trainer = make_trainer(tmp_path, tmp_path / "out", num_negatives=2, **options)
    batch = trainer.data_collator(list(trainer.train_dataset))
    assert (batch["candidate_ids"] < 0).tolist() == [False] * 4 + [True, True, False, False, False, True, True, True]
    trainer.model.eval()
    with torch.no_grad():
        _, output = trainer.compute_loss(trainer.model, batch, return_outputs=True)
    embeddings = output.embeddings
    logits = embeddings[:4] @ embeddings[4:].T / 0.5
    expected = torch.nn.functional.cross_entropy(logits, torch.arange(4))
    expected = (expected + torch.nn.functional.cross_entropy(logits[:, :4].T, torch.arange(4))) / 2
    assert trainer._metrics["eval"]["loss_embedding"][-1] == pytest.approx(expected.item(), abs=1e-5)
    whole = trainer.train().training_loss
    chunked = make_trainer(tmp_path, tmp_path / "out", num_negatives=2, chunk_size=3, **options).train().training_loss
    assert chunked == pytest.approx(whole, rel=1e-4)


@pytest.mark.parametrize("streaming", [False, True], ids=["loaded", "streamed"])
def test_a_dataset_is_named_with_its_config_and_split(tmp_path, streaming):
    """As on the Hub: a folder whose card declares two configs, one of them with two splits."""
    card = """---
configs:
- config_name: easy
  data_files: easy.jsonl
- config_name: hard
  data_files:
  - {split: train, path: hard-train.jsonl}
  - {split: dev, path: hard-dev.jsonl}
---
"""
    (tmp_path / "README.md").write_text(card)
    for name in ("easy", "hard-train", "hard-dev"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"query": name, "positive": "b"}))
    for source, query in ((":easy", "easy"), (":hard", "hard-train"), (":hard:dev", "hard-dev")):
        (row,) = load_rows([f"{tmp_path}{source}"], streaming)
        assert parse_row(row["row"]).query.text == query
        assert row["place"] == f"{tmp_path}{source}:1"


def test_columns_that_are_not_used_are_named(tmp_path):
    (tmp_path / "rows.csv").write_text(
        'query,positive,score,negative_1,rationale_negative_1,scores\na,b,0.3,c,It is c.,"[1, 2]"\n'
    )
    with CaptureLogger(logging.get_logger("plume.training.data")) as captured:
        load_rows([str(tmp_path / "rows.csv")])
    assert "Columns that training does not use: score." in captured.out

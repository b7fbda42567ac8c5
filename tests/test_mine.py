"""Mined hard negatives: the closest other positives, in rows that training reads."""

import json
from pathlib import Path

import numpy as np
import pytest
from corpus import write_corpus

from inputs import noise_image
from plume.hub.random_checkpoint import save_random_plume

pytest.importorskip("datasets", reason="training data need the extra `train`")
pytest.importorskip("sentence_transformers", reason="mining needs the extra `train`")

from plume.training.data import Pair, Side, load_rows, parse_row, read_all
from plume.training.mine import main
from plume.training.mining import KnownVectors, mine, name_of


def known(**angles: float) -> KnownVectors:
    """Items by name, as unit vectors at some degrees."""
    turned = np.radians(list(angles.values()))
    vectors = np.stack([np.cos(turned), np.sin(turned)], axis=1).astype(np.float32)
    return KnownVectors({name_of(Side(name)): vector for name, vector in zip(angles, vectors, strict=True)})


def pairs(*sides: tuple[str, str]) -> list[Pair]:
    return [Pair("a", Side(query), Side(positive)) for query, positive in sides]


def mined(rows: list[Pair], vectors: KnownVectors, **options) -> list[list[str]]:
    """Texts of the negatives of each row."""
    settings = {"num_negatives": 2, "relative_margin": 0.0, "range_min": 0, **options}
    found, texts = mine(rows, vectors, **settings), {name_of(pair.target): pair.target.text for pair in rows}
    return [[texts[name] for name in found.get((name_of(p.query), name_of(p.target)), [])] for p in rows]


VECTORS = known(q=0, near=10, next=20, far=40, farther=60)
ROWS = pairs(("q", "near"), ("far", "next"), ("next", "far"), ("farther", "farther"))


def test_negatives_are_the_closest_other_positives_hardest_first():
    assert mined(ROWS, VECTORS)[0] == ["next", "far"]
    assert mined(ROWS, VECTORS, num_negatives=3)[0] == ["next", "far", "farther"]
    assert mined(ROWS, VECTORS, range_min=1)[0] == ["far", "farther"]


def test_a_candidate_that_may_be_a_positive_is_not_taken():
    """cos 20 is within 5 % of cos 10, cos 40 is not; what is closer than the positive is never taken."""
    assert mined(ROWS, VECTORS, relative_margin=0.05)[0] == ["far", "farther"]
    assert mined(pairs(("q", "far"), ("far", "near"), ("next", "farther")), VECTORS)[0] == ["farther"]


def test_a_model_that_does_not_know_the_data_finds_negatives_too():
    """A hundred candidates are closer than the positive, and any of them may be a positive."""
    above = {f"above {place}": 0.1 * place for place in range(100)}
    vectors = known(q=0, positive=30, below=40, **above)
    rows = pairs(("q", "positive"), ("below", "below"), *((name, name) for name in above))
    assert mined(rows, vectors, num_negatives=1)[0] == ["below"]


def test_all_positives_of_a_query_are_positives():
    rows = pairs(("q", "near"), ("q", "next"), ("far", "far"))
    assert mined(rows, VECTORS)[:2] == [["far"], ["far"]]


def test_a_row_without_candidates_gets_none():
    assert mined(pairs(("q", "near")), VECTORS) == [[]]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_random_plume(folder, num_latent_steps=2, max_latent_steps=8)
    return folder


def run(model: Path, pairs: Path, output: Path, *more: str) -> list[dict]:
    assert main([str(model), str(pairs), "--output", str(output), "--relative-margin", "-9", *more]) == 0
    return [json.loads(line) for line in output.read_text().splitlines()]


def test_rows_keep_their_order_and_get_values_of_other_rows(model, tmp_path, capsys):
    table = []
    for index in range(6):
        noise_image(index).save(tmp_path / f"{index}.png")
        table.append(
            {"query": f"noise {index}", "positive": {"text": "a", "image": f"{index}.png"}, "dataset": "ab"[index % 2]}
        )
        table[-1] |= {"rationale_query": "One.", "rationale_positive": f"It is {index}."}
    table[0]["negative_1"] = "mine"
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, table)))
    found = run(model, tmp_path / "pairs.jsonl", tmp_path / "out" / "mined.jsonl", "--num-negatives", "3")
    assert [{key: row[key] for key in before} for row, before in zip(found, table, strict=True)] == table
    for index, row in enumerate(found):
        numbers = [
            number for number in range(1, 6) if f"negative_{number}" in row and row[f"negative_{number}"] != "mine"
        ]
        others = [other for other in table if other["dataset"] == row["dataset"] and other is not table[index]]
        assert numbers == ([2, 3] if index == 0 else [1, 2]), "three rows of a dataset: two others"
        assert sorted(row[f"rationale_negative_{n}"] for n in numbers) == sorted(
            o["rationale_positive"] for o in others
        )
        assert all(row[f"negative_{number}"] in [other["positive"] for other in others] for number in numbers)
    said = capsys.readouterr().out
    assert "6 rows, 6 of them with mined negatives, 2.0 on average" in said
    assert f"train with --media-root {tmp_path}" in said
    pair = parse_row(found[0], tmp_path)
    assert pair.negatives[1] in [parse_row(row, tmp_path).target for row in table]


def test_conversations_get_conversations(model, tmp_path):
    file = write_corpus(tmp_path, rows=12)
    found = run(model, file, tmp_path / "mined.jsonl", "--media-root", str(tmp_path / "media"), "--num-negatives", "2")
    positives = [row["pos"] for row in found]
    assert all(len(row["neg"]) == 2 and all(negative in positives for negative in row["neg"]) for row in found)
    pairs = read_all(load_rows([str(tmp_path / "mined.jsonl")]), str(tmp_path / "media"))
    assert all(pair.negatives[0].rationale for pair in pairs)
    again = run(model, tmp_path / "mined.jsonl", tmp_path / "again.jsonl", "--media-root", str(tmp_path / "media"), "--num-negatives", "2")  # fmt: skip
    assert again == found, "what a row has already is not added once more"


@pytest.mark.parametrize(
    ("rows", "output", "match"),
    [
        ([{"query": "a", "positive": "b"}], "pairs.jsonl", "is one of the inputs"),
        ([{"query": "a", "positive": "b"}], "out.csv", "let its name end in .jsonl"),
        ([{"query": "a", "positive": "absent.png"}], "out.jsonl", r"pairs.jsonl:1 is unusable: .*absent.png"),
        (
            [{"query": "a", "positive": "b", "negative": "c", "scores": [1, 2]}, {"query": "d", "positive": "e"}],
            "out.jsonl",
            "mine first, then score",
        ),
        (
            [{"query": "a", "positive": "b"}, {side: {"messages": [{"role": "user", "content": side}]} for side in ("qry", "pos")}],
            "out.jsonl",
            "mine each file by itself",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_mined_is_refused(model, tmp_path, rows, output, match):
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    before = (tmp_path / "pairs.jsonl").read_text()
    with pytest.raises(ValueError, match=match):
        run(model, tmp_path / "pairs.jsonl", tmp_path / output)
    assert (tmp_path / "pairs.jsonl").read_text() == before
    assert not (tmp_path / "out.jsonl").exists()

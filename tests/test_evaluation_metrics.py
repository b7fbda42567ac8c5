"""The numbers: metric pins, random rankings against a reference of twelve lines, ties, NaN, and all 78 tasks end to end."""

import hashlib
import math

import numpy as np
import pytest
import torch
from evaluation_world import write_world
from mteb._evaluators.retrieval_metrics import calculate_retrieval_scores

from plume.evaluation.encoder import PlumeEncoder
from plume.evaluation.parsers.common import Item, Parsed
from plume.evaluation.runner import evaluate, run_task
from plume.evaluation.table import read_table, select
from plume.evaluation.tasks import lay_out, make_task

TABLE = read_table()


def reference(ranking: list, grades: dict, exponential: bool = False) -> tuple[float, float]:
    """hit@1 and nDCG@5 of one ranking, in plain words."""

    def gain(grade: int) -> int:
        return 2**grade - 1 if exponential else grade

    def discounted(values: list) -> float:
        return sum(gain(value) / math.log2(place + 2) for place, value in enumerate(values[:5]))

    ideal = discounted(sorted(grades.values(), reverse=True))
    ndcg = discounted([grades.get(document, 0) for document in ranking]) / ideal if ideal else 0.0
    return float(ranking[0] in grades), ndcg


def mteb_scores(scores: dict, grades: dict) -> tuple[float, float]:
    """hit@1 and nDCG@5 as mteb computes them for one query."""
    return all_mteb_scores({"q": scores}, {"q": grades})["q"]


def all_mteb_scores(scores: dict, grades: dict) -> dict:
    found = calculate_retrieval_scores(scores, grades, [1, 5, 10]).all_scores
    return {query: (values["success_1"], values["ndcg_cut_5"]) for query, values in found.items()}


def ranked(ranking: list) -> dict:
    return {document: 1.0 - 0.01 * place for place, document in enumerate(ranking)}


class Toy:
    """Random unit vectors that depend on text and pixels alone; counts what it embeds."""

    condition = {"latent_steps": 0}

    def __init__(self, dim: int = 16):
        self.dim, self.seen = dim, 0

    def vector(self, item) -> np.ndarray:
        media = [item["image"]] if "image" in item else item.get("video", [])
        told = item.get("text", "").encode() + b"".join(picture.convert("RGB").tobytes() for picture in media)
        seed = int.from_bytes(hashlib.blake2b(told, digest_size=8).digest(), "big")
        vector = np.random.default_rng(seed).normal(size=self.dim)
        return vector / np.linalg.norm(vector)

    def encode(self, inputs, role):
        self.seen += len(inputs)
        return torch.tensor(np.stack([self.vector(item) for item in inputs]), dtype=torch.float32)


class Constant(Toy):
    def vector(self, item):
        return np.ones(self.dim) / self.dim**0.5


class Broken(Toy):
    def encode(self, inputs, role):
        vectors = super().encode(inputs, role)
        vectors[-1, 0] = float("nan") if role == "document" else 0.0
        return vectors


def text_task(row, parsed):
    """A task of texts alone, in place of the row's data."""
    task = make_task(row, ".")
    task.dataset, task.data_loaded = {"default": {row.dataset["split"]: lay_out(row, parsed)}}, True
    return task


def text_rows(pool: str, metric: str):
    row = next(r for r in TABLE.rows if r.id == "N24News")
    sides = {name: type(row.query)("text") for name in ("query", "candidate")}
    return type(row)(**{**vars(row), **sides, "pool": pool, "metric": metric})


def parsed_texts(queries: int, pool: int, graded: bool = False, local: bool = True, seed: int = 0) -> Parsed:
    """Queries whose positive is the first of their pool, as in every image task of MMEB."""
    rng, parsed = np.random.default_rng(seed), Parsed()
    for index in range(queries):
        keys = [f"document {i}" for i in rng.choice(4 * pool, pool, replace=False)]
        grades = {key: int(rng.integers(1, 4)) for key in keys[: rng.integers(1, 7)]} if graded else {keys[0]: 1}
        parsed.add(Item(f"query {index}"), list(grades), {key: Item(key) for key in keys}, local=local)
        parsed.relevant[-1] = grades
    return parsed


# Pins


def test_pin_1_binary():
    expected = (1 / math.log2(3) + 1 / math.log2(6)) / (1 + 1 / math.log2(3))
    ranking, grades = ["d3", "d1", "d2", "d5", "d4"], {"d1": 1, "d4": 1}
    assert expected == pytest.approx(0.62405, abs=1e-5)
    assert reference(ranking, grades) == (0.0, pytest.approx(expected))
    assert mteb_scores(ranked(ranking), grades) == (0.0, pytest.approx(expected, abs=1e-5))


def test_pin_2_graded_with_a_relevant_document_that_is_not_found():
    ranking, grades = ["a", "b", "c", "d", "e"], {"b": 3, "d": 1, "f": 2}
    expected = (3 / math.log2(3) + 1 / math.log2(5)) / (3 + 2 / math.log2(3) + 1 / math.log2(4))
    assert expected == pytest.approx(0.48793, abs=1e-5)
    assert reference(ranking, grades)[1] == pytest.approx(expected)
    assert reference(ranking, grades, exponential=True)[1] == pytest.approx(0.51605, abs=1e-5)
    assert mteb_scores(ranked(ranking), grades)[1] == pytest.approx(expected, abs=1e-5)


def test_pin_3_vlm2vec_pairs_grades_with_other_documents():
    ranking, labels, grades = [32, 31, 33], [31, 32, 33], [2, 3, 2]
    right = dict(zip(labels, grades, strict=True))
    scrambled = dict(zip(list(set(labels)), grades, strict=True))  # its evaluate() does this
    assert reference(ranking, right)[1] == pytest.approx(1.0)
    ideal = sum(grade / math.log2(place + 2) for place, grade in enumerate(sorted(grades, reverse=True)))
    gained = sum(scrambled[d] / math.log2(place + 2) for place, d in enumerate(ranking))
    assert gained / ideal == pytest.approx(0.90498, abs=1e-5)
    as_text = {str(document): grade for document, grade in right.items()}
    assert mteb_scores(ranked([str(d) for d in ranking]), as_text)[1] == pytest.approx(1.0, abs=1e-5)


def test_pin_4_the_ideal_is_cut_at_five():
    ranking = [f"d{i}" for i in range(8)]
    grades = dict.fromkeys(ranking, 1)
    assert reference(ranking, grades) == (1.0, pytest.approx(1.0))
    assert mteb_scores(ranked(ranking), grades) == (1.0, pytest.approx(1.0))


def test_pin_5_one_grade_everywhere_is_the_same_linear_and_exponential():
    ranking, grades = ["a", "b", "c", "d", "e"], {"b": 2, "d": 2}
    linear, exponential = (reference(ranking, grades, exponential=e)[1] for e in (False, True))
    assert linear == exponential == pytest.approx(0.65092, abs=1e-5)
    assert mteb_scores(ranked(ranking), grades)[1] == pytest.approx(0.65092, abs=1e-5)


def test_pin_6_equal_scores_do_not_favour_the_first_candidate():
    pool = [f"d{i}" for i in range(10)]
    vlm2vec = [pool[place] for place in np.argsort(-np.zeros(10), kind="stable")]
    assert reference(vlm2vec, {"d0": 1})[0] == 1.0  # a collapsed model would be perfect
    assert mteb_scores(dict.fromkeys(pool, 0.5), {"d0": 1})[0] == 0.0


@pytest.mark.parametrize("graded", [False, True])
def test_200_random_rankings_equal_the_reference(graded):
    rng = np.random.default_rng(int(graded))
    documents, scores, grades = [f"d{i}" for i in range(30)], {}, {}
    for query in map(str, range(200)):
        scores[query] = dict(zip(documents, rng.permutation(30).astype(float).tolist(), strict=True))
        chosen = rng.choice(documents, rng.integers(1, 9), replace=False)
        grades[query] = {str(d): int(rng.integers(1, 4)) if graded else 1 for d in chosen}
    found = all_mteb_scores(scores, grades)
    assert len(found) == 200
    for query, values in scores.items():
        ranking = sorted(documents, key=values.__getitem__, reverse=True)
        assert found[query] == pytest.approx(reference(ranking, grades[query]), abs=1e-5)


@pytest.mark.parametrize(("pool", "metric", "graded"), [("local", "hit@1", False), ("global", "ndcg_linear@5", True)])
def test_a_run_equals_the_reference(pool, metric, graded):
    row, toy = text_rows(pool, metric), Toy()
    task = text_task(row, parsed_texts(200, 20, graded, local=pool == "local"))
    expected = reference_run(task, toy)
    result = run_task(PlumeEncoder(toy), task, progress=False)
    assert result["scores"] == pytest.approx(expected, abs=1e-5)
    assert result["score"] == result["scores"][metric]
    assert (result["n"], result["metric"]) == (200, metric)


def reference_run(task, toy) -> dict:
    """All metrics over a task's data: vectors one by one, a full sort, the reference metric."""
    data = task.dataset["default"][task.row.dataset["split"]]
    documents = {row["id"]: toy.vector(our_input(row)).astype(np.float32) for row in data["corpus"]}
    rows = []
    for row in data["queries"]:
        query = toy.vector(our_input(row)).astype(np.float32)
        pool = data["top_ranked"][row["id"]] if data["top_ranked"] else list(documents)
        ranking = sorted(pool, key=lambda name: (float(query @ documents[name]), name), reverse=True)
        relevant = data["relevant_docs"][row["id"]]
        rows.append((*reference(ranking, relevant), float(any(name in relevant for name in ranking[:10]))))
    means = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
    return dict(zip(("hit@1", "ndcg_linear@5", "hit@10"), means, strict=True))


def our_input(row) -> dict:
    item = {"text": row["text"]}
    if row.get("image") is not None:
        item["image"] = row["image"]
    if row.get("video"):
        item.update({"image": row["video"][0]} if row.get("medium") == "image" else {"video": row["video"]})
    return item


@pytest.mark.slow
def test_all_78_tasks_run_through_mteb_and_equal_the_reference(tmp_path):
    write_world(tmp_path, TABLE.rows)
    toy = Toy()
    encoder = PlumeEncoder(toy)
    for row in TABLE.rows:
        task = make_task(row, tmp_path)
        task.load_data()
        expected = reference_run(task, toy)
        result = run_task(encoder, task, progress=False)
        assert result["scores"] == pytest.approx(expected, abs=1e-5), row.id
        assert (result["task"], result["metric"]) == (row.id, row.metric)


# Ties and NaN


@pytest.mark.parametrize(("pool", "size"), [("local", 10), ("local", 40), ("global", 10)])
def test_a_constant_embedder_scores_at_chance(pool, size):
    queries = 50 * size
    task = text_task(text_rows(pool, "hit@1"), parsed_texts(queries, size, local=pool == "local"))
    chance = 1 / (size if pool == "local" else 4 * size)
    result = run_task(PlumeEncoder(Constant()), task, progress=False)
    spread = (chance / queries) ** 0.5
    assert abs(result["score"] - chance) < 4 * spread + (0.02 if pool == "global" else 0)
    assert result["vectors"]["document"]["distinct"] == 1


@pytest.mark.parametrize("pool", ["local", "global"])
def test_nan_raises_in_both_paths(pool):
    task = text_task(text_rows(pool, "hit@1"), parsed_texts(8, 4, local=pool == "local"))
    with pytest.raises(ValueError, match="not finite"):
        run_task(PlumeEncoder(Broken()), task, progress=False)


def test_zero_vectors_and_impossible_dimensions_are_errors():
    task = text_task(text_rows("local", "hit@1"), parsed_texts(4, 4))
    with pytest.raises(ValueError, match="dimensions"):
        run_task(PlumeEncoder(Toy(), dim=17), task, progress=False)
    zero = Toy()
    zero.encode = lambda inputs, role: torch.zeros(len(inputs), 4)
    with pytest.raises(ValueError, match="zero"):
        run_task(PlumeEncoder(zero), text_task(text_rows("local", "hit@1"), parsed_texts(4, 4)), progress=False)


def test_fewer_dimensions_are_renormalised():
    toy, task = Toy(), text_task(text_rows("local", "hit@1"), parsed_texts(50, 10))

    class Cut(Toy):
        def vector(self, item):
            return super().vector(item)[:4] / np.linalg.norm(super().vector(item)[:4])

    expected = reference_run(task, Cut())
    assert run_task(PlumeEncoder(toy, dim=4), task, progress=False)["scores"] == pytest.approx(expected, abs=1e-5)


def test_a_selection_of_tasks_runs_alone(tmp_path):
    rows = select(TABLE, ["V-MRET"])
    write_world(tmp_path, rows)
    assert [result["group"] for result in evaluate(Toy(), rows, tmp_path, progress=False)] == ["V-MRET"] * 3

"""Each of the 78 rows on three rows of data in the real schema: strings, pools, labels, frames."""

import re
from collections import Counter

import pytest
from evaluation_world import CLASSES, ROWS, colors, image_rows, qa_rows, write_world

from plume.evaluation.__main__ import main
from plume.evaluation.parsers.common import candidate_id, frame_indices
from plume.evaluation.table import MMEB_V2, make_row, read_table, select
from plume.evaluation.tasks import make_task

TABLE = read_table()
NUM_LABELS = {"K700": 700, "HMDB51": 51, "UCF101": 101, "Breakfast": 10}
EIGHT_OF_TEN = [0, 1, 2, 3, 5, 6, 7, 9]
QA_PROMPT = (
    "Given a video and a question, select the most accurate answer from the provided candidates. Return only the exact "
    "text of your chosen answer. Question:  "
)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mmeb")
    write_world(folder, TABLE.rows)
    return folder


def load(row, world, **options):
    task = make_task(row, world, **options)
    task.load_data()
    return task.dataset["default"][row.dataset["split"]]


def row_of(name):
    return next(row for row in TABLE.rows if row.id == name)


def after_media(string):
    """A string of VLM2Vec as PLUME reads it: media stand in front, both ends are stripped."""
    return re.sub(r"<\|(image|video)_pad\|>", "", string).strip()


def texts(side):
    return list(side["text"])


def by_id(data):
    return {row["id"]: row for row in data["corpus"]}


# The table


def test_the_table_has_the_papers_counts():
    counts = Counter(row.group for row in TABLE.rows)
    assert list(counts.values()) == [10, 10, 12, 4, 5, 5, 5, 3, 10, 4, 6, 4]
    assert Counter(row.pool for row in TABLE.rows) == {"local": 45, "global": 33}
    assert Counter(row.modality for row in TABLE.rows) == {"image": 36, "video": 18, "visdoc": 24}
    assert sum(row.num_queries for row in TABLE.rows) == 36_000 + 34_940 + 12_590
    assert sum(row.pool_size for row in TABLE.rows if row.pool == "global") == 66_791
    assert {row.metric for row in TABLE.rows if row.modality == "visdoc"} == {"ndcg_linear@5"}
    assert {row.metric for row in TABLE.rows if row.modality != "visdoc"} == {"hit@1"}


def test_every_template_has_the_media_token_of_its_side():
    for row in TABLE.rows:
        for side in (row.query, row.candidate):
            if side.modality != "any":
                assert ("<|image_pad|>" in side.template) == ("image" in side.modality), row.id
                assert ("<|video_pad|>" in side.template) == ("video" in side.modality), row.id


def test_page_tasks_use_the_fixed_labels():
    assert row_of("ViDoSeek-page").dataset["repo"] == "VLM2Vec/ViDoSeek-page-fixed"
    assert row_of("MMLongBench-page").dataset["repo"] == "VLM2Vec/MMLongBench-page-fixed"
    assert TABLE.meta["page_labels"] == "fixed"


def test_official_prompts_differ_in_18_document_tasks_only():
    differing = [row for row in TABLE.rows if row.official]
    assert len(differing) == 18
    assert {row.group for row in differing} == {"VDRv1", "VDRv2", "OOD"}
    assert all(row.instruction("query", "official") == "" for row in differing)


def test_rows_say_what_is_wrong_with_them(tmp_path):
    good = {
        "id": "x", "group": "g", "modality": "image", "parser": "image_cls", "pool": "local", "metric": "hit@1",
        "dataset": {"repo": "r", "split": "test"}, "query": {"modality": "text"}, "candidate": {"modality": "text"},
    }  # fmt: skip
    assert make_row({**good, "hops": 2}).extras == {"hops": 2}
    for change, fault in (
        ({"metric": "accuracy"}, "metric"),
        ({"pool": None}, "lacks"),
        ({"score": 1}, "names in a result"),
        ({"query": {"modality": "sound"}}, "query modality"),
        ({"dataset": {"repo": "r"}}, "split"),
    ):
        with pytest.raises(ValueError, match=fault):
            make_row({**good, **change})
    with pytest.raises(ValueError, match="no task, group or modality"):
        select(TABLE, ["NoSuchTask"])
    with pytest.raises(ValueError, match="does not exist"):
        read_table(tmp_path / "none.json")


# Image tasks


@pytest.mark.parametrize("row", [row for row in TABLE.rows if row.modality == "image"], ids=lambda row: row.id)
def test_image_task(row, world):
    data, written = load(row, world), image_rows(row)
    template = row.query.template.replace("{inst}", row.query.instruction)
    expected = [after_media(template.replace("{qry_text}", fields["qry_text"])) for fields in written]
    assert texts(data["queries"]) == expected
    if "image" in row.query.modality:
        assert colors(data["queries"]["image"]) == [(10 * index, 0, 0) for index in range(ROWS)]
    items = by_id(data)
    assert len(items) == ROWS
    for index, name in enumerate(data["queries"]["id"]):
        assert len(data["top_ranked"][name]) == ROWS  # the doubled distractor counts once
        [(positive, grade)] = data["relevant_docs"][name].items()
        assert grade == 1
        template = row.candidate.template.replace("{inst}", row.candidate.instruction or "")
        assert items[positive]["text"] == after_media(template.replace("{tgt_text[i]}", f'"thing {index}"'))
        if "image" in row.candidate.modality:
            assert colors([items[positive]["image"]]) == [(10 * (ROWS + index), 0, 0)]


def test_line_breaks_lose_the_space_before_them_as_in_vlm2vec(world):
    from plume.evaluation.parsers import parse
    from plume.evaluation.parsers.common import MediaFiles

    row = row_of("ScienceQA")
    fields = {**image_rows(row)[0], "qry_text": "which? \nA: a \nB: b", "tgt_text": ["a", "b"]}
    parsed = parse(row, {"rows": [fields]}, MediaFiles(row, world), "clean")
    assert parsed.queries[0].text == f"{row.query.instruction} which?\nA: a\nB: b"


# Video tasks


@pytest.mark.parametrize("name", NUM_LABELS)
def test_video_classification_ranks_all_labels(name, world):
    row = row_of(name)
    data = load(row, world)
    assert texts(data["queries"]) == [row.query.instruction.strip()] * ROWS
    assert len(data["corpus"]) == NUM_LABELS[name] == row.pool_size
    assert data["top_ranked"] is None
    assert [list(data["relevant_docs"][q]) for q in data["queries"]["id"]] == [
        [candidate_id(label)] for label in CLASSES[name]
    ]
    clips = list(data["queries"]["video"])
    assert [colors(clip) for clip in clips] == [[(10 * c, 10 * f, 255) for f in EIGHT_OF_TEN] for c in range(ROWS)]


def test_something_something_ranks_the_candidates_of_its_row(world):
    data = load(row_of("SmthSmthV2"), world)
    assert sorted(texts(data["corpus"])) == ["act 0", "act 1", "act 2"]
    for index, name in enumerate(data["queries"]["id"]):
        assert data["relevant_docs"][name] == {candidate_id(f"act {index}"): 1}
        assert len(data["top_ranked"][name]) == 3
    assert row_of("SmthSmthV2").dataset["limit"] == 1000


QUESTIONS = {
    "MVBench": [f"what {i}\nOptions:\n(A) up\n(B) down\n(C) o{i}" for i in range(ROWS)],
    "Video-MME": [f"what {i}\nA. One.\nB. Two. .\nC. {i}\nD.none" for i in range(ROWS)],
    "NExTQA": [f"what {i}\nOptions:\n(A) o0\n(B) o1\n(C) o2\n(D) o3\n(E) o4" for i in range(ROWS)],
    "EgoSchema": [f"what {i}?A. c0 B. c1 C. c2 D. c3 E. c4" for i in range(ROWS)],
    "ActivityNetQA": [f"what {i}? (A) yes; (B) no." for i in range(ROWS)],
}
OPTIONS = {  # the text of each candidate by its key
    "MVBench": {"(A) up": "(A) up", "(B) down": "(B) down", **{f"(C) o{i}": f"(C) o{i}" for i in range(ROWS)}},
    # Without ". " only the last character stays: "D.none" -> "e"
    "Video-MME": {"A. One.": "One", "B. Two. .": "Two", **{f"C. {i}": f"{i}" for i in range(ROWS)}, "D.none": "e"},
    "NExTQA": {f"o{i}": f"o{i}" for i in range(5)},
    "EgoSchema": {f"{'ABCDE'[i]}. c{i}": f"c{i}" for i in range(5)},
    "ActivityNetQA": {"yes": "yes", "no": "no"},
}
ANSWERS = {
    "MVBench": ["(@) absent", "(C) o1", "(C) o2"],
    "Video-MME": ["A. One.", "B. Two. .", "C. 2"],
    "NExTQA": ["o0", "o1", "o2"],
    "EgoSchema": ["A. c0", "B. c1", "C. c2"],
    "ActivityNetQA": ["yes", "no", "yes"],
}


@pytest.mark.parametrize("name", QUESTIONS)
def test_video_question_answering(name, world):
    row = row_of(name)
    data = load(row, world)
    expected = [QA_PROMPT + question for question in QUESTIONS[name]]
    clips = [[(10 * c, 10 * f, 255) for f in EIGHT_OF_TEN] for c in range(ROWS)]
    if name == "MVBench":  # twenty configs of one row each, in the order of the table
        assert len(row.dataset["config"]) == len(data["queries"]) == 20
        expected, clips = (expected * 7)[:20], (clips * 7)[:20]
    assert texts(data["queries"]) == expected
    assert [colors(clip) for clip in data["queries"]["video"]] == clips
    assert {item["id"]: item["text"] for item in data["corpus"]} == {
        candidate_id(key): text for key, text in OPTIONS[name].items()
    }
    for index, query in enumerate(data["queries"]["id"]):
        assert data["relevant_docs"][query] == {candidate_id(ANSWERS[name][index % ROWS]): 1}
        assert len(data["top_ranked"][query]) == len(qa_rows(row)[0].get("candidates", OPTIONS[name])) - (
            2 if name == "Video-MME" else 0
        )


@pytest.mark.parametrize("name", ["DiDeMo", "MSR-VTT", "MSVD", "VATEX", "YouCook2"])
def test_video_retrieval(name, world):
    row = row_of(name)
    data = load(row, world)
    assert texts(data["queries"]) == [f"{row.query.instruction} caption {index}" for index in range(ROWS)]
    assert data["top_ranked"] is None
    assert set(texts(data["corpus"])) == {"Understand the content of the provided video."}
    items = by_id(data)
    for index, query in enumerate(data["queries"]["id"]):
        assert data["relevant_docs"][query] == {candidate_id(str(700 + index)): 1}
        clip = items[candidate_id(str(700 + index))]["video"]
        assert colors(clip) == [(10 * index, 10 * f, 255) for f in EIGHT_OF_TEN]


@pytest.mark.parametrize("name", ["QVHighlight", "Charades-STA"])
def test_moment_retrieval(name, world):
    row = row_of(name)
    data = load(row, world)
    assert texts(data["queries"]) == [f"{row.query.instruction} where {index}" for index in range(ROWS)]
    assert [len(clip) for clip in data["queries"]["video"]] == [8] * ROWS
    items = by_id(data)
    assert len(items) == 2 * ROWS  # `query` is no candidate
    for index, query in enumerate(data["queries"]["id"]):
        pool = {candidate_id(f"v{index}/{clip}") for clip in ("positive_1", "negative_1")}
        assert set(data["top_ranked"][query]) == pool
        assert data["relevant_docs"][query] == {candidate_id(f"v{index}/positive_1"): 1}
        clip = items[candidate_id(f"v{index}/positive_1")]["video"]
        assert colors(clip) == [(10 * (10 + index), 10 * f, 255) for f in range(3)]  # fewer than 8: all


def test_momentseeker_uses_all_frames_and_mixes_kinds_of_queries(world):
    row = row_of("MomentSeeker")
    data = load(row, world)
    assert texts(data["queries"]) == [
        "Find the clip that corresponds to the given text: where 0",
        "Select the video clip that aligns with the given text and image: where 1",
        "Find the clip that corresponds to the given sentence and video segment: where 2",
    ]
    assert list(data["queries"]["medium"]) == ["text", "image", "video"]
    clips = list(data["queries"]["video"])
    assert [len(clip) for clip in clips] == [0, 1, 10]
    assert colors(clips[1]) == [(200, 0, 0)]
    assert colors(clips[2]) == [(40, 10 * f, 255) for f in range(10)]
    assert [len(clip) for clip in data["corpus"]["video"]] == [10] * 4
    assert [len(data["relevant_docs"][query]) for query in data["queries"]["id"]] == [1, 2, 3]
    assert {len(pool) for pool in data["top_ranked"].values()} == {4}


def test_a_missing_query_clip_of_momentseeker_is_an_error_and_never_the_answers_frame(world, tmp_path):
    row = row_of("MomentSeeker")
    (tmp_path / "media").mkdir()
    with pytest.raises(ValueError, match=r"movie_0.*video_mret\.tar\.gz"):
        load(row, world, media_root=tmp_path / "media")


@pytest.mark.parametrize("name", ["ImageNet-1K", "K700", "MVBench"])
def test_missing_media_name_the_file_and_its_archive(name, world, tmp_path):
    archive = {"ImageNet-1K": "mmeb_v1", "K700": "video_cls", "MVBench": "video_qa"}[name]
    with pytest.raises(ValueError, match=rf"{re.escape(str(tmp_path))}.*{archive}.*tar\.gz"):
        load(row_of(name), world, media_root=tmp_path)


def test_frames_are_evenly_spaced_with_first_and_last():
    assert frame_indices(1, 8) == [0]
    assert frame_indices(7, 8) == list(range(7))
    assert frame_indices(8, 8) == list(range(8))
    assert frame_indices(9, 8) == [0, 1, 2, 3, 4, 5, 6, 8]
    assert frame_indices(64, 8) == [0, 9, 18, 27, 36, 45, 54, 63]
    assert frame_indices(11, "all") == list(range(11))


def test_the_number_of_frames_can_be_changed(world):
    data = load(row_of("K700"), world, num_frames=4)
    assert colors(data["queries"]["video"][0]) == [(0, 10 * f, 255) for f in (0, 3, 6, 9)]


# Documents


@pytest.mark.parametrize("row", [row for row in TABLE.rows if row.modality == "visdoc"], ids=lambda row: row.id)
def test_document_task(row, world):
    data = load(row, world)
    assert texts(data["queries"]) == [f"{row.query.instruction} how many {index}" for index in range(ROWS)]
    assert row.query.instruction == "Find a document image that matches the given query:"
    assert texts(data["corpus"]) == ["Understand the content of the provided document image."] * ROWS
    assert data["top_ranked"] is None
    pages = [candidate_id(f"page {i}.png" if row.group == "VR" else str(31 + i)) for i in range(ROWS)]
    # Grades are kept, the highest of repeated ones, and zeros are no relevance.
    assert list(data["relevant_docs"].values()) == [{pages[0]: 3, pages[1]: 2}, {pages[1]: 2}, {pages[2]: 1}]
    items = by_id(data)
    assert [colors([items[page]["image"]])[0] for page in pages] == [(10 * i, 0, 0) for i in range(ROWS)]


def test_official_prompts_are_empty_for_documents_but_not_for_visrag(world):
    data = load(row_of("ViDoSeek-page"), world, prompt_set="official")
    assert texts(data["queries"]) == ["how many 0", "how many 1", "how many 2"]
    assert texts(data["corpus"]) == [""] * ROWS
    assert texts(load(row_of("VisRAG_PlotQA"), world, prompt_set="official")["queries"])[0].startswith(
        "Find a document"
    )
    with pytest.raises(ValueError, match="prompt set"):
        make_task(row_of("K700"), world, prompt_set="own")


def test_documents_are_in_an_order_that_says_nothing_about_relevance(world):
    for name in ("ImageNet-1K", "ViDoSeek-page", "MSVD"):
        data = load(row_of(name), world)
        assert list(data["corpus"]["id"]) == sorted(data["corpus"]["id"])
        for pool in (data["top_ranked"] or {}).values():
            assert pool == sorted(pool)


# The command


def test_the_task_list_and_its_check(world, capsys):
    assert main(["tasks"]) == 0
    printed = capsys.readouterr().out
    assert "78 tasks: 45 with local pools, 33 with global ones" in printed
    assert all(row.id in printed for row in TABLE.rows)
    assert main(["tasks", "--check", "--data-root", str(world), "--tasks", "OK-VQA", "Breakfast"]) == 1
    assert "3 queries, the table has 1000" in capsys.readouterr().out
    assert MMEB_V2.is_file()

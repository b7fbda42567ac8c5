"""Every data set of MMEB-v2 in its real schema, three rows each, written as local folders that ``datasets`` reads.

Media are single-coloured, and their colour says which they are: picture ``i`` is (10 i, 0, 0), frame ``f`` of clip ``c``
is (10 c, 10 f, 255). Pools hold a distractor twice.
"""

import json
from pathlib import Path

from datasets import Dataset, Features, Image, Value
from PIL import Image as Pictures

from plume.evaluation.table import Row

SAVED_FRAMES = 10
ROWS = 3
CLASSES = {
    "K700": ["archery", "zumba", "yoga"],
    "HMDB51": ["wave", "dive", "pour"],
    "UCF101": ["Diving", "Swing", "Punch"],
    "Breakfast": ["coffee", "milk", "tea"],
}


def paint(path: Path, color: tuple[int, int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Pictures.new("RGB", (32, 32), color).save(path, format="PNG")  # lossless whatever the name says


def paint_clip(folder: Path, clip: int, frames: int = SAVED_FRAMES) -> None:
    for frame in range(frames):  # without leading zeros, so that only a natural order is right
        paint(folder / f"frame_{frame + 1}.jpg", (10 * clip, 10 * frame, 255))


def write_dataset(folder: Path, config: str | None, split: str, data: Dataset) -> None:
    """One config of a local data set; the README names its files, as on the Hub."""
    name = config or "default"
    file = folder / name / f"{split}.parquet"
    file.parent.mkdir(parents=True, exist_ok=True)
    data.to_parquet(file)
    configs = sorted(path.name for path in folder.iterdir() if path.is_dir())
    entries = [
        f"- config_name: {c}\n  data_files:\n"
        + "".join(f"  - split: {f.stem}\n    path: {c}/{f.name}\n" for f in (folder / c).iterdir())
        for c in configs
    ]
    (folder / "README.md").write_text("---\nconfigs:\n" + "".join(entries) + "---\n")


def rotate(values: list, start: int) -> list:
    """The positive first, the others after it, one of them twice."""
    turned = values[start:] + values[:start]
    return [*turned, turned[1]]


def write_world(root: Path, rows: list[Row]) -> None:
    """Write the data and media of tasks under ``root``."""
    for row in rows:
        folder = root / row.dataset["repo"]
        if row.parser == "beir":
            write_pages(folder, row)
        elif row.modality == "image":
            write_dataset(folder, row.dataset["config"], row.dataset["split"], Dataset.from_list(image_rows(row)))
        elif row.parser == "video_qa_mvbench":
            for place, config in enumerate(row.dataset["config"]):
                data = qa_rows(row)[place % ROWS]
                write_dataset(folder, config, row.dataset["split"], Dataset.from_list([data]))
                paint_clip(root / row.media / config / data["video"], place % ROWS)
        else:
            data = qa_rows(row) if row.parser.startswith("video_qa") else video_rows(row)
            write_dataset(folder, row.dataset["config"], row.dataset["split"], Dataset.from_list(data))
        write_media(root, row)


def write_media(root: Path, row: Row) -> None:
    media = root / (row.media or "")
    if row.modality == "image":
        for index in range(2 * ROWS):
            paint(media / row.id / f"{index}.jpg", (10 * index, 0, 0))
    elif row.parser == "moment":
        for index in range(ROWS):
            paint_clip(media / f"v{index}" / "query", index)
            paint_clip(media / f"v{index}" / "positive_1", 10 + index, frames=3)
            paint_clip(media / f"v{index}" / "negative_1", 15 + index, frames=3)
    elif row.parser == "momentseeker":
        for index in range(5):
            paint_clip(media / "video_frames" / f"movie_{index}", index)
        paint(media / "query_q.jpg", (200, 0, 0))
    elif row.modality == "video" and row.parser != "video_qa_mvbench":
        prefix = "v_" if row.parser == "video_qa_activitynetqa" else ""
        for index in range(ROWS):
            paint_clip(media / f"{prefix}{700 + index}", index)


def image_rows(row: Row) -> list[dict]:
    asked = "{qry_text}" in row.query.template
    captioned = "{tgt_text[i]}" in row.candidate.template and row.candidate.modality != "text"
    # The two ways in which the instruction column may be laid out; question answering strips it.
    mark = "<|image_1|> {} " if row.parser in ("image_qa", "image_i2i_vg") else "<|image_1|>\n{}"
    mark = "{}" if row.parser == "image_t2i" else mark
    rows = []
    for index in range(ROWS):
        captions = (
            [f'"thing {i}"' for i in range(ROWS)] if captioned or row.candidate.modality == "text" else [""] * ROWS
        )
        pictures = [f"{row.id}/{ROWS + i}.jpg" for i in range(ROWS)]
        fields = {
            "qry_inst": mark.format(row.query.instruction),
            "qry_text": f"what is {index}" if asked else "",
            "tgt_text": rotate(captions, index),
        }
        if row.query.modality == "image+text":
            fields["qry_img_path"] = f"{row.id}/{index}.jpg"
        if row.candidate.modality != "text":
            fields["tgt_img_path"] = rotate(pictures, index)
            fields["tgt_inst"] = f"<|image_1|>\n{row.candidate.instruction}"
        rows.append(fields)
    return rows


def qa_rows(row: Row) -> list[dict]:
    made = {
        "video_qa_mvbench": lambda i: {"question": f"what {i}", "video": f"{i}.mp4", "candidates": ["up", "down", f"o{i}"], "answer": f"o{i}" if i else "absent"},
        "video_qa_videomme": lambda i: {"question": f"what {i}", "videoID": str(700 + i), "options": ["A. One.", "B. Two. .", f"C. {i}", "D.none"], "answer": "ABCD"[i]},
        "video_qa_nextqa": lambda i: {"question": f"what {i}", "video": 700 + i, "answer": i, **{f"a{j}": f"o{j}" for j in range(5)}},
        "video_qa_egoschema": lambda i: {"question": f"what {i}?", "video_idx": str(700 + i), "option": [f"{'ABCDE'[j]}. c{j}" for j in range(5)], "answer": str(i)},
        "video_qa_activitynetqa": lambda i: {"question": f"what {i}", "video_name": str(700 + i), "answer": ("yes", "no", "yes")[i]},
    }  # fmt: skip
    return [made[row.parser](index) for index in range(ROWS)]


def video_rows(row: Row) -> list[dict]:
    made = {
        "video_cls": lambda i: {"video_id": str(700 + i), "pos_text": CLASSES[row.id][i]},
        "video_ssv2": lambda i: {"video_id": 700 + i, "pos_text": f"act {i}", "neg_text": rotate([f"act {j}" for j in range(3)], i)},
        "video_ret_didemo": lambda i: {"video": f"test/{700 + i}.mp4", "caption": f"caption {i}"},
        "video_ret_msrvtt": lambda i: {"video_id": str(700 + i), "video": f"{700 + i}.mp4", "caption": f"caption {i}"},
        "video_ret_msvd": lambda i: {"video_id": str(700 + i), "video": f"{700 + i}.avi", "caption": [f"caption {i}", "other"]},
        "video_ret_vatex": lambda i: {"videoID": str(700 + i), "enCap": [f"caption {i}", "other"]},
        "video_ret_youcook2": lambda i: {"id": str(700 + i), "video_path": f"x/{700 + i}.mp4", "sentence": f"caption {i}"},
        "moment": lambda i: {"query": f"where {i}", "video_path": f"videos/v{i}.mp4"},
        "momentseeker": lambda i: {
            "query": f"where {i}",
            "input_frames": ["", "q.jpg", "movie/4.mp4"][i],
            "positive_frames": [{"output_path": f"movie/{j}.mp4"} for j in range(i + 1)],
            "negative_frames": [{"output_path": f"movie/{j}.mp4"} for j in range(i + 1, 4)],
        },
    }  # fmt: skip
    return [made[row.parser](index) for index in range(ROWS)]


def write_pages(folder: Path, row: Row) -> None:
    """Three pages, three queries; grades 2 and 3 within a query, one judged twice, one judged 0."""
    split, name = row.dataset["split"], (lambda i: f"page {i}.png") if row.group == "VR" else (lambda i: 31 + i)
    pictures = []
    for index in range(ROWS):
        pictures.append(str(folder.parent / "pictures" / f"{index}.png"))
        paint(Path(pictures[-1]), (10 * index, 0, 0))
    ids = [name(index) for index in range(ROWS)]
    features = Features({"corpus-id": Value("string" if row.group == "VR" else "int64"), "image": Image()})
    corpus = Dataset.from_dict({"corpus-id": ids, "image": pictures}, features=features)
    judged = [(0, 0, 3), (0, 1, 2), (0, 2, 0), (1, 1, 2), (1, 1, 1), (2, 2, 1)]
    qrels = [{"query-id": query, "corpus-id": ids[page], "score": score} for query, page, score in judged]
    queries = [{"query-id": query, "query": f"how many {query}", "language": "english"} for query in range(ROWS)]
    for config, data in (("queries", queries), ("qrels", qrels)):
        write_dataset(folder, config, split, Dataset.from_list(data))
    write_dataset(folder, "corpus", split, corpus)


def write_table(path: Path, rows: list[dict], **meta) -> Path:
    path.write_text(json.dumps({"meta": {"benchmark": "small", "version": "v1", **meta}, "tasks": rows}))
    return path


def colors(images) -> list[tuple[int, int, int]]:
    """Which media these are."""
    return [image.convert("RGB").getpixel((0, 0)) for image in images]

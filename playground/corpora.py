"""The world written out: training pairs in the UME-R1 format, and evaluation tasks in the schemas of MMEB-v2.

Training: ``pairs.jsonl`` and ``media/``. Evaluation: one ``datasets`` folder and media per task, and ``tasks.json``,
a table in the schema of ``evaluation/mmeb_v2.json``. Both are read by the same code as the real corpora. Files are
named by their content or by number, candidates are sorted by file, so neither says which one is right; only the folders
of clips say "positive", as MMEB-v2 lays them out, and no model reads them.

``pairs.jsonl``, ``tasks.json`` and every picture that is named by its content are whole or absent, whatever kills the
run.
"""

import hashlib
import io
import json
import os
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image
from tqdm import tqdm

from plume.playground.tasks import EXTRAPOLATION, LONGER, TASKS, Example, Item, Task, draw_example

TABLE = "tasks.json"
_PARSERS = {"image-name": "image_cls", "text-chain": "image_t2i"}
_NUM_PAGES = 108


@dataclass(frozen=True)
class Condition:
    """What is measured: a task, on a split, with a number of look-ups."""

    task: Task
    split: str
    hops: int

    @property
    def name(self) -> str:
        """``task-split-hHOPS``."""
        return f"{self.task.name}-{self.split}-h{self.hops}"


class MediaFolder:
    """Pictures in a folder, named by a hash of their pixels, so that equal ones are one file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, picture: Image.Image | None) -> str:
        """Save a picture and return its file name."""
        assert picture is not None, "an item without text has a picture"
        digest = hashlib.blake2b(picture.tobytes() + repr(picture.size).encode(), digest_size=10).hexdigest()
        path = self.folder / f"{digest}.png"
        if not path.exists():
            part = path.with_suffix(".part")
            picture.save(part, format="PNG")
            os.replace(part, path)
        return path.name


def write_whole(file: Path, content: str) -> Path:
    """Write a text file that is whole or absent, whatever kills the run."""
    part = file.with_name(f"{file.name}.part")
    part.write_text(content, encoding="utf-8")
    os.replace(part, file)
    return file


def write_training(
    folder: Path,
    rows: int,
    seed: int,
    tasks: Sequence[str] = (),
    progress: bool = True,
    hops: Sequence[int] = (),
) -> Path:
    """Write training pairs, every task equally often, and each of its numbers of look-ups equally often.

    Args:
        folder: Where to.
        rows: Number of pairs.
        seed: Seed of the world.
        tasks: Names of tasks; all where empty.
        progress: Whether to show progress.
        hops: Numbers of look-ups that the chains vary over; the tasks' own where empty.

    Returns:
        The file ``pairs.jsonl``; media are in ``media/`` next to it.
    """
    media, lines = MediaFolder(folder / "media"), []
    for index in tqdm(range(rows), desc="pairs", disable=not progress):
        names = list(tasks or TASKS)
        task = TASKS[names[index % len(names)]]
        lookups = task.lookups(hops)
        asked = lookups[index // len(names) % len(lookups)]
        example = draw_example(task, random.Random(f"train-{seed}-{index}"), "train", asked)
        lines.append(json.dumps(_pair(task, example, media)))
    random.Random(seed).shuffle(lines)
    return write_whole(folder / "pairs.jsonl", "\n".join(lines) + "\n")


def _pair(task: Task, example: Example, media: MediaFolder) -> dict[str, Any]:
    # Written down, a control's answer would be read from there, and then from the latent steps that replace it.
    thought, answer = task.rationale(example), "" if task.control else example.answer
    # A scene or a page shows several boxes: its own thought does not say which one is meant.
    own = thought[-1:] if task.targets in ("text", "image", "page") else ()
    return {
        "dataset_name": task.name,
        "qry": _side(example.query, media, thought, answer),
        "pos": _side(example.target, media, own, answer if own else ""),
    }


def _side(item: Item, media: MediaFolder, thought: Sequence[str], answer: str) -> dict[str, Any]:
    reply = f"<think>{''.join(thought)}</think>" + (f"<answer>{answer}</answer>" if answer else "")
    mark = ""
    fields: dict[str, Any] = {}
    if item.image is not None:
        mark, fields = "<image>\n", {"image": media.add(item.image)}
    elif item.video:
        mark, fields = "<video>\n", {"video": [media.add(frame) for frame in item.video]}
    turns = [{"from": "human", "value": f"{mark}{item.text}"}, {"from": "gpt", "value": reply}]
    return {**fields, "conversations": turns}


def conditions(
    split: str, tasks: Sequence[str] = (), extrapolate: bool = True, hops: Sequence[int] = ()
) -> list[Condition]:
    """All that is measured on a split: every task with the hop counts of training, and others where that makes sense.

    Args:
        split: ``"dev"`` or ``"test"``.
        tasks: Names of tasks; all where empty.
        extrapolate: Whether to ask for hop counts that were never trained.
        hops: As in :func:`write_training`.
    """
    found = []
    for name in tasks or TASKS:
        task = TASKS[name]
        trained = task.lookups(hops)
        others = (
            (LONGER if hops and not task.control else EXTRAPOLATION if task.extrapolates else ()) if extrapolate else ()
        )
        found += [Condition(task, split, count) for count in dict.fromkeys((*trained, *others))]
    return found


def write_evaluation(folder: Path, wanted: Iterable[Condition], queries: int, seed: int, progress: bool = True) -> Path:
    """Write evaluation tasks and their table.

    Args:
        folder: Where to.
        wanted: What to measure, from :func:`conditions`.
        queries: Queries per task.
        seed: Seed of the world.
        progress: Whether to show progress.

    Returns:
        The table, ``tasks.json``.
    """
    rows = []
    for condition in tqdm(list(wanted), desc="tasks", disable=not progress):
        write = _write_pages if condition.task.targets == "page" else _write_rows
        rows.append(write(folder, condition, queries, random.Random(f"{condition.name}-{seed}")))
    table = {"meta": {"benchmark": "playground", "version": f"seed {seed}, {queries} queries"}, "tasks": rows}
    return write_whole(folder / TABLE, json.dumps(table, indent=1) + "\n")


def _table_row(condition: Condition, parser: str, query: str, candidate: str, **fields: Any) -> dict[str, Any]:
    task = condition.task
    return {
        "id": condition.name,
        "group": "control" if task.control else "multi-hop",
        "modality": {"video": "video", "page": "visdoc"}.get(task.targets, "image"),
        "dataset": {"repo": f"data/{condition.name}", "config": None, "split": "test", "revision": None},
        "parser": parser,
        "media": f"media/{condition.name}",
        "archive": "the playground's own media: write it again",
        "query": {"modality": query},
        "candidate": {"modality": candidate},
        "pool": "local",
        "metric": "hit@1",
        "num_frames": None,
        "playground_task": task.name,
        "split": condition.split,
        "hops": condition.hops,
        "control": task.control,
        **fields,
    }


def _write_rows(folder: Path, condition: Condition, queries: int, rng: random.Random) -> dict[str, Any]:
    task, media = condition.task, MediaFolder(folder / "media" / condition.name)
    examples = [draw_example(task, rng, condition.split, condition.hops) for _ in range(queries)]
    if task.targets == "video":
        rows = [_clip_row(example, media.folder, index) for index, example in enumerate(examples)]
        fields = _table_row(condition, "moment", "video+text", "video", num_frames="all")
    else:
        pool = sorted({example.target.text for example in examples if example.target.text})
        rows = [_image_row(example, media, pool) for example in examples]
        as_text = task.targets == "text"
        query = "image+text" if examples[0].query.image else "text"
        parser = _PARSERS.get(task.name, "image_qa" if as_text else "image_i2i_vg")
        fields = _table_row(condition, parser, query, "text" if as_text else "image+text")
    save_datasets(folder / "data" / condition.name, {"test": Dataset.from_list(rows)})
    return {**fields, "num_queries": queries}


def _image_row(example: Example, media: MediaFolder, pool: Sequence[str]) -> dict[str, Any]:
    """A row in the schema of MMEB's image tasks; the positive comes first, as there."""
    if example.target.text:
        texts = [example.target.text, *(text for text in pool if text != example.target.text)]
        paths = [""] * len(texts)
    else:
        paths = [media.add(example.target.image), *sorted(media.add(other.image) for other in example.others)]
        texts = [""] * len(paths)
    first, _, rest = example.query.text.partition(" ")
    return {
        "qry_inst": first,
        "qry_text": rest,
        "qry_img_path": media.add(example.query.image) if example.query.image else "",
        "tgt_inst": "",
        "tgt_text": texts,
        "tgt_img_path": paths,
    }


def _clip_row(example: Example, root: Path, index: int) -> dict[str, Any]:
    """A row in the schema of MMEB's moment retrieval, with its frames in folders of clips."""
    clips = {"query": example.query.video, "positive_0": example.target.video}
    clips |= {f"negative_{place}": other.video for place, other in enumerate(example.others)}
    for name, frames in clips.items():
        folder = root / f"clip{index:04d}" / name
        folder.mkdir(parents=True, exist_ok=True)
        for number, frame in enumerate(frames):
            frame.save(folder / f"{number}.png")
    return {"video_path": f"clip{index:04d}.mp4", "query": example.query.text}


def _write_pages(folder: Path, condition: Condition, queries: int, rng: random.Random) -> dict[str, Any]:
    """A page corpus in the BEIR layout; every page with the asked head is relevant."""
    examples = [draw_example(condition.task, rng, condition.split, condition.hops) for _ in range(_NUM_PAGES)]
    texts = sorted({example.query.text for example in examples})[:queries]
    pages = [{"corpus-id": index, "image": _encode(example.target.image)} for index, example in enumerate(examples)]
    judged = [
        {"query-id": texts.index(example.query.text), "corpus-id": index, "score": 1}
        for index, example in enumerate(examples)
        if example.query.text in texts
    ]
    features = Features({"corpus-id": Value("int64"), "image": ImageFeature()})
    configs = {
        "queries": Dataset.from_list([{"query-id": index, "query": text} for index, text in enumerate(texts)]),
        "corpus": Dataset.from_list(pages, features=features),
        "qrels": Dataset.from_list(judged),
    }
    save_datasets(folder / "data" / condition.name, configs)
    fields = _table_row(condition, "beir", "text", "image+text", pool="global", media=None)
    return {**fields, "num_queries": len(texts)}


def _encode(picture: Image.Image | None) -> dict[str, Any]:
    assert picture is not None
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def save_datasets(folder: Path, configs: dict[str, Dataset]) -> None:
    """A local ``datasets`` folder with one config per entry, or one unnamed config called ``test``."""
    folder.mkdir(parents=True, exist_ok=True)
    header = ["---", "configs:"]
    for name, data in configs.items():
        data.to_parquet(folder / f"{name}.parquet")
        config = "default" if list(configs) == ["test"] else name
        header += [f"- config_name: {config}", "  data_files:", "  - split: test", f"    path: {name}.parquet"]
    (folder / "README.md").write_text("\n".join([*header, "---", ""]), encoding="utf-8")

"""Training pairs in the UME-R1 format: query and positive, each with media, a task text, a rationale, an answer.

1. **Read** JSON or JSONL files, or a ``datasets`` name (:func:`load_rows`); a row stays one JSON string until a worker
   needs it, because rows differ in their fields.
2. **Parse** a row into a :class:`Pair` (:func:`parse_row`): aliases, unclosed ``<answer>``, media resolved under the
   root; anything unusable is a :class:`RowError` that names the row's fault.
3. **Check** a whole corpus: ``python -m plume.training.data check FILE... [--media_root DIR] [--report FILE]``.
"""

import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset, IterableDataset, load_dataset
from tqdm import tqdm

from plume.vision_plume import load_image, load_video

_MEDIA_MARK = re.compile(r"<(image|video)>")
_THINK = re.compile(r"<think>(.*?)</think>", re.DOTALL)
# UME-R1 leaves <answer> open; the embedding token behind it belongs to the prompt, not to the answer.
_ANSWER = re.compile(r"<answer>(.*?)(?:</answer>|$)", re.DOTALL)
_EMBEDDING_MARK = re.compile(r"\s*<gen(?:_emb)?>")
_ANCHOR_MARK = re.compile(r"\s*<(?:anchor|disc_emb)>.*", re.DOTALL)
_DATASET_KEYS = ("dataset_name", "dataset", "subset", "source", "task_name")
_ALIASES = {"image": ("image", "images"), "video": ("video", "videos")}


class RowError(ValueError):
    """A row that cannot be trained on; ``kind`` is the fault, for counting."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class Side:
    """One side of a pair.

    Attributes:
        text: The task text, without media marks, anchor and directive.
        images: Files of the images.
        videos: Per video its file, or the files of its frames.
        rationale: What stood between ``<think>`` and ``</think>``; may be empty.
        answer: What stood behind ``<answer>``; may be empty.
    """

    text: str
    images: tuple[str, ...] = ()
    videos: tuple[Any, ...] = ()
    rationale: str = ""
    answer: str = ""

    def content(self) -> dict[str, Any]:
        """The side as an input of the processor."""
        parts = {"image": list(self.images), "video": [_as_list(video) for video in self.videos], "text": self.text}
        return {kind: value for kind, value in parts.items() if value}

    def identity(self) -> int:
        """A number that equal targets share, for masking duplicates among the negatives."""
        digest = hashlib.blake2b(repr((self.text, self.images, self.videos)).encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") >> 1


@dataclass(frozen=True)
class Pair:
    """A query, its positive target, and optional hard negatives."""

    dataset: str
    query: Side
    target: Side
    negatives: tuple[Side, ...] = field(default=())


def _as_list(video: Any) -> Any:
    return list(video) if isinstance(video, tuple) else video


def load_rows(sources: Sequence[str], streaming: bool = False, split: str = "train") -> Dataset | IterableDataset:
    """Rows of JSON arrays, JSONL files or ``datasets`` names, as columns ``row`` (JSON), ``dataset`` and ``place``.

    Args:
        sources: Files ending in .json or .jsonl, or names that ``datasets.load_dataset`` takes.
        streaming: Read while training instead of before.
        split: Split of ``datasets`` names.

    Raises:
        ValueError: If a file does not exist or holds no rows.
    """
    for source in sources:
        if source.endswith((".json", ".jsonl")) and not Path(source).is_file():
            raise ValueError(f"The training file {source!r} does not exist. Check --train_files.")
    if streaming:
        # A tuple, not a list, which would make every file a shard: ranks must read equally many rows.
        return IterableDataset.from_generator(_generate, gen_kwargs={"sources": tuple(sources), "split": split})
    rows = list(_generate(list(sources), split))
    if not rows:
        raise ValueError(f"The training files {list(sources)} hold no rows, so there is nothing to train on.")
    return Dataset.from_list(rows)


def _generate(sources: Sequence[str], split: str) -> Iterator[dict[str, str]]:
    for source in sources:
        for number, row in enumerate(_iterate(source, split), start=1):
            query = row.get("qry") if isinstance(row, Mapping) else None
            places = [part for part in (row, query) if isinstance(part, Mapping)]
            names = [part[key] for part in places for key in _DATASET_KEYS if isinstance(part.get(key), str)]
            name = names[0] if names else "unnamed"
            yield {"row": json.dumps(row, ensure_ascii=False), "dataset": name, "place": f"{source}:{number}"}


def _iterate(source: str, split: str) -> Iterator[dict[str, Any]]:
    if source.endswith(".jsonl"):
        with open(source, encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield _parse_json(line, f"{source}, line {number}")
    elif source.endswith(".json"):
        yield from _parse_json(Path(source).read_text(encoding="utf-8-sig"), source)
    else:
        yield from load_dataset(source, split=split, streaming=True)


def _parse_json(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{place} is no JSON: {error}. Mend the file.") from error


def parse_row(row: str | Mapping[str, Any], media_root: str | Path | None = None) -> Pair:
    """Read one training row.

    Args:
        row: The row, or its JSON.
        media_root: Folder that media paths are relative to and must stay inside; the working directory where
            omitted.

    Raises:
        RowError: If a side is missing, has neither text nor media, or its media are missing, miscounted or outside
            the root.
    """
    fields = json.loads(row) if isinstance(row, str) else row
    try:
        return _parse_pair(fields, Path(media_root or ".").resolve())
    except (AttributeError, KeyError, TypeError) as error:
        raise RowError("malformed row", f"a field has an unexpected type ({error})") from error


def _parse_pair(fields: Any, root: Path) -> Pair:
    absent = [side for side in ("qry", "pos") if not isinstance(fields.get(side), Mapping)]
    if absent:
        raise RowError("missing side", f"the row has no {' and no '.join(absent)}")
    name = next((fields[key] for key in _DATASET_KEYS if isinstance(fields.get(key), str)), "unnamed")
    negatives = tuple(_parse_side(side, root) for side in fields.get("neg") or ())
    return Pair(name, _parse_side(fields["qry"], root), _parse_side(fields["pos"], root), negatives)


def _parse_side(fields: Mapping[str, Any], root: Path) -> Side:
    turns = {}
    for turn in fields.get("conversations") or fields.get("messages") or ():
        role = turn.get("from") or turn.get("role")
        turns[{"human": "user", "gpt": "assistant"}.get(role, role)] = turn.get("value") or turn.get("content") or ""
    question, reply = turns.get("user", ""), turns.get("assistant", "")
    images = tuple(_resolve(path, root) for path in _media(fields, "image"))
    videos = tuple(_resolve_video(video, root) for video in _videos(fields))
    marks = Counter(_MEDIA_MARK.findall(question))
    for kind, media in (("image", images), ("video", videos)):
        if marks[kind] and marks[kind] != len(media):
            raise RowError("miscounted media", f"the text names {marks[kind]} {kind}s, the row has {len(media)}")
    text = _ANCHOR_MARK.sub("", _MEDIA_MARK.sub("", question)).strip()
    if not (text or images or videos):
        raise RowError("empty side", "a side has neither text nor media")
    thought, answer = _THINK.search(reply), _ANSWER.search(reply)
    return Side(
        text,
        images,
        videos,
        rationale=_EMBEDDING_MARK.sub("", thought[1]) if thought else "",
        answer=_EMBEDDING_MARK.sub("", answer[1]).strip() if answer else "",
    )


def _media(fields: Mapping[str, Any], kind: str) -> list[Any]:
    value: Any = next((fields[key] for key in _ALIASES[kind] if fields.get(key)), [])
    return value if isinstance(value, list) else [value]


def _videos(fields: Mapping[str, Any]) -> list[Any]:
    """Videos of a side: a list of frame files is one video."""
    value = _media(fields, "video")
    frames = value and all(isinstance(v, str) and v.lower().endswith((".jpg", ".jpeg", ".png", ".webp")) for v in value)
    return [value] if frames else value


def _resolve_video(video: Any, root: Path) -> str | tuple[str, ...]:
    return tuple(_resolve(frame, root) for frame in video) if isinstance(video, list) else _resolve(video, root)


def _resolve(path: Any, root: Path) -> str:
    if not isinstance(path, str):
        raise RowError("unknown media", f"media are given as {type(path).__name__}, not as a path")
    found = (root / path).resolve()
    if root != found and root not in found.parents:
        raise RowError("media outside the root", f"{path!r} leads outside the media root {root}")
    if not found.is_file():
        raise RowError("missing media", f"{path!r} is not in the media root {root}")
    return str(found)


@dataclass
class Report:
    """What a check of a corpus found."""

    rows: int = 0
    usable: int = 0
    datasets: dict[str, int] = field(default_factory=dict)
    problems: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)


def check(
    rows: Dataset | IterableDataset,
    media_root: str | None = None,
    decode: bool = False,
    collate: Callable[[list[dict[str, str]]], Any] | None = None,
) -> tuple[Report, list[int]]:
    """Read every row; count per dataset and per problem.

    Args:
        rows: From :func:`load_rows`.
        media_root: As in :func:`parse_row`.
        decode: Open every picture and clip too, instead of only finding them.
        collate: What a run makes of its rows; tried on every row alone.

    Returns:
        The report, and the indices of the usable rows.
    """
    report, usable = Report(), []
    datasets: Counter[str] = Counter()
    problems: Counter[str] = Counter()
    examples: dict[str, list[str]] = defaultdict(list)
    for index, row in enumerate(tqdm(rows, desc="checking rows", unit="row")):
        report.rows += 1
        try:
            pair = parse_row(row["row"], media_root)
            if decode:
                _decode(pair)
            if collate is not None:
                collate([row])
        except (RowError, ValueError) as error:
            kind = error.kind if isinstance(error, RowError) else "unreadable media" if decode else "cannot be encoded"
            problems[kind] += 1
            examples[kind] = [*examples[kind], f"{row['place']}: {error}"][:3]
            continue
        datasets[pair.dataset] += 1
        usable.append(index)
        if not (pair.query.rationale and pair.target.rationale):
            problems["no rationale (usable)"] += 1
        elif not all(side.rationale for side in pair.negatives):
            problems["hard negative without a rationale, told apart by that (usable)"] += 1
    report.usable, report.datasets, report.problems = len(usable), dict(datasets), dict(problems)
    report.examples = dict(examples)
    return report, usable


def _decode(pair: Pair) -> None:
    for side in (pair.query, pair.target, *pair.negatives):
        for image in side.images:
            load_image(image)
        for video in side.videos:
            load_video(_as_list(video), num_frames=2)

"""From a row to a :class:`Pair`: two formats, one result.

- **Columns**, as sentence-transformers names them: ``anchor`` or ``query``, ``positive`` or ``document``,
  ``negative``, ``negative_1`` .. ``negative_n``, ``rationale_query``, ``rationale_positive``, ``dataset``. A value is a
  text, a path, a data URI, a dict of ``text``, ``image`` and ``video``, or a list of these. A rationale is a text, or
  ``<think>...</think><answer>...</answer>``; that of ``negative_1`` is ``rationale_negative_1``.
- **UME-R1**: ``qry``, ``pos`` and ``neg``, each a conversation with media.

In both, ``teacher_scores`` (or ``scores``) is a list: a number for the positive, and one for each hard negative.

Anything unusable is a :class:`RowError` that names the fault.
"""

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from plume.content_plume import MODALITIES
from plume.layouts import PAPER_LAYOUT, RELEASED_LAYOUT

_MEDIA_MARK = re.compile(r"<(image|video)>")
_THINK = re.compile(r"<think>(.*?)</think>", re.DOTALL)
# UME-R1 leaves <answer> open; the embedding token after it belongs to the prompt, not to the answer.
_ANSWER = re.compile(r"<answer>(.*?)(?:</answer>|$)", re.DOTALL)
_EMBEDDING_MARK = re.compile(rf"\s*(?:{PAPER_LAYOUT.embedding}|{RELEASED_LAYOUT.embedding})")
_ANCHOR_MARK = re.compile(rf"\s*(?:{PAPER_LAYOUT.anchor}|{RELEASED_LAYOUT.anchor}).*", re.DOTALL)
_ALIASES = {"image": ("image", "images"), "video": ("video", "videos")}
_DATASET_KEYS = ("dataset_name", "dataset", "subset", "source", "task_name")
_ROLES = {"human": "user", "gpt": "assistant"}
_PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
_CLIPS = (".mp4", ".m4v", ".mkv", ".webm", ".mov", ".avi", ".mpg", ".mpeg", ".ogv")
_NEGATIVE = re.compile(r"negative(?:s|_\d+)?")
# What the columns of a row may be called; the first name is the one that messages use.
QUERY, POSITIVE = ("query", "anchor"), ("positive", "document")
_RATIONALES = ("rationale_query", "rationale_positive")
_OF_A_NEGATIVE = re.compile(r"rationale_negative_\d+")
_NAME_THE_ROOT = "Name the folder that paths are relative to with --media_root"
_SCORES = ("teacher_scores", "scores", "score")  # as lists: a single score of a pair ranks nothing


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
        images: Files or data URIs of the images.
        videos: Per video its file or data URI, or the files of its frames.
        rationale: What stood between ``<think>`` and ``</think>``; may be empty.
        answer: What came after ``<answer>``; may be empty.
    """

    text: str
    images: tuple[str, ...] = ()
    videos: tuple[Any, ...] = ()
    rationale: str = ""
    answer: str = ""

    def content(self) -> dict[str, Any]:
        """The side as an input of the processor."""
        videos = [list(video) if isinstance(video, tuple) else video for video in self.videos]
        parts = {"image": list(self.images), "video": videos, "text": self.text}
        return {kind: value for kind, value in parts.items() if value}

    def identity(self) -> int:
        """A number that equal targets share, for masking duplicates among the negatives."""
        digest = hashlib.blake2b(repr((self.text, self.images, self.videos)).encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") >> 1


@dataclass(frozen=True)
class Pair:
    """A query, its positive target, optional hard negatives, and a teacher's scores of positive and negatives."""

    dataset: str
    query: Side
    target: Side
    negatives: tuple[Side, ...] = field(default=())
    scores: tuple[float, ...] = field(default=())


def name_dataset(row: Any) -> str:
    """The dataset that a row says it is from."""
    places = [part for part in (row, row.get("qry") if isinstance(row, Mapping) else None) if isinstance(part, Mapping)]
    names = [part[key] for part in places for key in _DATASET_KEYS if isinstance(part.get(key), str)]
    return names[0] if names else "unnamed"


def unused_columns(row: Any) -> list[str]:
    """Columns of a row that no side, rationale or dataset name is taken from."""
    if not isinstance(row, Mapping) or "qry" in row or "pos" in row:
        return []
    used = {*QUERY, *POSITIVE, *_RATIONALES, *_DATASET_KEYS, *(name for name in _SCORES if _is_list(row.get(name)))}
    numbered = (_NEGATIVE, _OF_A_NEGATIVE)
    return [str(name) for name in row if name not in used and not any(k.fullmatch(str(name)) for k in numbered)]


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
        root = Path(media_root or ".").resolve()
        return _parse_pair(fields, root) if "qry" in fields or "pos" in fields else _parse_columns(fields, root)
    except (AttributeError, KeyError, TypeError) as error:
        raise RowError("malformed row", f"a field has an unexpected type ({error})") from error


def _parse_columns(fields: Mapping[str, Any], root: Path) -> Pair:
    sides = []
    for names, column in zip((QUERY, POSITIVE), _RATIONALES, strict=True):
        value = _value_of(fields, names)
        if value is None:
            raise RowError(
                "missing side",
                f"the row has no {' or '.join(names)}; its columns are {', '.join(map(str, fields))}. Name yours with "
                f"--column {names[0]}=NAME",
            )
        sides.append(_side_of_value(value, root, *_read_rationale(fields, column)))
    negatives = tuple(
        _side_of_value(value, root, *_read_rationale(fields, f"rationale_{name}")) for name, value in _negatives(fields)
    )
    return Pair(name_dataset(fields), sides[0], sides[1], negatives, _read_scores(fields, len(negatives)))


def _value_of(fields: Mapping[str, Any], names: Sequence[str]) -> Any:
    """The value of a side, under the first of its names that has one; None if none has."""
    return next((fields[name] for name in names if fields.get(name) not in (None, "")), None)


def _read_rationale(fields: Mapping[str, Any], column: str) -> tuple[str, str]:
    """Rationale and answer in a column; each may be empty."""
    rationale = fields.get(column) or ""
    if not isinstance(rationale, str):
        raise RowError("unknown value", f"{column} is given as {_name_type(rationale)}, not as a text")
    return _read_reply(rationale) if "<think>" in rationale else (rationale, "")


def _is_list(value: Any) -> bool:
    return isinstance(value, list) and bool(value)


def _read_scores(fields: Mapping[str, Any], num_negatives: int) -> tuple[float, ...]:
    """A teacher's scores of the positive and of each hard negative; empty where there are none."""
    name = next((name for name in _SCORES if _is_list(fields.get(name))), None)
    if name is None:
        return ()
    values = fields[name]
    if any(isinstance(v, bool) or not isinstance(v, (int, float)) or not math.isfinite(v) for v in values):
        raise RowError("unknown value", f"{name} holds something else than finite numbers: {str(values)[:80]}")
    if len(values) != 1 + num_negatives:
        raise RowError(
            "miscounted scores",
            f"{name} holds {len(values)} numbers for a positive and {num_negatives} negatives. Give one for each",
        )
    return tuple(map(float, values))


def _negatives(fields: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Columns and values of the negatives, in order, empty ones left out: ``negative`` may be a list of several."""
    names = [str(name) for name in fields if _NEGATIVE.fullmatch(str(name))]
    found: list[tuple[str, Any]] = []
    for name in sorted(names, key=lambda name: (len(name), name)):
        value = fields[name]
        values = value if isinstance(value, list) and not name[-1].isdigit() else [value]
        found += [(name, value) for value in values if value not in (None, "")]
    return found


def _side_of_value(value: Any, root: Path, rationale: str = "", answer: str = "") -> Side:
    texts: list[str] = []
    media: dict[str, list[Any]] = {"image": [], "video": []}
    for part in value if isinstance(value, list) else [value]:
        if isinstance(part, Mapping) and part and set(part) <= {*MODALITIES, "images", "videos"}:
            texts += [part["text"]] if part.get("text") else []
            media["image"] += [_resolve(path, root) for path in _media(part, "image")]
            media["video"] += [_resolve_video(video, root) for video in _videos(part)]
        elif isinstance(part, (str, int, float)) and not isinstance(part, bool):
            kind = _media_kind(str(part), root)
            (media[kind] if kind else texts).append(_resolve(part, root) if kind else str(part))
        else:
            raise RowError("unknown value", f"{_name_type(part)} is neither a text nor media")
    return _checked(Side("\n".join(texts).strip(), tuple(media["image"]), tuple(media["video"]), rationale, answer))


def _name_type(value: Any) -> str:
    """How a message names a value; what a table held and JSON cannot hold says its type itself."""
    if isinstance(value, Mapping):
        return str(value.get("unknown value", f"a dict with the keys {', '.join(map(str, value))}"))
    return f"a value of type {type(value).__name__}"


def _media_kind(text: str, root: Path) -> str | None:
    """Whether a string is a picture or a clip: a data URI, or a path with such an ending.

    One with a blank in it is a path only where the file exists: a sentence may end in a file's name.
    """
    if text.startswith("data:"):
        return "video" if text.startswith("data:video") else "image"
    ending = text.lower().endswith
    kind = "image" if ending(_PICTURES) else "video" if ending(_CLIPS) else None
    if kind and len(text.split()) > 1:
        return kind if len(text) < 256 and (root / text).is_file() else None
    return kind


def _parse_pair(fields: Any, root: Path) -> Pair:
    absent = [side for side in ("qry", "pos") if not isinstance(fields.get(side), Mapping)]
    if absent:
        raise RowError("missing side", f"the row has no {' and no '.join(absent)}")
    name = next((fields[key] for key in _DATASET_KEYS if isinstance(fields.get(key), str)), "unnamed")
    negatives = tuple(_parse_side(side, root) for side in fields.get("neg") or ())
    scores = _read_scores(fields, len(negatives))
    return Pair(name, _parse_side(fields["qry"], root), _parse_side(fields["pos"], root), negatives, scores)


def _parse_side(fields: Mapping[str, Any], root: Path) -> Side:
    turns: dict[str, str] = {}
    for turn in fields.get("conversations") or fields.get("messages") or ():
        said = turn.get("from") or turn.get("role")
        role = _ROLES.get(said, said)
        if role in turns or role not in ("user", "assistant"):
            kind = "another turn" if role in turns else "a turn"
            raise RowError("several turns", f"a side has {kind} of {role!r}; a side is one question and one reply")
        turns[role] = turn.get("value") or turn.get("content") or ""
    question, reply = turns.get("user", ""), turns.get("assistant", "")
    images = tuple(_resolve(path, root) for path in _media(fields, "image"))
    videos = tuple(_resolve_video(video, root) for video in _videos(fields))
    marks = Counter(_MEDIA_MARK.findall(question))
    for kind, media in (("image", images), ("video", videos)):
        if marks[kind] and marks[kind] != len(media):
            raise RowError("miscounted media", f"the text names {marks[kind]} {kind}s, the row has {len(media)}")
    text = _ANCHOR_MARK.sub("", _MEDIA_MARK.sub("", question)).strip()
    return _checked(Side(text, images, videos, *_read_reply(reply)))


def _read_reply(reply: str) -> tuple[str, str]:
    """Rationale and answer of a reply; each may be missing."""
    thought, answer = _THINK.search(reply), _ANSWER.search(reply)
    return (
        _EMBEDDING_MARK.sub("", thought[1]) if thought else "",
        _EMBEDDING_MARK.sub("", answer[1]).strip() if answer else "",
    )


def _checked(side: Side) -> Side:
    if not (side.text or side.images or side.videos):
        raise RowError("empty side", "a side has neither text nor media")
    if "\0" in side.text + side.rationale + side.answer:
        raise RowError("unreadable text", "a text holds the character NUL")
    return side


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
    if isinstance(path, Mapping) and set(path) == {"path"}:
        path = path["path"]
    if not isinstance(path, str):
        raise RowError("unknown media", f"media are given as {_name_type(path)}, not as a path")
    if path.startswith("data:"):
        return path
    try:
        found = (root / path).resolve()
        exists = found.is_file()
    except (OSError, RuntimeError, ValueError) as error:  # too long, a loop of links, a NUL
        raise RowError("missing media", f"{path[:80]!r} is no usable path ({str(error)[:120]})") from error
    if root != found and root not in found.parents:
        raise RowError("media outside the root", f"{path!r} leads outside the media root {root}. {_NAME_THE_ROOT}")
    if not exists:
        raise RowError("missing media", f"{path!r} is not in the media root {root}. {_NAME_THE_ROOT}")
    return str(found)


class Held(NamedTuple):
    """What an unparsed row holds: rationales on both sides, how many hard negatives, a teacher's scores."""

    rationales: bool
    negatives: int
    scores: bool


def add_negatives(fields: Any, sources: Sequence[Any], place: str) -> Any:
    """An unparsed row with the positives of other rows, and their rationales, as further hard negatives.

    Args:
        fields: The row.
        sources: The other rows.
        place: Where the row comes from, for the message.

    Raises:
        ValueError: If it has a teacher's scores, which new negatives lack, or one of the others has another format.
    """
    if any(_is_list(fields.get(name)) for name in _SCORES):
        raise ValueError(f"{place} holds a teacher's scores, which mined negatives have not: mine first, then score.")
    is_column = "qry" not in fields
    if any(("qry" not in source) != is_column for source in sources):
        raise ValueError(f"{place} and its negatives have two formats, columns and UME-R1's: mine each file by itself.")
    if not is_column:
        return {**fields, "neg": [*(fields.get("neg") or ()), *(source["pos"] for source in sources)]}
    taken = [int(name.rpartition("_")[2]) for name in map(str, fields) if re.fullmatch(r"negative_\d+", name)]
    added = {}
    for number, source in enumerate(sources, start=max(taken, default=0) + 1):
        added[f"negative_{number}"] = _value_of(source, POSITIVE)
        if source.get(_RATIONALES[1]):
            added[f"rationale_negative_{number}"] = source[_RATIONALES[1]]
    return {**fields, **added}


def describe_fields(row: Any) -> Held:
    """What an unparsed row holds."""
    if not isinstance(row, Mapping):
        return Held(False, 0, False)
    scores = any(_is_list(row.get(name)) for name in _SCORES)
    if "qry" in row or "pos" in row:
        negatives = row.get("neg")
        thoughts = ["<think>" in json.dumps(row.get(side)) for side in ("qry", "pos")]
        return Held(all(thoughts), len(negatives) if isinstance(negatives, list) else 0, scores)
    return Held(all(row.get(name) for name in _RATIONALES), len(_negatives(row)), scores)

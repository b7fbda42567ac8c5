"""Training pairs: query and positive, with media, rationale, answer and hard negatives.

1. **Read** files or datasets in any of the formats (:mod:`.sources`, :func:`load_rows`); a row stays one JSON string
   until a worker needs it, because rows differ in their fields.
2. **Parse** a row into a :class:`Pair` (:mod:`.pairs`); anything unusable is a :class:`RowError` that names the fault.
3. **Write** rows to train on, for the commands that add to them (:func:`write_rows`).
4. **Check** a whole corpus: ``python -m plume.training.data check FILE... [--media_root DIR] [--report FILE]``.
"""

import hashlib
import json
import os
from base64 import b64decode
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from datasets import Dataset, IterableDataset
from tqdm import tqdm
from transformers.utils import logging

from .pairs import Pair, RowError, Side, add_negatives, describe_fields, name_dataset, parse_row, unused_columns
from .sources import CLIP, Unreadable, read_source, refuse_absent

__all__ = [
    "CLIP",
    "Contents",
    "Pair",
    "Report",
    "RowError",
    "Side",
    "add_negatives",
    "check",
    "describe_root",
    "folder_of",
    "load_rows",
    "look",
    "parse_columns",
    "parse_row",
    "read_all",
    "read_pair",
    "with_files",
    "write_rows",
]
logger = logging.get_logger(__name__)

Source: TypeAlias = str | Dataset | IterableDataset
_LOOKED_AT = 10_000  # rows


def parse_columns(renamed: Sequence[str]) -> dict[str, str]:
    """Our names of columns to those of the data, from ``query=caption`` and the like.

    Raises:
        ValueError: If one has no ``=``.
    """
    pairs = [text.partition("=") for text in renamed]
    if bad := [name for name, sign, theirs in pairs if not (name and sign and theirs)]:
        raise ValueError(f"--column {bad[0]} renames nothing. Write OURS=YOURS, for example query=caption.")
    return {name: theirs for name, _, theirs in pairs}


def load_rows(
    sources: Sequence[Source], streaming: bool = False, columns: Mapping[str, str] | None = None
) -> Dataset | IterableDataset:
    """Rows of files and datasets, as columns ``row`` (JSON), ``dataset``, ``place`` and ``problem``.

    Embedded pictures and clips travel in the JSON, in memory; stream, or give paths, where that is too much.

    Args:
        sources: As in :func:`~plume.training.data.sources.read_source`.
        streaming: Read while training instead of before.
        columns: Our names of columns to those of the data, where they differ.

    Raises:
        ValueError: If a file does not exist or holds no rows.
    """
    for source in sources:
        if isinstance(source, str):
            refuse_absent(source)
    # A tuple, not a list, which would make every file a shard: ranks must read equally many rows.
    arguments: dict[str, Any] = {"sources": tuple(sources), "columns": dict(columns or {})}
    if streaming:
        return IterableDataset.from_generator(_generate, gen_kwargs=arguments)
    rows = list(_generate(**arguments))
    if not rows:
        raise ValueError(f"The training files {list(sources)} hold no rows, so there is nothing to train on.")
    first = next((row["row"] for row in rows if not row["problem"]), "null")
    if unused := unused_columns(json.loads(first)):
        logger.warning(f"Columns that training does not use: {', '.join(unused)}.")
    return Dataset.from_list(rows)


def _generate(sources: Sequence[Source], columns: Mapping[str, str]) -> Iterator[dict[str, str]]:
    for source in sources:
        for place, found in read_source(source):
            row: Any = found
            if isinstance(row, Mapping) and columns:
                theirs = {name: row[theirs] for name, theirs in columns.items() if theirs in row}
                row = {**{key: value for key, value in row.items() if key not in columns.values()}, **theirs}
            text, problem = ("", row.reason) if isinstance(row, Unreadable) else _dump(row)
            yield {"row": text, "dataset": "" if problem else name_dataset(row), "place": place, "problem": problem}


def _dump(row: Any) -> tuple[str, str]:
    """A row as JSON, or empty, and what is wrong with it."""
    try:
        text = json.dumps(row, ensure_ascii=False)
        text.encode("utf-8")
    except RecursionError:
        return "", "it is nested too deeply for a training row"
    except UnicodeEncodeError as error:
        half = ord(error.object[error.start])
        return "", f"it holds half a character (\\u{half:x}), such as one half of an emoji"
    return text, ""


def read_pair(row: Mapping[str, str], media_root: str | None = None) -> Pair:
    """The pair of a row of :func:`load_rows`.

    Raises:
        RowError: If the row could not be read, or as in :func:`parse_row`.
    """
    if problem := row.get("problem"):
        raise RowError("unreadable row", problem)
    return parse_row(row["row"], media_root)


def read_all(rows: Iterable[Mapping[str, str]], media_root: str | None = None) -> list[Pair]:
    """The pairs of all rows.

    Raises:
        ValueError: If one is unusable; the message names its place.
    """
    pairs = []
    for row in rows:
        try:
            pairs.append(read_pair(row, media_root))
        except RowError as error:
            raise ValueError(f"{row['place']} is unusable: {error}. Mend the row or leave it out.") from error
    return pairs


def with_files(content: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A side whose embedded clips are files in ``folder``: they are decoded from files only."""
    videos = content.get("video", [])
    for index, video in enumerate(videos):
        if isinstance(video, str) and video.startswith(CLIP):
            file = folder / f"{hashlib.sha256(video.encode()).hexdigest()}.mp4"
            file.write_bytes(b64decode(video.removeprefix(CLIP)))
            videos[index] = str(file)
    return content


def folder_of(sources: Sequence[str]) -> str | None:
    """The folder of the first file that lies here, which media paths are relative to unless told otherwise."""
    return next((str(Path(name).parent) for name in sources if Path(name).exists()), None)


def write_rows(output: Path, rows: Iterable[Any]) -> None:
    """Write unparsed rows as JSON lines: all of them, or the file stays as it was."""
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(f".{output.name}.partial")
    with partial.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    partial.replace(output)


def describe_root(root: str | None, output: Path) -> str:
    """What training needs to know of the media of rows that were written to another folder; empty if nothing."""
    if root is None or Path(root).resolve() == output.parent.resolve():
        return ""
    return f"Paths of media are still relative to {root}: train with --media-root {root}.\n"


class Contents(NamedTuple):
    """What rows hold: how many have rationales on both sides, the most hard negatives, how many a teacher's scores."""

    rationales: int
    negatives: int
    scores: int


def look(rows: Iterable[Mapping[str, str]]) -> Contents:
    """What the first rows of :func:`load_rows` hold."""
    found = [describe_fields(json.loads(row["row"] or "null")) for row in islice(rows, _LOOKED_AT)]
    return Contents(
        sum(held.rationales for held in found),
        max((held.negatives for held in found), default=0),
        sum(held.scores for held in found),
    )


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
    collate: Callable[[list[dict[str, str]]], Any] | None = None,
) -> tuple[Report, list[int]]:
    """Read every row; count per dataset and per problem.

    Args:
        rows: From :func:`load_rows`.
        media_root: As in :func:`parse_row`.
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
            pair = read_pair(row, media_root)
            if collate is not None:
                collate([row])
        except ValueError as error:
            kind = error.kind if isinstance(error, RowError) else "cannot be encoded"
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

"""Rows of any file or dataset, one by one, with the place each comes from.

Text formats are read line by line and never stop at a bad line: what cannot be read becomes an :class:`Unreadable` with
its line and reason. Tables (Parquet, Arrow, ``datasets``) are read through ``datasets``. Every row ends as values that
JSON can hold: embedded pictures and clips become data URIs.
"""

import csv
import io
import json
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset, IterableDataset, load_dataset, load_from_disk
from PIL import Image, UnidentifiedImageError
from pyarrow import ArrowException

PICTURE, CLIP = "data:image;base64,", "data:video;base64,"
# How clips begin: Matroska and WebM, AVI, MPEG; MP4 and MOV have their name after the length.
_CLIP_STARTS = (b"\x1aE\xdf\xa3", b"RIFF", b"\x00\x00\x01\xba", b"OggS", b"FLV")
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_UNKNOWN = "unknown value"


@dataclass(frozen=True)
class Unreadable:
    """A row that could not be read."""

    reason: str


def read_source(source: str | Dataset | IterableDataset) -> Iterator[tuple[str, Any]]:
    """Rows of one source as ``(place, row)``.

    Args:
        source: A file (.jsonl, .ndjson, .json, .csv, .tsv, .parquet, .arrow), a folder of ``Dataset.save_to_disk`` or
            one that ``datasets`` knows, a Hub name as ``name[:config[:split]]``, or a dataset.

    Raises:
        ValueError: If a file does not exist or has another ending.
    """
    if isinstance(source, (Dataset, IterableDataset)):
        yield from _read_table(source, "dataset")
        return
    path = Path(source)
    ending = path.suffix.lower()
    if ending in _TEXTS:
        yield from _TEXTS[ending](path)
    elif ending in _TABLES:
        yield from _read_table_file(path, _TABLES[ending])
    elif (path / "state.json").is_file():
        yield from _read_table(load_from_disk(source), source)
    else:
        name, _, rest = source.partition(":")
        config, _, split = rest.partition(":")
        yield from _read_table(load_dataset(name, config or None, split=split or "train", streaming=True), source)


def refuse_absent(source: str) -> None:
    """Refuse a file that does not exist or has an ending that is not read.

    Raises:
        ValueError: If it is one; names of datasets pass.
    """
    path, known = Path(source), [*_TEXTS, *_TABLES]
    if path.suffix.lower() in known and not path.is_file():
        raise ValueError(f"The training file {source!r} does not exist. Check --train_files.")
    if path.is_file() and path.suffix.lower() not in known:
        raise ValueError(f"The training file {source!r} has none of the endings that are read: {', '.join(known)}.")


def _lines(path: Path) -> Iterator[tuple[int, str | Unreadable]]:
    """Lines of a text file from 1, blank ones left out; foreign encodings are found, not guessed."""
    with open(path, "rb") as file:
        if file.read(2) in _UTF16:
            yield 1, Unreadable("the file is UTF-16. Save it as UTF-8")
            return
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        for number, line in enumerate(file, start=1):
            yield number, _readable(line) or line


def _readable(text: str) -> Unreadable | None:
    """What is wrong with the characters of a line or file that was decoded with ``surrogateescape``."""
    if "\0" in text:
        return Unreadable("it holds NUL bytes. Save the file as UTF-8")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        byte = ord(text[error.start]) - 0xDC00
        return Unreadable(
            f"byte 0x{byte:02x} is no UTF-8; a file in Latin-1 or another encoding must be saved as UTF-8"
        )
    return None


def _parse_json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        return Unreadable(f"it is no JSON: {error}")
    except RecursionError:
        return Unreadable("it is no JSON of a training row: it is nested too deeply")


def _read_jsonl(path: Path) -> Iterator[tuple[str, Any]]:
    for number, line in _lines(path):
        if isinstance(line, Unreadable):
            yield f"{path}:{number}", line
        elif line.strip():
            yield f"{path}:{number}", _parse_json(line)


def _read_json(path: Path) -> Iterator[tuple[str, Any]]:
    pieces = [line for _, line in _lines(path)]
    bad = next(((number, line) for number, line in enumerate(pieces, 1) if isinstance(line, Unreadable)), None)
    if bad:
        yield f"{path}:{bad[0]}", bad[1]
        return
    found = _parse_json("".join(map(str, pieces)))
    if isinstance(found, Unreadable):
        yield f"{path}", found
    for number, row in enumerate(found if isinstance(found, list) else [], start=1):
        yield f"{path}:{number}", row
    if not isinstance(found, (list, Unreadable)):
        yield f"{path}", Unreadable("a .json file holds a list of rows. Rename a file of one row a line to .jsonl")


def _read_separated(separator: str) -> Callable[[Path], Iterator[tuple[str, Any]]]:
    def read(path: Path) -> Iterator[tuple[str, Any]]:
        csv.field_size_limit(2**31 - 1)  # a cell may be a picture; the limit is the process's
        bad: dict[int, Unreadable] = {}

        def lines() -> Iterator[str]:
            for number, line in _lines(path):
                if isinstance(line, Unreadable):
                    bad[number] = line
                    yield "\n"  # keeps the count; a blank line is no row
                else:
                    yield line

        rows, header = csv.reader(lines(), delimiter=separator), None
        for cells in rows:
            if header is None and bad:
                break  # without its header the file says nothing
            yield from ((f"{path}:{number}", bad.pop(number)) for number in sorted(bad))
            if header is None:
                header = cells or None
            elif cells and len(cells) != len(header):
                yield f"{path}:{rows.line_num}", Unreadable(f"it has {len(cells)} cells, the header has {len(header)}")
            elif cells:
                yield f"{path}:{rows.line_num}", dict(zip(header, map(_parse_cell, cells), strict=True))
        yield from ((f"{path}:{number}", bad.pop(number)) for number in sorted(bad))

    return read


def _parse_cell(cell: str) -> Any:
    """A cell; one that holds a JSON list or object is that."""
    if cell[:1] in ("[", "{"):
        found = _parse_json(cell)
        return cell if isinstance(found, Unreadable) else found
    return cell or None


_TEXTS: dict[str, Callable[[Path], Iterator[tuple[str, Any]]]] = {
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_separated(","),
    ".tsv": _read_separated("\t"),
}
_TABLES = {".parquet": "parquet", ".arrow": "arrow"}


def _read_table_file(path: Path, kind: str) -> Iterator[tuple[str, Any]]:
    number = 0
    try:
        table = load_dataset(kind, data_files=str(path), split="train", streaming=True)
        for row in _read_table(table, str(path)):
            number += 1
            yield row
    except (OSError, ArrowException) as error:
        yield f"{path}:{number + 1}", Unreadable(f"the table cannot be read from here on: {error}")


def _read_table(table: Dataset | IterableDataset, name: str) -> Iterator[tuple[str, Any]]:
    rows = table.to_iterable_dataset() if isinstance(table, Dataset) else table
    for number, row in enumerate(rows.decode(False) if rows.features else rows, start=1):
        yield f"{name}:{number}", {key: _as_json(value) for key, value in row.items()}


def _as_json(value: Any) -> Any:
    """A value of a table as JSON can hold it."""
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, bytes):
        return _embed(value)
    if isinstance(value, Image.Image):
        file = io.BytesIO()
        value.save(file, "PNG", exif=value.getexif())
        return _embed(file.getvalue())
    if isinstance(value, Mapping):
        if set(value) == {"bytes", "path"}:  # a picture or clip of `datasets`
            return _embed(value["bytes"] or Path(value["path"]).read_bytes())
        return {key: _as_json(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_as_json(part) for part in value]
    return {_UNKNOWN: type(value).__name__}


def _embed(content: bytes) -> Any:
    if content.startswith(_CLIP_STARTS) and content[8:12] != b"WEBP" or content[4:8] == b"ftyp":
        return CLIP + b64encode(content).decode()
    try:
        with Image.open(io.BytesIO(content)):
            return PICTURE + b64encode(content).decode()
    except (OSError, ValueError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError):
        return {_UNKNOWN: f"{len(content)} bytes that are neither a picture nor a clip"}

"""Chunks of the plan: which are left, what is in them, how their results are committed.

The result of a chunk is written under another name and renamed, which happens at once or not at all. A chunk has one
name for its result, so neither a second try nor a worker that outlives a killed job can write it twice.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from plume.apps.shared.documents import Document, File, load
from plume.apps.shared.encoder import Encoder
from plume.apps.shared.limits import Limits, decode_picture
from plume.apps.shared.rows import build_row, row_schema
from plume.apps.shared.terminal import plain

Vectors = Sequence[np.ndarray | ValueError]
READING = "*.reading"  # files below writing/ in which workers say what they do
_SHOWN_CHARACTERS = 60


def unfinished(output: Path) -> list[str]:
    """Names of the chunks without a result; what a killed job left half written is removed."""
    for name in ("vectors", "writing"):
        (output / name).mkdir(exist_ok=True)
    for abandoned in [*(output / "writing").glob("*-*.parquet"), *(output / "writing").glob(READING)]:
        abandoned.unlink(missing_ok=True)
    chunks = sorted(path.name for path in (output / "plan").glob("*.parquet"))
    return [name for name in chunks if not (output / "vectors" / name).exists()]


def count_documents(output: Path, chunks: Sequence[str]) -> int:
    """Number of documents in some chunks."""
    return sum(pq.read_metadata(output / "plan" / name).num_rows for name in chunks)


def embed_chunk(
    output: Path,
    chunk: str,
    encoder: Encoder,
    embed: Callable[[list[Any]], Vectors],
    show: Callable[[str], object] = lambda doing: None,
) -> int:
    """Load, embed and commit one chunk.

    A document that cannot be embedded keeps its row, with the reason in ``error`` and a vector of zeros.

    Args:
        output: Folder of the job.
        chunk: Name of the chunk.
        encoder: Whose processor and dimension to use.
        embed: Gives per input its vector ``(D,)``, or why there is none.
        show: Told what is being read or embedded.

    Returns:
        Number of documents.
    """
    rows = pq.read_table(output / "plan" / chunk).to_pylist()
    contents = []
    for row in rows:
        show(plain(f"reading {row['path']}"[:_SHOWN_CHARACTERS]))
        contents.append(_load(row, encoder))
    usable = [content for content in contents if not isinstance(content, Exception)]
    show(plain(f"embedding {len(usable)} documents from {rows[0]['path']}"[:_SHOWN_CHARACTERS]))
    vectors = iter(embed(usable) if usable else [])
    results = []
    for row, content in zip(rows, contents, strict=True):
        facts = {name: value for name, value in row.items() if name != "media"}
        vector = content if isinstance(content, Exception) else next(vectors)
        error = str(vector) if isinstance(vector, Exception) else ""
        shown = {} if isinstance(content, Exception) else content
        result = np.zeros(encoder.dimension, np.float32) if isinstance(vector, Exception) else vector
        results.append({**build_row(facts, shown, result), "error": error})
    schema = row_schema(encoder.dimension).append(pa.field("error", pa.string()))
    waiting = output / "writing" / f"{os.getpid()}-{chunk}"
    pq.write_table(pa.Table.from_pylist(results, schema=schema), waiting)
    waiting.replace(output / "vectors" / chunk)
    return len(rows)


def _load(row: dict[str, Any], encoder: Encoder) -> dict[str, Any] | Exception:
    try:
        if row["text"] or row["media"]:  # of a Parquet corpus
            content: dict[str, Any] = {"image": decode_picture(row["media"], Limits())} if row["media"] else {}
            return {**content, "text": row["text"]} if row["text"] else content
        file = File(row["root"], row["path"], row["kind"], row["stamp"])
        if file.current_stamp() != file.stamp:
            return ValueError("The file has changed since the job was planned. Plan it again in another folder.")
        return load(Document(file, row["part"]), encoder, Limits())
    except (ValueError, OSError) as error:
        return error

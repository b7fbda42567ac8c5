"""The plan of a job: every document of the corpus once, with an id that stays. A resumed job follows the same plan.

Folder of a job::

    job.json        what embeds, and what it embeds
    plan/           the documents, in files of a few hundred: the units in which work is handed out and committed
    vectors/        the results, under the same names; documents that failed are there too, with ``error``
    writing/        results that are not complete
    skipped.json    files of the corpus that are no documents
"""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from tqdm import tqdm

from plume.apps.shared.documents import Skipped, list_files, split
from plume.apps.shared.encoder import Encoder
from plume.apps.shared.limits import Limits, MediaError
from plume.apps.shared.rows import JOB_FILE, same_checkpoint
from plume.apps.shared.terminal import plain

_FIELDS = [("id", pa.string()), ("root", pa.string()), ("path", pa.string()), ("part", pa.int32())]
_FIELDS += [("parts", pa.int32()), ("kind", pa.string()), ("stamp", pa.string()), ("digest", pa.string())]
_FIELDS += [("text", pa.string()), ("media", pa.binary())]
_SCHEMA = pa.schema(_FIELDS)


def make_plan(corpus: Path, output: Path, encoder: Encoder, chunk: int) -> int:
    """Write the plan, or find it again.

    Args:
        corpus: A folder, or a Parquet file or folder of those with the columns ``id``, ``text`` and ``image``
            (bytes of a picture file), the last two optional and possibly null.
        output: Folder of the job.
        encoder: What will embed.
        chunk: Documents per unit of work.

    Returns:
        Number of documents.

    Raises:
        ValueError: If the folder holds another job, or the corpus has no document or one id twice.
    """
    job = {
        "corpus": str(corpus.resolve()),
        "model": encoder.identity,
        "num_latent_steps": encoder.config.check_num_latent_steps(task="document"),
        "dimension": encoder.dimension,
    }
    if (output / JOB_FILE).is_file():
        _check_same(job, json.loads((output / JOB_FILE).read_text(encoding="utf-8")), output)
        return ds.dataset(output / "plan", format="parquet").count_rows()
    _clear_plan(output / "plan")
    skipped: list[Skipped] = []
    parquet = corpus.suffix == ".parquet" or any(corpus.glob("*.parquet"))
    documents = _rows_of_parquet(corpus) if parquet else _rows_of_folder(corpus, skipped)
    seen: set[str] = set()
    number = 0
    while some := list(islice(documents, chunk)):
        _check_ids(some, seen)
        pq.write_table(pa.Table.from_pylist(some, schema=_SCHEMA), output / "plan" / f"{number:06d}.parquet")
        number += 1
    if not seen:
        raise ValueError(f"{corpus} holds no document, so there is nothing to embed. Check the path.")
    _write_json(output / "skipped.json", [asdict(skip) for skip in skipped])
    _write_json(output / JOB_FILE, job)  # last: a plan without it is not complete
    return len(seen)


def _clear_plan(folder: Path) -> None:
    """Remove the chunks of a run that died while planning, and nothing else."""
    folder.mkdir(parents=True, exist_ok=True)
    found = sorted(folder.iterdir())
    if foreign := [path for path in found if not re.fullmatch(r"\d{6}\.parquet", path.name)]:
        raise ValueError(
            f"{folder} holds {foreign[0].name}, which is no part of a job, so planning there would mix the two. Give "
            "an --output of its own."
        )
    for chunk in found:
        chunk.unlink()


def _rows_of_folder(corpus: Path, skipped: list[Skipped]) -> Iterator[dict[str, Any]]:
    bar = tqdm(list(list_files(corpus)), unit="file", desc="plan")
    for file in bar:
        bar.set_postfix_str(plain(file.path[-60:]))
        if isinstance(file, Skipped):
            skipped.append(file)
            continue
        try:
            documents, digest = split(file, Limits()), file.digest()
        except (MediaError, OSError) as error:
            skipped.append(Skipped(file.path, str(error)))
            continue
        for document in documents:
            yield document.facts(len(documents), digest)


def _rows_of_parquet(corpus: Path) -> Iterator[dict[str, Any]]:
    source = ds.dataset(corpus, format="parquet")
    names = {"id", "text", "image"}
    if "id" not in source.schema.names or names.isdisjoint(set(source.schema.names) - {"id"}):
        raise ValueError(f"{corpus} has the columns {source.schema.names}. It needs id, and text or image or both.")
    for some in tqdm(source.to_batches(columns=sorted(names & set(source.schema.names))), unit="batch", desc="plan"):
        for row in some.to_pylist():
            text, media = row.get("text") or "", row.get("image") or b""
            facts = {"id": str(row["id"]), "root": str(corpus.resolve()), "path": str(row["id"]), "part": 1, "parts": 1}
            digest = hashlib.sha256(text.encode("utf-8", "surrogatepass") + b"\0" + media).hexdigest()
            yield {**facts, "kind": "picture" if media else "text", "stamp": "", "digest": digest} | {
                "text": text,
                "media": media,
            }


def _check_ids(rows: list[dict[str, Any]], seen: set[str]) -> None:
    for row in rows:
        if row["id"] in seen:
            raise ValueError(f"The id {row['id']!r} occurs twice, so its vectors would be mixed up. Make ids unique.")
        seen.add(row["id"])


def _check_same(job: dict[str, Any], before: dict[str, Any], output: Path) -> None:
    for name, value in job.items():
        if not (same_checkpoint(before[name], value) if name == "model" else before[name] == value):
            raise ValueError(
                f"{output} holds a job whose {name} is {before[name]}, now it is {value}; its vectors would be mixed. "
                "Continue with the same, or write into another folder."
            )


def _write_json(path: Path, content: Any) -> None:
    waiting = path.with_suffix(".part")
    waiting.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    waiting.replace(path)

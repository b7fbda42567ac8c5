"""From a row of the table to an mteb task.

1. **Find the data**: the folder ``data_root/<dataset_folder or repo>`` where it exists, the Hub otherwise.
2. **Parse** them (``parsers``).
3. **Lay out** queries, corpus, relevance and pools as mteb reads them. Document ids are hashes and everything is sorted
   by them, so that ties are broken independently of relevance and a constant model scores at chance.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, Value, concatenate_datasets, load_dataset
from datasets.config import HF_DATASETS_CACHE
from mteb import TaskMetadata
from mteb.abstasks.retrieval import AbsTaskRetrieval

from plume.evaluation.parsers import PAGES, MediaFiles, Parsed, parse
from plume.evaluation.parsers.common import candidate_id, to_dataset
from plume.evaluation.parsers.images import clean_instruction
from plume.evaluation.table import METRICS, PROMPT_SETS, Row

_DATA_ENDINGS = (".parquet", ".json", ".jsonl", ".csv", ".arrow", ".md")
# Letters of mteb's category; an input of a mixed task has the video column and says in `medium` what it is.
_LETTERS = {"text": "t", "image": "it", "image+text": "it", "video": "vt", "video+text": "vt", "any": "vt"}


class TableTask(AbsTaskRetrieval):
    """A row of the table as an mteb task; made by :func:`make_task`, filled by ``load_data``."""

    metadata: TaskMetadata
    row: Row
    media: MediaFiles
    data_root: Path
    prompt_set: str
    k_values: Sequence[int] = (1, 5, 10)

    def load_data(self, num_proc: int | None = None, **kwargs: Any) -> None:
        """Read and parse the data into ``self.dataset``; does nothing when done already.

        Raises:
            ValueError: If data or media are missing or unusable.
        """
        if self.data_loaded:
            return
        data = read_data(self.row, self.data_root)
        parsed = parse(self.row, data, self.media, self.prompt_set)
        split: Any = lay_out(self.row, parsed)
        self.dataset = {"default": {self.row.dataset["split"]: split}}
        self.data_loaded = True


def make_task(
    row: Row,
    data_root: str | Path,
    prompt_set: str = "clean",
    media_root: str | Path | None = None,
    num_frames: int | None = None,
) -> TableTask:
    """The mteb task of a row. Data are read by ``load_data()``, which mteb calls.

    Args:
        row: The task.
        data_root: Folder of local copies of the data sets, one folder per repository.
        prompt_set: ``"clean"`` (VLM2Vec's wording) or ``"official"`` (that of the authors' evaluation).
        media_root: Folder of images and frames. Defaults to ``data_root``.
        num_frames: Frames per clip. Defaults to the table's.

    Raises:
        ValueError: If ``prompt_set`` is unknown.
    """
    if prompt_set not in PROMPT_SETS:
        raise ValueError(f"The prompt set {prompt_set!r} is unknown. Use one of {', '.join(PROMPT_SETS)}.")
    category: Any = f"{_LETTERS[row.query.modality]}2{_LETTERS[row.candidate.modality]}"
    metadata = TaskMetadata(
        name=row.id,
        description=f"{row.id} of {row.benchmark} {row.version}, prompts: {prompt_set}",
        dataset={"path": row.dataset["repo"], "revision": row.dataset.get("revision") or "unpinned"},
        type="Any2AnyRetrieval",
        category=category,
        modalities=["text", "image", "video"],
        eval_splits=[row.dataset["split"]],
        eval_langs=["eng-Latn"],
        main_score=METRICS[row.metric],
    )
    task = type("TableTask", (TableTask,), {"metadata": metadata})()
    task.row, task.data_root, task.prompt_set = row, Path(data_root), prompt_set
    task.media = MediaFiles(row, Path(media_root or data_root), num_frames)
    return task


def read_data(row: Row, data_root: Path) -> dict[str, Dataset]:
    """The data of a task by name, as :func:`~plume.evaluation.parsers.parse` takes them.

    Raises:
        ValueError: If they can be read neither locally nor from the Hub.
        ConnectionError: If the Hub cannot be reached: no other task that needs it would run either.
    """
    if row.parser == PAGES:
        return {config: _load(row, config, data_root) for config in ("queries", "corpus", "qrels")}
    config = row.dataset.get("config")
    if isinstance(config, (list, tuple)):
        parts = [_load(row, name, data_root) for name in config]
        parts = [part.add_column("subset", [name] * len(part)) for name, part in zip(config, parts, strict=True)]
        return {"rows": concatenate_datasets(parts)}
    rows, limit = _load(row, config, data_root), row.dataset.get("limit")
    return {"rows": rows.select(range(min(limit, len(rows)))) if limit else rows}


def data_folder(row: Row, data_root: Path) -> Path:
    """Where a local copy of the task's data set lies, if there is one."""
    return data_root / (row.extras.get("dataset_folder") or row.dataset["repo"])


def _load(row: Row, config: str | None, data_root: Path) -> Dataset:
    folder, repo = data_folder(row, data_root), row.dataset["repo"]
    is_local = folder.is_dir()
    source, revision = (str(folder), None) if is_local else (repo, row.dataset.get("revision"))
    cache = str(Path(HF_DATASETS_CACHE) / "plume-local" / _state(folder)) if is_local else None
    try:
        return load_dataset(source, config, split=row.dataset["split"], revision=revision, cache_dir=cache)
    except ConnectionError as error:
        raise ConnectionError(
            f"The data of {row.id} could not be read: {str(folder)!r} has no copy of {repo}, and the Hub cannot be "
            f"reached ({error}). Other tasks without a copy would fail alike, so the run ends here; finished tasks are "
            "kept. Check the connection, put copies there, or name the tasks that have one with --tasks."
        ) from error
    except (ValueError, OSError) as error:  # the Hub's and the file system's errors are kinds of these
        raise ValueError(
            f"The data of {row.id} could not be read from {source!r} (config {config!r}, split "
            f"{row.dataset['split']!r}): {error}. Put a copy of {repo} into {str(folder)!r}, or check the connection."
        ) from error


def _state(folder: Path) -> str:
    """A hash over where a local copy lies and which files it has.

    ``datasets`` caches local folders by their name and config alone, so a changed or another folder of the same name
    would silently give the old rows.
    """
    files = [file for file in sorted(folder.rglob("*")) if file.suffix in _DATA_ENDINGS]
    seen = [(str(file.relative_to(folder)), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.blake2b(json.dumps([str(folder.resolve()), seen]).encode(), digest_size=12).hexdigest()


def check_data(row: Row, data_root: Path) -> list[str]:
    """Compare a task's data with the table, without reading media: number of queries, and the instructions in the data.

    Returns:
        The differences, in words.

    Raises:
        ValueError: If the data cannot be read.
    """
    data = read_data(row, data_root)
    rows = data.get("queries", data.get("rows"))
    assert rows is not None
    differences = []
    if row.num_queries and len(rows) != row.num_queries:
        differences.append(f"{len(rows)} queries, the table has {row.num_queries}")
    for column, side in (("qry_inst", row.query), ("tgt_inst", row.candidate)):
        written = clean_instruction(rows[0][column]) if column in rows.column_names else ""
        if written and side.instruction and written != side.instruction:
            differences.append(f"{column} is {written!r}, the table has {side.instruction!r}")
    return differences


def lay_out(row: Row, parsed: Parsed) -> dict[str, Any]:
    """Queries, corpus, relevance and pools as mteb reads them.

    Raises:
        ValueError: If the task has no query.
    """
    if not parsed.queries:
        raise ValueError(f"The task {row.id} has no query, so it has no score. Check its data set.")
    query_ids = [f"q{index:06d}" for index in range(len(parsed.queries))]
    relevant = {
        name: {candidate_id(key): grade for key, grade in grades.items()}
        for name, grades in zip(query_ids, parsed.relevant, strict=True)
    }
    top_ranked = None
    if row.pool == "local":
        assert parsed.pools is not None, "a parser without pools serves a local task"
        pools = [sorted({candidate_id(key) for key in pool}) for pool in parsed.pools]
        top_ranked = dict(zip(query_ids, pools, strict=True))
    return {
        "queries": to_dataset(query_ids, parsed.queries, row.query.modality),
        "corpus": _page_corpus(parsed) if parsed.pages is not None else _corpus(parsed, row.candidate.modality),
        "relevant_docs": relevant,
        "top_ranked": top_ranked,
    }


def _corpus(parsed: Parsed, modality: str) -> Dataset:
    items = sorted((candidate_id(key), item) for key, item in parsed.candidates.items())
    return to_dataset([name for name, _ in items], [item for _, item in items], modality)


def _page_corpus(parsed: Parsed) -> Dataset:
    pages = parsed.pages
    assert pages is not None
    names = [candidate_id(key) for key in pages["key"]]
    pages = pages.remove_columns("key").add_column("id", names).add_column("text", [parsed.page_text] * len(names))
    pages = pages.cast_column("text", Value("string"))
    return pages.select(sorted(range(len(names)), key=names.__getitem__))

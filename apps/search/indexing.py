"""From folders to an index, again and again: only what is new or has changed is embedded.

1. **Compare** every file with what is indexed: first by size and time, then by content.
2. **Load and embed** what is left, a few documents at a time, and commit them: a killed run loses one batch of work.
3. **Forget** what is gone: files that were deleted, pages that a file no longer has.

What cannot be indexed is listed with its reason, on screen and in ``skipped.json``.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from plume.apps.search.store import Index
from plume.apps.shared.documents import File, Skipped, list_files, load, split
from plume.apps.shared.encoder import Encoder
from plume.apps.shared.limits import Limits, MediaError
from plume.apps.shared.lock import locked
from plume.apps.shared.rows import build_row


@dataclass
class Report:
    """What a run did, in documents; ``skipped`` names files and parts of files."""

    embedded: int = 0
    unchanged: int = 0
    removed: int = 0
    skipped: list[Skipped] = field(default_factory=list)


def index_folders(
    folders: Sequence[Path], index: Index, encoder: Encoder, limits: Limits | None = None, batch: int = 16
) -> Report:
    """Bring the index up to date with some folders; documents of other folders stay as they are.

    Args:
        folders: The folders.
        index: The index, whose vectors are this encoder's.
        encoder: What embeds.
        limits: Bounds per file.
        batch: Documents per commit.

    Raises:
        ValueError: If a folder does not exist or another run is writing.
    """
    files = [file for folder in folders for file in list_files(folder)]
    with locked(index.folder):
        run = _Run(index, encoder, limits or Limits(), [str(folder.resolve()) for folder in folders])
        run.report.skipped += [file for file in files if isinstance(file, Skipped)]
        work = run.compare(tqdm([file for file in files if isinstance(file, File)], unit="file", desc="index"))
        while some := list(islice(work, batch)):
            run.embed(some)
        return run.finish()


class _Run:
    """One run; ``stale`` holds the ids of rows for which no document has been seen yet."""

    def __init__(self, index: Index, encoder: Encoder, limits: Limits, roots: Sequence[str]) -> None:
        self.index, self.encoder, self.limits, self.report = index, encoder, limits, Report()
        self.known = defaultdict(list)
        for row in index.known(roots):
            self.known[row["root"], row["path"]].append(row)
        self.stale = {row["id"] for rows in self.known.values() for row in rows}

    # 1. Compare

    def compare(self, files: Iterable[File]) -> Iterator[dict[str, Any]]:
        """Documents to embed, as rows that lack what they show and their vector."""
        for file in files:
            rows = self.known[file.root, file.path]
            if rows and len(rows) == rows[0]["parts"] and all(row["stamp"] == file.stamp for row in rows):
                self._keep([row["id"] for row in rows])
                continue
            try:
                documents, digest = split(file, self.limits), file.digest()
            except (MediaError, OSError) as error:
                self.report.skipped.append(Skipped(file.path, str(error)))
                continue
            same = [row["id"] for row in rows if row["digest"] == digest]
            self._keep(same)
            if same:
                self.index.stamp(same, file.stamp)
            for document in documents:
                if document.id not in same:
                    yield {"document": document, "parts": len(documents), "digest": digest}

    def _keep(self, ids: Sequence[str]) -> None:
        self.stale.difference_update(ids)
        self.report.unchanged += len(ids)

    # 2. Load and embed

    def embed(self, some: Sequence[dict[str, Any]]) -> None:
        """Embed some documents and commit them together."""
        loaded = []
        for work in some:
            try:
                loaded.append((work, load(work["document"], self.encoder, self.limits)))
            except (ValueError, OSError) as error:
                self._skip(work, error)
        vectors = self.encoder.try_encode([content for _, content in loaded]) if loaded else []
        rows = []
        for (work, content), vector in zip(loaded, vectors, strict=True):
            if isinstance(vector, ValueError):
                self._skip(work, vector)
            else:
                facts = work["document"].facts(work["parts"], work["digest"])
                rows.append(build_row(facts, content, vector))
        if rows:
            self.index.put(rows)
            self.stale.difference_update(row["id"] for row in rows)
            self.report.embedded += len(rows)

    def _skip(self, work: dict[str, Any], error: Exception) -> None:
        file, part = work["document"].file, work["document"].part
        name = file.path if work["parts"] == 1 else f"{file.path}, part {part}"
        self.report.skipped.append(Skipped(name, str(error)))

    # 3. Forget

    def finish(self) -> Report:
        """Remove what is gone, merge the many small commits into few files, write the list of what was skipped."""
        self.index.forget(sorted(self.stale))
        self.report.removed = len(self.stale)
        self.index.table.optimize()
        skipped = json.dumps([asdict(skip) for skip in self.report.skipped], indent=2, ensure_ascii=False)
        (self.index.folder / "skipped.json").write_text(skipped + "\n", encoding="utf-8")
        return self.report

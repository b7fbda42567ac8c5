"""From folders to an index, again and again: only what is new or has changed is embedded.

1. **Compare** every file with what is indexed: first by size and time, then by content.
2. **Load and embed** what is left, a few documents at a time, and commit them: a killed run loses one batch of work.
3. **Forget** what is gone: files that were deleted, pages that a file no longer has. What could not be looked at is
   not gone: a folder that cannot be read, or that is empty now as an unmounted disk is, keeps its documents.

What cannot be indexed is listed with its reason, on screen and in ``skipped.json``.
"""

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from plume.apps.search.store import Index
from plume.apps.shared.batches import BatchEncoder
from plume.apps.shared.documents import Document, File, Skipped, Unlisted, list_files, load, split
from plume.apps.shared.limits import Limits, MediaError
from plume.apps.shared.lock import locked
from plume.apps.shared.rows import build_row
from plume.apps.shared.terminal import plain

_SHOWN_CHARACTERS = 60  # of what the progress bar says


@dataclass
class Report:
    """What a run did, in documents; ``skipped`` names files and parts of files."""

    embedded: int = 0
    unchanged: int = 0
    removed: int = 0
    skipped: list[Skipped] = field(default_factory=list)


def index_folders(
    folders: Sequence[Path],
    index: Index,
    encoder: BatchEncoder,
    limits: Limits | None = None,
    batch: int = 16,
    forget_empty: bool = False,
) -> Report:
    """Bring the index up to date with some folders; documents of other folders stay as they are.

    Args:
        folders: The folders.
        index: The index, whose vectors are this encoder's.
        encoder: What embeds.
        limits: Bounds per file.
        batch: Documents per commit.
        forget_empty: Whether to forget the documents of folders that are empty now, too.

    Raises:
        ValueError: If a folder does not exist, another run is writing, or the disk is full.
    """
    files = [file for folder in folders for file in list_files(folder)]
    with locked(index.folder), tqdm(unit="file", desc="index") as bar:
        run = _Run(index, encoder, limits or Limits(), [str(folder.resolve()) for folder in folders], bar)
        run.report.skipped += [file for file in files if isinstance(file, Skipped)]
        bar.total = len(files) - len(run.report.skipped)
        work = run.compare(file for file in files if isinstance(file, File))
        while some := list(islice(work, batch)):
            run.embed(some)
        return run.finish(forget_empty)


class _Run:
    """One run; ``stale`` holds the rows for which no document has been seen yet, by id."""

    def __init__(self, index: Index, encoder: BatchEncoder, limits: Limits, roots: Sequence[str], bar: tqdm) -> None:
        self.index, self.encoder, self.limits, self.report, self.bar = index, encoder, limits, Report(), bar
        self.known = defaultdict(list)
        for row in index.known(roots):
            self.known[row["root"], row["path"]].append(row)
        self.stale = {row["id"]: row for rows in self.known.values() for row in rows}

    # 1. Compare

    def compare(self, files: Iterable[File]) -> Iterator[dict[str, Any]]:
        """Documents to embed, as rows that lack what they show and their vector."""
        for file in files:
            rows = self.known[file.root, file.path]
            if rows and len(rows) == rows[0]["parts"] and all(row["stamp"] == file.stamp for row in rows):
                self._keep([row["id"] for row in rows])
            else:
                yield from self._changed(file, rows)
            self.bar.update()

    def _changed(self, file: File, rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        self._show(f"reading {file.path}")
        try:
            self.limits.check_bytes(file.location.stat().st_size)
            digest = file.digest()  # reads all of it, so that a later fault is one of the content, not of the disk
            documents = split(file, self.limits)
        except FileNotFoundError:
            self.report.skipped.append(Skipped(file.path, "it vanished while the folder was indexed"))
            return
        except OSError as error:
            self._leave(Unlisted(file.path, f"it cannot be read ({error.strerror or error})", file.root))
            return
        except MediaError as error:
            self.report.skipped.append(Skipped(file.path, str(error)))
            return
        same = {row["id"] for row in rows if row["digest"] == digest}
        self._keep(same)
        if same:
            self.index.stamp(sorted(same), file.stamp)
        for document in documents:
            if document.id not in same:
                yield {"document": document, "parts": len(documents), "digest": digest}

    def _show(self, doing: str) -> None:
        """Show what takes time: files differ a thousandfold, so a count alone seems to hang."""
        self.bar.set_postfix_str(plain(doing[-_SHOWN_CHARACTERS:]))

    def _leave(self, unlisted: Unlisted) -> None:
        """Report what could not be looked at, and leave its rows as they are."""
        covered = [id for id, row in self.stale.items() if unlisted.covers(row["root"], row["path"])]
        self._keep(covered)
        stays = f"; its {len(covered)} documents stay" if covered else ""
        self.report.skipped.append(replace(unlisted, reason=unlisted.reason + stays))

    def _keep(self, ids: Collection[str]) -> None:
        for id in ids:
            self.stale.pop(id, None)
        self.report.unchanged += len(ids)

    # 2. Load and embed

    def embed(self, some: Sequence[dict[str, Any]]) -> None:
        """Embed some documents and commit them together."""
        loaded = []
        for work in some:
            document = work["document"]
            self._show(f"reading {_name(document, work['parts'])}")
            try:
                loaded.append((work, load(document, self.encoder, self.limits)))
            except OSError as error:
                self._leave(Unlisted(document.file.path, f"it cannot be read ({error.strerror})", document.file.root))
            except ValueError as error:
                self._skip(work, error)
        self._show(f"embedding {len(loaded)} documents up to {_name(document, work['parts'])}")
        contents, steps = [content for _, content in loaded], self.index.num_latent_steps
        vectors = self.encoder.try_encode(contents, "document", steps) if loaded else []
        rows = []
        for (work, content), vector in zip(loaded, vectors, strict=True):
            if isinstance(vector, ValueError):
                self._skip(work, vector)
            else:
                facts = work["document"].facts(work["parts"], work["digest"])
                rows.append(build_row(facts, content, vector))
        if rows:
            self.index.put(rows)
            for row in rows:
                self.stale.pop(row["id"], None)
            self.report.embedded += len(rows)

    def _skip(self, work: dict[str, Any], error: Exception) -> None:
        self.report.skipped.append(Skipped(_name(work["document"], work["parts"]), str(error)))

    # 3. Forget

    def finish(self, forget_empty: bool) -> Report:
        """Remove what is gone, merge the many small commits into few files, write the list of what was skipped."""
        for unlisted in [one for one in self.report.skipped if isinstance(one, Unlisted)]:
            self._keep([id for id, row in self.stale.items() if unlisted.covers(row["root"], row["path"])])
        if not forget_empty:
            for unlisted in self._empty_folders():
                self._leave(unlisted)
        self.index.forget(sorted(self.stale))
        self.report.removed = len(self.stale)
        self.index.optimize()
        skipped = json.dumps([asdict(skip) for skip in self.report.skipped], indent=2, ensure_ascii=False)
        (self.index.folder / "skipped.json").write_text(skipped + "\n", encoding="utf-8")
        return self.report

    def _empty_folders(self) -> list[Unlisted]:
        """Folders that are there, hold nothing, and held documents: a disk that is not mounted looks like this."""
        nearest = {(row["root"], _nearest_folder(Path(row["root"], row["path"]))) for row in self.stale.values()}
        reason = "it is empty now, as an unmounted disk is (--forget-empty, or removing the folder, forgets them)"
        return [
            Unlisted(folder.relative_to(root).as_posix(), reason, root)
            for root, folder in sorted(nearest)
            if not any(folder.iterdir())
        ]


def _nearest_folder(path: Path) -> Path:
    return next(folder for folder in path.parents if folder.is_dir())


def _name(document: Document, parts: int) -> str:
    return document.file.path if parts == 1 else f"{document.file.path}, part {document.part}"

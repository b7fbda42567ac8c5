"""A folder as documents: pictures, clips, pages of PDFs, passages of texts.

1. **List** the files (:func:`list_files`): what is no document is skipped with its reason, never silently.
2. **Split** a file into documents (:func:`split`): a PDF into pages, a text into passages, anything else is one.
3. **Load** a document (:func:`load`) as an input of the processor, within bounds.
"""

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from plume.apps.shared.batches import BatchEncoder
from plume.apps.shared.limits import Limits, MediaError, check_clip, decode_picture
from plume.apps.shared.texts import passages_of
from plume.arguments import KINDS
from plume.pages import MAX_PIXELS, count_pages
from plume.pages import render_page as render_any

_KIND_OF = {ending: kind for kind, endings in KINDS.items() for ending in endings}
T = TypeVar("T")


@dataclass(frozen=True)
class File:
    """A file of a folder.

    Attributes:
        root: The folder, absolute.
        path: Path below it, with slashes.
        kind: A key of :data:`~plume.arguments.KINDS`.
        stamp: Size and time of the last change: as long as it stays, the content is taken to stay.
    """

    root: str
    path: str
    kind: str
    stamp: str

    @property
    def location(self) -> Path:
        """Where it lies."""
        return Path(self.root, self.path)

    def current_stamp(self) -> str:
        """The stamp that it has now."""
        facts = self.location.stat()
        return f"{facts.st_size}-{facts.st_mtime_ns}"

    def digest(self) -> str:
        """Hash of the content."""
        digest = hashlib.sha256()
        with self.location.open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
        return digest.hexdigest()


@dataclass(frozen=True)
class Document:
    """One thing that can be found: a file, or a part of it, counted from 1."""

    file: File
    part: int

    @property
    def id(self) -> str:
        """A name that stays when the content changes."""
        place = "\0".join((self.file.root, self.file.path, str(self.part)))
        return hashlib.blake2b(place.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()

    def facts(self, parts: int, digest: str) -> dict[str, Any]:
        """The columns of its row that say where it is and in which state, see :mod:`plume.apps.shared.rows`."""
        place = {"id": self.id, "root": self.file.root, "path": self.file.path, "part": self.part, "parts": parts}
        return {**place, "kind": self.file.kind, "stamp": self.file.stamp, "digest": digest}


@dataclass(frozen=True)
class Skipped:
    """A file or folder that is no document, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class Unlisted(Skipped):
    """A file or folder that could not be looked at: nobody knows what is in it. ``root`` is that of :class:`File`."""

    root: str

    def covers(self, root: str, path: str) -> bool:
        """Whether a file is this one, or lies below it."""
        return root == self.root and (self.path in (".", path) or path.startswith(self.path + "/"))


def list_files(folder: Path) -> Iterator[File | Skipped]:
    """All files below a folder, folder by folder; links that lead out of it, and links to folders, are skipped.

    Raises:
        ValueError: If there is no such folder.
    """
    root = folder.resolve()
    if not root.is_dir():
        raise ValueError(
            f"{folder} is no folder, so there is nothing to index. Check the path, and that its disk is mounted."
        )
    errors: list[OSError] = []
    for place, folders, names in os.walk(root, onerror=errors.append):
        folders.sort()
        for name in sorted([*names, *(name for name in folders if Path(place, name).is_symlink())]):
            yield _look_at(Path(place, name), root)
        yield from _failed(errors, root)
    yield from _failed(errors, root)


def _failed(errors: list[OSError], root: Path) -> Iterator[Skipped]:
    """What could not be looked at; a folder that has vanished meanwhile is gone."""
    while errors:
        error = errors.pop()
        yield _describe(error, Path(error.filename), root)


def _describe(error: OSError, location: Path, root: Path) -> Skipped:
    path = location.relative_to(root).as_posix()
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return Skipped(path, "it vanished while the folder was listed")
    return Unlisted(path, f"it cannot be read ({error.strerror}); what is indexed of it stays", str(root))


def _look_at(location: Path, root: Path) -> File | Skipped:
    try:
        path, reason = location.relative_to(root).as_posix(), _why_skipped(location, root)
        if reason:
            return Skipped(path.encode("utf-8", "backslashreplace").decode(), reason)
        file = File(str(root), path, _KIND_OF[location.suffix.lower()], "")
        return replace(file, stamp=file.current_stamp())
    except OSError as error:
        return _describe(error, location, root)


def _why_skipped(location: Path, root: Path) -> str | None:
    try:
        str(location).encode("utf-8")
    except UnicodeEncodeError:
        return "its name is not UTF-8"
    if location.is_symlink() and not location.exists():
        return "a link that leads nowhere"
    if location.is_dir():
        return "a link to a folder, which is not followed"
    if location.suffix.lower() not in _KIND_OF:
        return f"unknown ending {location.suffix or '(none)'}"
    if not stat.S_ISREG(location.stat().st_mode):
        return "no regular file"
    return None if location.resolve().is_relative_to(root) else "a link that leads out of the folder"


def split(file: File, limits: Limits) -> list[Document]:
    """The documents in a file.

    Raises:
        MediaError: If the file is unreadable, empty, or exceeds the bounds.
    """
    limits.check_bytes(file.location.stat().st_size)
    count = 1
    if file.kind == "page":
        count = _within(count_pages, file.location)
        if count > limits.max_pages:
            raise MediaError(f"The PDF has {count} pages, more than the {limits.max_pages} allowed. Split it.")
    elif file.kind == "text":
        count = len(passages_of(file.location, file.stamp))
    if count == 0:
        raise MediaError("The file holds no text and no pages, so there is nothing to embed.")
    return [Document(file, part) for part in range(1, count + 1)]


def load(document: Document, encoder: BatchEncoder, limits: Limits) -> dict[str, Any]:
    """A document as an input of the processor: ``{"image": ...}``, ``{"video": clip}`` or ``{"text": ...}``.

    Raises:
        MediaError: If it is damaged or exceeds the bounds.
    """
    location = document.file.location
    if document.file.kind == "picture":
        return {"image": decode_picture(location, limits)}
    if document.file.kind == "clip":
        check_clip(location, limits)
        return {"video": encoder.clip(location)}
    if document.file.kind == "page":
        return {"image": render_page(location, document.part, limits)}
    return {"text": passages_of(location, document.file.stamp)[document.part - 1]}


def render_page(location: Path, part: int, limits: Limits) -> Image.Image:
    """A page of a PDF as a picture, whatever the size it claims.

    Raises:
        MediaError: If the page cannot be rendered.
    """
    return _within(render_any, location, part, min(MAX_PIXELS, limits.max_pixels))


def _within(read: Callable[..., T], *arguments: Any) -> T:
    """What ``read`` returns; its ValueError becomes a MediaError, which skips the file."""
    try:
        return read(*arguments)
    except ValueError as error:
        raise MediaError(str(error)) from error

"""Vectors of a long list, in files that survive a kill.

Finished rows lie in part files in ``OUTPUT.parts`` until all are there, and then become ``OUTPUT`` at once. Every file
is written next to its place and renamed. A part knows the condition it was made under and a digest of the items up to
its end, so that a later run goes on only from rows of the same items. Texts, pictures and arrays are told apart by
their contents, files by their paths.
"""

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedModel, ProcessorMixin

_SAMPLE = 8  # values per weight that tell two checkpoints apart
_NO_MATTER = ("_name_or_path", "transformers_version")  # fields of the configuration


@dataclass(frozen=True)
class Unit:
    """What becomes one vector: an item, or one page of an item that is a PDF (page 0: no page)."""

    index: int
    page: int
    item: Any


@dataclass(frozen=True)
class Failure:
    """An item, or a page of one, that has no vector.

    Attributes:
        index: Of the item.
        page: Of a PDF, from 1; 0 for the whole item.
        reason: Cause and fix.
    """

    index: int
    page: int
    reason: str


@dataclass(frozen=True)
class Embeddings:
    """Vectors of a list of items.

    Attributes:
        vectors: ``(N, D)``, fp32, unit length; NaN for a failed item that was asked to have a row.
        indices: Item of each vector, ``(N,)``.
        pages: Page number of each vector whose item is a PDF, else 0, ``(N,)``.
        failures: What has no vector, and why.
    """

    vectors: np.ndarray
    indices: np.ndarray
    pages: np.ndarray
    failures: list[Failure]

    def save(self, path: str | os.PathLike, **facts: str | int) -> None:
        """Write a ``.npz`` file, under another name first.

        Args:
            path: The file.
            **facts: Stored with it.
        """
        place = Path(path)
        waiting = place.with_name(f".{place.name}.partial")
        where = [(failure.index, failure.page) for failure in self.failures]
        with waiting.open("wb") as file:
            np.savez(
                file,
                vectors=self.vectors,
                indices=self.indices,
                pages=self.pages,
                failed=np.array(where, dtype=np.int64).reshape(-1, 2),
                reasons=np.array([failure.reason for failure in self.failures], dtype=np.str_),
                facts=np.array(json.dumps(facts)),
            )
        waiting.replace(place)

    @classmethod
    def read(cls, path: str | os.PathLike) -> "Embeddings":
        """Read a file that :meth:`save` or :func:`~plume.embed` wrote."""
        return _read(Path(path))[0]


def _read(path: Path) -> tuple[Embeddings, dict[str, Any]]:
    with np.load(path) as file:
        failures = [Failure(int(i), int(p), str(r)) for (i, p), r in zip(file["failed"], file["reasons"], strict=True)]
        found = Embeddings(file["vectors"], file["indices"], file["pages"], failures)
        return found, json.loads(str(file["facts"]))


def join(parts: list[Embeddings], width: int) -> Embeddings:
    """Parts as one; ``width`` is D, for a list without any row."""
    return Embeddings(
        np.concatenate([np.empty((0, width), np.float32), *(part.vectors for part in parts)]),
        np.concatenate([np.empty(0, np.int64), *(part.indices for part in parts)]),
        np.concatenate([np.empty(0, np.int64), *(part.pages for part in parts)]),
        [failure for part in parts for failure in part.failures],
    )


@dataclass
class Parts:
    """The finished rows of a call.

    Args:
        output: File that they become; None keeps them in memory.
        condition: From :func:`condition_of`.
    """

    output: Path | None
    condition: str
    _rows: list[Embeddings] = field(default_factory=list)
    _digest: str = ""
    _units: int = 0
    _is_complete: bool = False

    @property
    def _folder(self) -> Path:
        assert self.output is not None
        return self.output.with_name(f"{self.output.name}.parts")

    def skip_finished(self, units: Iterable[Unit]) -> Iterator[Unit]:
        """The units that have no rows yet.

        Raises:
            ValueError: If the stored rows are of other units, or were made under another condition.
        """
        ends = self._read_stored()
        total = max(ends, default=0)
        for unit in units:
            if self._units >= total:
                if self._is_complete:
                    raise self._refusal(f"vectors of the first {total} items only")
                yield unit
                continue
            self._count(unit)
            if ends.get(self._units, self._digest) != self._digest:
                raise self._refusal("vectors of other items")
        if self._units < total:
            raise self._refusal("vectors of more items")

    def _read_stored(self) -> dict[int, str]:
        """Take over what lies there; the digest by the number of units up to the end of each part."""
        if self.output is None:
            return {}
        self._is_complete = self.output.is_file()
        files = [self.output] if self._is_complete else sorted(self._folder.glob("*.npz"))
        ends = {}
        for file in files:
            rows, facts = _read(file)
            if facts.get("condition") != self.condition:
                raise self._refusal("vectors of another model or of other settings")
            self._rows.append(rows)
            ends[facts["units"]] = facts["digest"]
        return ends

    def _refusal(self, what: str) -> ValueError:
        place = self.output if self._is_complete else self._folder
        return ValueError(
            f"{place} holds {what}, so the call cannot continue from it. Remove it, or choose another output."
        )

    def _count(self, unit: Unit) -> None:
        digest = blake2b(self._digest.encode(), digest_size=16)
        for piece in _pieces((unit.index, unit.page, unit.item)):
            digest.update(piece)
        self._digest, self._units = digest.hexdigest(), self._units + 1

    def append(self, rows: Embeddings, units: Iterable[Unit]) -> None:
        """Keep the rows of the next units."""
        for unit in units:
            self._count(unit)
        self._rows.append(rows)
        if self.output is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._save(rows, self._folder / f"{self._units:012d}.npz")

    def _save(self, rows: Embeddings, path: Path) -> None:
        rows.save(path, condition=self.condition, units=self._units, digest=self._digest)

    def finish(self, width: int) -> Embeddings:
        """All rows, as one file if there is an output."""
        rows = join(self._rows, width)
        if self.output is not None and not self._is_complete:
            self.output.parent.mkdir(parents=True, exist_ok=True)
            self._save(rows, self.output)
            shutil.rmtree(self._folder, ignore_errors=True)
        return rows


def _pieces(value: Any) -> Iterator[bytes]:
    """Bytes that tell values apart, each with its kind and length in front."""
    if isinstance(value, Mapping):
        yield from _pieces(list(value.items()))
    elif isinstance(value, (list, tuple)):
        yield f"list {len(value)}\n".encode()
        for entry in value:
            yield from _pieces(entry)
    elif isinstance(value, Image.Image):
        yield f"picture {value.mode} {value.size}\n".encode()
        yield value.tobytes()
    elif isinstance(value, (np.ndarray, torch.Tensor)):
        array = np.ascontiguousarray(value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else value)
        yield f"array {array.dtype} {array.shape}\n".encode()
        yield array.tobytes()
    else:
        text = value if isinstance(value, bytes) else repr(value).encode("utf-8", "surrogateescape")
        yield f"{type(value).__name__} {len(text)}\n".encode()
        yield text


def condition_of(model: PreTrainedModel, processor: ProcessorMixin, settings: Mapping[str, Any]) -> str:
    """Digest of what a vector depends on besides its item: configuration, a sample of every weight, settings."""
    config = {name: value for name, value in model.config.to_dict().items() if name not in _NO_MATTER}
    plain = {name: value for name, value in vars(processor).items() if isinstance(value, (bool, int, float, str))}
    text = json.dumps([config, plain, len(processor.tokenizer), dict(settings)], sort_keys=True, default=str)
    digest = blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16)
    for name, weight in model.named_parameters():
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        digest.update(weight.detach().flatten()[:_SAMPLE].float().cpu().numpy().tobytes())
    return digest.hexdigest()

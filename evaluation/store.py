"""What stays on disk: files that are whole or absent, conditions that must not mix, and tasks that failed.

While a task runs, a folder per side holds ``settings.json`` (what the vectors depend on) and parts of consecutive
vectors, named by the place of their first (``000000.npy``, ``000256.npy``), so a killed run continues where it stopped.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from transformers.utils import logging

logger = logging.get_logger(__name__)

FAILED = "failed"
# What unusable data, media or options raise, here and in the libraries, and what a device without memory raises.
_FAILURES = (ValueError, OSError, LookupError, TypeError, RuntimeError)


def write_whole(file: Path, content: str) -> None:
    """Write a whole text file or none: a kill or a full disk leaves what was there before."""
    part = file.with_name(f"{file.name}.part")
    part.write_text(content, encoding="utf-8")
    os.replace(part, file)


def write_json(file: Path, content: Any) -> None:
    """Write a whole JSON file or none.

    Raises:
        ValueError: If a number is not finite.
    """
    write_whole(file, json.dumps(content, indent=1, allow_nan=False) + "\n")


def check_condition(
    place: Path,
    kept: Mapping[str, Any],
    asked: Mapping[str, Any],
    mend: str = "Choose another output folder, or remove that one.",
) -> None:
    """Refuse to continue from something that was made under another condition.

    Args:
        place: File or folder of what is there.
        kept: Its condition, as read from JSON.
        asked: The condition of what would be added.
        mend: What to do about it.

    Raises:
        ValueError: If the two differ; it names every difference.
    """
    asked = json.loads(json.dumps(asked, default=str))
    differing = [
        f"{key}: {kept.get(key)!r} there, {asked.get(key)!r} here"
        for key in sorted({*kept, *asked})
        if kept.get(key) != asked.get(key)
    ]
    if differing:
        raise ValueError(
            f"{str(place)!r} was made under another condition ({'; '.join(differing)}), so it cannot be mixed or "
            f"compared with this. {mend}"
        )


def read_kept(file: Path | None, condition: Mapping[str, Any]) -> dict[str, Any] | None:
    """What an earlier run kept in a JSON file with its ``condition``, None if there is none.

    Raises:
        ValueError: If it was made under another condition.
    """
    if file is None or not file.is_file():
        return None
    kept = json.loads(file.read_text(encoding="utf-8"))
    check_condition(file, kept["condition"], condition)
    return kept


class FailedTasksError(ValueError):
    """Some tasks failed; the others are done.

    Attributes:
        reasons: Why, by task.
        results: Results of the others.
    """

    def __init__(self, reasons: Mapping[str, str], results: Sequence[Any]) -> None:
        self.reasons, self.results = dict(reasons), list(results)
        told = "\n".join(f"- {task}: {reason}" for task, reason in reasons.items())
        super().__init__(
            f"{len(reasons)} of {len(reasons) + len(results)} tasks failed, so no mean over them exists. Mend the "
            f"causes and run the same command again; what is done is not done twice.\n{told}"
        )


class Failures:
    """Lets the other tasks run where one fails, and records each failure in ``folder/failed``.

    A plain ConnectionError is raised: without a network the others would fail too, one after the other.

    Args:
        folder: Folder of the results; nothing is recorded where it is None.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder / FAILED if folder else None
        self.reasons: dict[str, str] = {}

    @contextmanager
    def recorded(self, task: str) -> Iterator[None]:
        """Run one task. A failure is recorded instead of raised; a success removes an earlier record."""
        try:
            yield
        except _FAILURES as error:
            if type(error) is ConnectionError:  # no network: the other tasks would wait for it and fail in turn
                raise
            self.reasons[task] = f"{type(error).__name__}: {error}"
            logger.warning(f"The task {task} failed and the next one runs. {self.reasons[task]}")
            if self.folder:
                self.folder.mkdir(parents=True, exist_ok=True)
                write_json(self.folder / f"{task}.json", {"task": task, "reason": self.reasons[task]})
        else:
            if self.folder:
                (self.folder / f"{task}.json").unlink(missing_ok=True)

    def check(self, results: Sequence[Any]) -> None:
        """After all tasks.

        Raises:
            FailedTasksError: If one failed.
        """
        if self.reasons:
            raise FailedTasksError(self.reasons, results)


class VectorStore:
    """The vectors of one side of one task.

    Args:
        folder: Where to; created.
        settings: What the vectors depend on.

    Raises:
        ValueError: If the folder holds vectors of other settings.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.folder = folder
        file = folder / "settings.json"
        if file.exists():
            mend = "It holds vectors of another checkpoint, data or settings: choose another folder, or delete it."
            check_condition(folder, json.loads(file.read_text(encoding="utf-8")), settings, mend)
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps(settings, indent=1, sort_keys=True, default=str))

    def read(self) -> list[np.ndarray]:
        """The parts from the start, without gaps: arrays ``(n, D)``."""
        parts: list[np.ndarray] = []
        start = 0
        while (file := self.folder / f"{start:06d}.npy").exists():
            parts.append(np.load(file))
            start += len(parts[-1])
        return parts

    def append(self, start: int, vectors: np.ndarray) -> None:
        """Write the part whose first vector is the ``start``-th."""
        file = self.folder / f"{start:06d}.npy"
        temporary = file.with_suffix(".tmp")
        with temporary.open("wb") as opened:
            np.save(opened, vectors)
        os.replace(temporary, file)

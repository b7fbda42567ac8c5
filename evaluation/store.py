"""What stays on disk while a task runs: a killed run goes on where it stopped.

A folder per task and side holds ``settings.json`` (what the vectors depend on) and parts of consecutive vectors,
named by the place of their first: ``000000.npy``, ``000256.npy``. A part is written whole or not at all.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


def write_json(file: Path, content: Any) -> None:
    """Write a whole JSON file or none, so that an interruption leaves nothing half done.

    Raises:
        ValueError: If a number is not finite.
    """
    part = file.with_suffix(".part")
    part.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(part, file)


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
        written = json.dumps(settings, indent=1, sort_keys=True, default=str)
        file = folder / "settings.json"
        if file.exists() and file.read_text(encoding="utf-8") != written:
            raise ValueError(
                f"The folder {str(folder)!r} holds vectors of another checkpoint, data or settings; mixing them would "
                "make the score meaningless. Give another output folder, or delete this one."
            )
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(written, encoding="utf-8")

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

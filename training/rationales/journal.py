"""Replies on disk as soon as they arrive: what was paid for once is never asked again.

One JSON object a line, on the disk before its reply counts. A kill can cut the last line only, which is dropped when
the journal is opened again.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from .prompts import Rationale


class Journal:
    """Rationales by key."""

    def __init__(self, path: Path) -> None:
        self.path, self.found = path, dict[str, Rationale]()

    @contextmanager
    def opened(self) -> Iterator["Journal"]:
        """Read what is there, and keep other runs out.

        Raises:
            ValueError: If another run writes into it.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{self.path}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise ValueError(
                f"Another run writes into {self.path}. Wait until it ends, or choose another --output."
            ) from error
        try:
            self._read()
            yield self
        finally:
            lock.release()

    def _read(self) -> None:
        if not self.path.exists():
            return
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            os.truncate(self.path, len(whole))
        for line in whole.splitlines():
            entry = json.loads(line)
            self.found[entry["key"]] = Rationale(entry["thinking"], entry["answer"])

    def add(self, key: str, rationale: Rationale) -> None:
        """Store one; it is on the disk when this returns."""
        line = json.dumps({"key": key, **rationale._asdict()}) + "\n"
        with open(self.path, "ab", buffering=0) as file:
            file.write(line.encode())
            os.fsync(file.fileno())
        self.found[key] = rationale

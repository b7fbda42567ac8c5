"""One run at a time in a folder."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: nothing keeps two runs apart
    fcntl = None  # type: ignore[assignment]


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other runs from writing into a folder; the system lets go of the lock when a process dies.

    Raises:
        ValueError: If another run is writing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "writing.lock").open("w") as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ValueError(f"Another run is writing into {folder}. Wait until it ends.") from error
        yield

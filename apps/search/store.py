"""The index: one LanceDB table on disk, no server.

A row is a document: where it lies, what it shows (a small preview), its vector. Every write is one atomic commit keyed
by the document's id, so a killed run leaves whole rows and the next one continues from them. What another process has
committed is seen at once. The table names the checkpoint that made its vectors; those of another are refused.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import lancedb
import numpy as np
import pyarrow as pa

from plume.apps.shared.batches import BatchEncoder
from plume.apps.shared.rows import SHOWN, row_schema, same_checkpoint
from plume.arguments import KINDS

P = ParamSpec("P")
T = TypeVar("T")
TABLE = "documents"
_MODEL, _STEPS = b"plume.model", b"plume.num_latent_steps"


@dataclass(frozen=True)
class Hit:
    """A document that was found.

    Attributes:
        id: Its name; of a table, whatever the table says.
        root: Folder that was indexed.
        path: File below it.
        part: Page or passage, from 1.
        parts: Pages or passages of the file.
        kind: A key of :data:`~plume.arguments.KINDS`.
        text: Beginning of the text, where it is one.
        score: Cosine similarity to the query.
    """

    id: str
    root: str
    path: str
    part: int
    parts: int
    kind: str
    text: str
    score: float


def _usable(method: Callable[Concatenate["Index", P], T]) -> Callable[Concatenate["Index", P], T]:
    """Raise faults of the disk as a ValueError; LanceDB raises RuntimeError, with a place in its source at the end."""

    @wraps(method)
    def call(self: "Index", *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return method(self, *args, **kwargs)
        except (OSError, RuntimeError) as error:
            reason = str(error).split(", /")[0]
            raise ValueError(
                f"The index {self.folder} cannot be used ({reason}). If the disk is full, make room and run again: "
                "what was committed is there. If the folder was moved, name its new place. If its files are damaged, "
                "remove the folder and index again."
            ) from error

    return call


def steps_of(folder: Path) -> int | None:
    """K of the documents of an index; None if there is no index in the folder yet."""
    if not folder.is_dir():  # LanceDB would create it
        return None
    try:
        table = lancedb.connect(folder).open_table(TABLE)
    except ValueError:
        return None
    return int((table.schema.metadata or {})[_STEPS])


class Index:
    """Documents and their vectors.

    Args:
        folder: Where the index lies; created where it does not exist.
        model: Identity of the checkpoint whose vectors it holds.
        dimension: Length of a vector.
        num_latent_steps: K of the documents.

    Every method raises a ValueError if the index cannot be read or written.

    Raises:
        ValueError: If the index holds vectors of another checkpoint or of another K.
    """

    def __init__(self, folder: Path, model: str, dimension: int, num_latent_steps: int) -> None:
        self.folder, self.num_latent_steps = folder, num_latent_steps
        metadata = {_MODEL: model.encode(), _STEPS: str(num_latent_steps).encode()}
        self.schema = row_schema(dimension, metadata)
        self.table = self._open()
        self.check_made_by(model, num_latent_steps, "This checkpoint")

    @_usable
    def _open(self) -> Any:
        # Zero seconds: every read looks for commits of other processes first.
        database = lancedb.connect(self.folder, read_consistency_interval=timedelta(0))
        try:
            return database.open_table(TABLE)
        except ValueError:  # not there yet; another process may create it at the same moment
            return database.create_table(TABLE, schema=self.schema, exist_ok=True)

    def check_made_by(self, model: str, num_latent_steps: int, whose: str) -> None:
        """Refuse vectors that cannot be compared with those of the index.

        Raises:
            ValueError: If they are of another checkpoint or of another K.
        """
        made_by = self.table.schema.metadata or {}
        maker, steps = (made_by.get(key, b"?").decode() for key in (_MODEL, _STEPS))
        if not same_checkpoint(maker, model) or steps != str(num_latent_steps):
            raise ValueError(
                f"The index {self.folder} holds vectors of {maker} with K = {steps}, which cannot be compared with "
                f"others. {whose} is {model} with K = {num_latent_steps}. Use another folder for the index, or the "
                "checkpoint that made it."
            )

    @_usable
    def put(self, rows: Sequence[dict[str, Any]]) -> None:
        """Write rows in one commit; rows whose id is known replace the old ones."""
        writer = self.table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
        writer.execute(pa.Table.from_pylist(list(rows), schema=self.schema))

    @_usable
    def forget(self, ids: Sequence[str]) -> None:
        """Remove documents."""
        if ids:
            self.table.delete(f"id IN ({', '.join(map(_quote, ids))})")

    @_usable
    def known(self, roots: Sequence[str]) -> list[dict[str, Any]]:
        """What is indexed of some folders: ``id``, ``root``, ``path``, ``parts``, ``stamp`` and ``digest`` per row."""
        columns = ["id", "root", "path", "parts", "stamp", "digest"]
        chosen = f"root IN ({', '.join(map(_quote, roots))})"
        return self.table.search().where(chosen).select(columns).limit(len(self)).to_list() if roots else []

    @_usable
    def stamp(self, ids: Sequence[str], stamp: str) -> None:
        """Note that files were touched and still hold what is indexed."""
        self.table.update(where=f"id IN ({', '.join(map(_quote, ids))})", values={"stamp": stamp})

    @_usable
    def optimize(self) -> None:
        """Merge the many small commits into few files."""
        self.table.optimize()

    @_usable
    def search(self, vector: np.ndarray, limit: int, kinds: Sequence[str] = ()) -> list[Hit]:
        """The documents nearest to a vector, best first, by exact search.

        Args:
            vector: ``(D,)``, unit length.
            limit: How many.
            kinds: Only these kinds; all where empty.

        Raises:
            ValueError: If a kind is unknown.
        """
        unknown = sorted(set(kinds) - KINDS.keys())
        if unknown:
            raise ValueError(f"There is no kind {unknown[0]!r}. Use {', '.join(KINDS)}.")
        query: Any = self.table.search(vector, vector_column_name="vector")
        query = query.distance_type("cosine").limit(limit)
        if kinds:
            query = query.where(f"kind IN ({', '.join(map(_quote, kinds))})", prefilter=True)
        rows = query.select([*SHOWN, "_distance"]).to_list()
        return [Hit(**{name: row[name] for name in SHOWN}, score=1 - row["_distance"]) for row in rows]

    @_usable
    def get(self, id: str) -> dict[str, Any] | None:
        """The row of a document, without its vector; None if there is none."""
        columns = [*SHOWN, "stamp", "preview"]
        rows = self.table.search().where(f"id = {_quote(id)}").select(columns).limit(1).to_list()
        return rows[0] if rows else None

    @_usable
    def vectors(self) -> dict[str, np.ndarray]:
        """All vectors, ``(D,)`` each, by id."""
        rows = self.table.search().select(["id", "vector"]).limit(len(self)).to_list()
        assert len({row["id"] for row in rows}) == len(rows), "every document is in the index once"
        return {row["id"]: np.array(row["vector"], dtype=np.float32) for row in rows}

    @_usable
    def __len__(self) -> int:
        return self.table.count_rows()


def _quote(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def open_index(folder: Path, encoder: BatchEncoder, given: int | None = None) -> Index:
    """The index of a folder.

    Args:
        folder: Where it lies; created where it does not exist.
        encoder: The checkpoint.
        given: K of the documents. Defaults to that of the index, in a new one to the checkpoint's for documents.

    Raises:
        ValueError: If the index holds vectors of another checkpoint or K, or the checkpoint cannot run this K.
    """
    steps = steps_of(folder) if given is None else given
    if steps is None or given is not None:
        steps = encoder.config.check_num_latent_steps(given, "document")
    return Index(folder, encoder.identity, encoder.dimension, steps)

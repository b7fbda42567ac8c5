"""The table of tasks: what is measured, as data.

A table is one JSON file ``{"meta": {...}, "tasks": [row, ...]}``. ``mmeb_v2.json`` holds the 78 rows of MMEB-v2; any
other file with the same schema runs through the same path. ``meta`` names ``benchmark`` and ``version``, and may name
``page_labels``, ``groups`` (rows per group) and ``incomparable`` tasks. A row has:

- ``id``, ``group``, ``modality`` (image, video, visdoc);
- ``dataset``: ``repo``, ``config`` (a name, a list of names that are concatenated, or none), ``split``, ``revision``,
  ``limit`` (first rows only);
- ``parser``: a key of :data:`plume.evaluation.parsers.PARSERS`;
- ``media``: folder of images or frames under the media root; ``archive``: where it comes from;
- ``query``, ``candidate``: ``modality``, ``instruction``, ``template`` (for readers and tests);
- ``official``: instructions of the authors' evaluation where they differ;
- ``pool`` (local: each query has its own candidates; global: all candidates), ``pool_size``;
- ``metric`` (``hit@1``, ``hit@10`` or ``ndcg_linear@5``), ``num_frames`` (a number, ``"all"``, or none),
  ``num_queries``.

Keys that are not listed here are kept in ``extras`` and end up next to the score.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

MMEB_V2 = Path(__file__).with_name("mmeb_v2.json")
PROMPT_SETS = ("clean", "official")
AUDIT_QUERIES, AUDIT_SWEEP = 200, (0, 1, 2, 4, 6, 8)  # per task, as in Fig. 6; numbers of latent steps
# Our metric name -> the key under which mteb reports the same number.
METRICS = {"hit@1": "hit_rate_at_1", "ndcg_linear@5": "ndcg_at_5", "hit@10": "hit_rate_at_10"}
_REQUIRED = ("id", "group", "modality", "dataset", "parser", "query", "candidate", "pool", "metric")
_OPTIONAL = (
    "media", "archive", "official", "pool_size", "relevance", "num_frames", "num_queries", "labels", "mteb", "note",
)  # fmt: skip
_RESULT_KEYS = (
    "task", "score", "n", "condition", "data", "scores", "vectors", "num_candidates", "seconds", "libraries",
)  # fmt: skip
_MODALITIES = ("text", "image", "image+text", "video", "video+text", "any")


@dataclass(frozen=True)
class Side:
    """One side of a task: ``modality`` of its inputs and the ``instruction`` in front of their text."""

    modality: str
    instruction: Any = None
    template: str | None = None


@dataclass(frozen=True)
class Row:
    """One task; fields as in the description of the table, ``benchmark`` and ``version`` from its ``meta``."""

    id: str
    group: str
    modality: str
    dataset: Mapping[str, Any]
    parser: str
    query: Side
    candidate: Side
    pool: str
    metric: str
    benchmark: str = "unnamed"
    version: str = "unnamed"
    page_labels: str | None = None
    media: str | None = None
    archive: str | None = None
    official: Mapping[str, str] = field(default_factory=dict)
    pool_size: int | str | None = None
    relevance: str | None = None
    num_frames: int | str | None = None
    num_queries: int | None = None
    labels: str | None = None
    mteb: Sequence[str] = ()
    note: str | None = None
    extras: Mapping[str, Any] = field(default_factory=dict)

    @property
    def definition(self) -> str:
        """A hash over what shapes a score in the row, except for what a result names itself."""
        aside = ("group", "modality", "archive", "num_queries", "mteb", "note", "extras")
        kept = {name: value for name, value in asdict(self).items() if name not in aside}
        return hashlib.blake2b(json.dumps(kept, sort_keys=True).encode(), digest_size=8).hexdigest()

    def instruction(self, side: str, prompt_set: str = "clean") -> Any:
        """Instruction of a side (``"query"`` or ``"candidate"``) in a prompt set."""
        if prompt_set == "official" and side in self.official:
            return self.official[side]
        return (self.query if side == "query" else self.candidate).instruction


@dataclass(frozen=True)
class Table:
    """``meta`` of a table file and its rows."""

    meta: Mapping[str, Any]
    rows: list[Row]

    def groups(self) -> dict[str, list[Row]]:
        """Rows by group, in the order of the table."""
        grouped: dict[str, list[Row]] = {}
        for row in self.rows:
            grouped.setdefault(row.group, []).append(row)
        return grouped


def read_table(path: str | Path = MMEB_V2) -> Table:
    """Read and check a table file.

    Raises:
        ValueError: If the file is missing, a row is malformed, an id is repeated, or a group lacks rows.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"The table {str(path)!r} does not exist, so there are no tasks. Check --table.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"The table {str(path)!r} is no whole JSON file ({error}). Write or download it again."
        ) from error
    if not isinstance(content, dict) or not content.get("tasks"):
        raise ValueError(f"The table {str(path)!r} has no tasks. It needs {{'meta': ..., 'tasks': [...]}}.")
    meta = content.get("meta") or {}
    rows = [make_row(fields, meta) for fields in content["tasks"]]
    repeated = sorted({row.id for row in rows if [other.id for other in rows].count(row.id) > 1})
    if repeated:
        raise ValueError(f"The table {str(path)!r} names the tasks {repeated} twice, so their scores would mix.")
    table = Table(meta, rows)
    counts = {group: len(members) for group, members in table.groups().items()}
    if meta.get("groups") not in (None, counts):
        raise ValueError(f"The table {str(path)!r} announces the groups {meta['groups']} but holds {counts}.")
    return table


def make_row(fields: Mapping[str, Any], meta: Mapping[str, Any] | None = None) -> Row:
    """Check one row and turn it into a [`Row`].

    Args:
        fields: The row as in the table file.
        meta: ``meta`` of the table.

    Raises:
        ValueError: If a field is missing or has an impossible value.
    """
    meta, name = meta or {}, str(fields.get("id", "without an id"))
    missing = [key for key in _REQUIRED if fields.get(key) is None]
    if missing:
        raise ValueError(f"The task {name} lacks {missing}, so it cannot be built. Complete its row in the table.")
    extras = {key: value for key, value in fields.items() if key not in (*_REQUIRED, *_OPTIONAL)}
    clash = sorted(extras.keys() & set(_RESULT_KEYS))
    if clash:
        raise ValueError(f"The task {name} has extra keys {clash}, which are names in a result. Rename them.")
    _check_choice(name, "pool", fields["pool"], ("local", "global"))
    _check_choice(name, "metric", fields["metric"], tuple(METRICS))
    for side in ("query", "candidate"):
        _check_choice(name, f"{side} modality", fields[side].get("modality"), _MODALITIES)
    if not {"repo", "split"} <= fields["dataset"].keys():
        raise ValueError(f"The task {name} needs 'repo' and 'split' in its dataset.")
    known = {key: fields[key] for key in (*_REQUIRED, *_OPTIONAL) if key in fields and fields[key] is not None}
    known |= {side: Side(**fields[side]) for side in ("query", "candidate")}
    shared = {key: meta[key] for key in ("benchmark", "version", "page_labels") if key in meta}
    return Row(**known, **shared, extras=extras)


def _check_choice(name: str, field_name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"The task {name} has the {field_name} {value!r}. Use one of {', '.join(choices)}.")


def select(table: Table, names: Iterable[str] | None = None) -> list[Row]:
    """Rows by task id, group or modality; all where ``names`` is empty.

    Raises:
        ValueError: If a name is neither.
    """
    wanted = list(names or [])
    known = {key for row in table.rows for key in (row.id, row.group, row.modality)}
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise ValueError(
            f"The table has no task, group or modality {unknown}. Use ids or groups from: {sorted(known)}."
        )
    return [row for row in table.rows if not wanted or {row.id, row.group, row.modality} & set(wanted)]

"""The inputs of one task, ready to be read under many conditions."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from plume.evaluation.table import Row
from plume.evaluation.tasks import make_task


@dataclass
class TaskData:
    """Queries, documents and what belongs together.

    Attributes:
        name: The task's id.
        group: Its group in the table.
        is_visdoc: Whether its images are document pages.
        control: Whether it should be solvable without thinking; None where the table does not say.
        hops: Reasoning steps that it takes; None where the table does not say.
        queries: N rows with the columns that mteb reads; media are decoded as they are read.
        documents: M rows.
        grades: Relevance, ``(N, M)``.
        pool: Which documents compete for a query, ``(N, M)`` of bool.
    """

    name: str
    group: str
    is_visdoc: bool
    control: bool | None
    hops: int | None
    queries: Dataset
    documents: Dataset
    grades: torch.Tensor
    pool: torch.Tensor

    @property
    def best(self) -> torch.Tensor:
        """Index of the most relevant document of each query, ``(N,)``."""
        return self.grades.argmax(dim=1)


def load_task(
    row: Row,
    data_root: str | Path,
    *,
    media_root: str | Path | None = None,
    prompt_set: str = "clean",
    max_queries: int | None = None,
    seed: int = 0,
) -> TaskData:
    """Read a task as the evaluation does.

    Args:
        row: Row of the table.
        data_root: As in :func:`~plume.evaluation.tasks.make_task`.
        media_root: As there.
        prompt_set: As there.
        max_queries: Queries drawn at random by ``seed``. Defaults to all. With a local pool only the documents that
            compete for these are read.
        seed: Of the draw.

    Raises:
        ValueError: If the data are unusable, a query has no relevant document among its candidates, or there are
            fewer than two queries.
    """
    task = make_task(row, data_root, prompt_set, media_root)
    task.load_data()
    return gather(row, task.dataset["default"][row.dataset["split"]], max_queries, seed)


def gather(row: Row, split: dict[str, Any], max_queries: int | None, seed: int) -> TaskData:
    """The part of a task that an audit reads; ``split`` is what mteb's task holds, the rest as in :func:`load_task`."""
    relevant, ranked = split["relevant_docs"], split["top_ranked"]
    asked = [index for index, name in enumerate(split["queries"]["id"]) if relevant.get(name)]
    if max_queries is not None and len(asked) > max_queries:
        drawn = torch.randperm(len(asked), generator=torch.Generator().manual_seed(seed))[:max_queries]
        asked = [asked[index] for index in sorted(drawn.tolist())]
    queries = split["queries"].select(asked)
    names = queries["id"]
    everyone = split["corpus"]["id"]
    wanted = {document for name in names for document in ranked[name]} if ranked else set(everyone)
    kept = [index for index, name in enumerate(everyone) if name in wanted]
    documents = split["corpus"].select(kept)
    places = {name: place for place, name in enumerate(documents["id"])}
    grades = torch.zeros(len(names), len(kept))
    pool = torch.zeros(len(names), len(kept), dtype=torch.bool)
    for index, name in enumerate(names):
        pool[index, [places[document] for document in (ranked[name] if ranked else places)]] = True
        for document, grade in relevant[name].items():
            if document in places:
                grades[index, places[document]] = float(grade)
    lonely = [name for name, row_M in zip(names, (grades > 0) & pool, strict=True) if not row_M.any()]
    if lonely:
        raise ValueError(
            f"The task {row.id} has {len(lonely)} queries without a relevant document among their candidates, e.g. "
            f"{lonely[0]!r}, so they have no rank. Check its relevance labels and pools."
        )
    if len(names) < 2:
        raise ValueError(
            f"The task {row.id} has {len(names)} queries with relevant documents; exchanging thoughts takes two. Raise "
            "--max-queries, or leave the task out."
        )
    return TaskData(
        row.id,
        row.group,
        row.modality == "visdoc",
        row.extras.get("control"),
        row.extras.get("hops"),
        queries,
        documents,
        grades,
        pool,
    )

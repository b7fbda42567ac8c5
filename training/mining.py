"""The work of :mod:`plume.training.mine`: embed sides, find hard negatives among the positives, write the rows."""

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from sentence_transformers.util import cos_sim, mine_hard_negatives, pairwise_cos_sim

from plume import embed, load
from plume.training.data import (
    Pair,
    Side,
    add_negatives,
    describe_root,
    folder_of,
    load_rows,
    parse_columns,
    read_all,
    with_files,
    write_rows,
)

_LOOKED_AT = 200  # closest candidates of a query


class KnownVectors:
    """Vectors by name, in the shape of the model that sentence-transformers mines with.

    Args:
        vectors: Unit vectors by name.
    """

    device = torch.device("cpu")
    similarity, similarity_pairwise = staticmethod(cos_sim), staticmethod(pairwise_cos_sim)

    def __init__(self, vectors: dict[str, np.ndarray]) -> None:
        self.vectors = vectors

    def encode_query(self, names: Sequence[str], **options: Any) -> np.ndarray:
        """Vectors of some names, ``(len(names), D)``."""
        return np.stack([self.vectors[name] for name in names])

    encode_document = encode_query


def name_of(side: Side) -> str:
    """The name that equal sides share."""
    return str(side.identity())


def embed_sides(pairs: Sequence[Pair], model: str, num_latent_steps: int | None) -> KnownVectors:
    """Vectors of all queries and positives, without the default prompts of the model."""
    sides = {name_of(side): side for pair in pairs for side in (pair.query, pair.target)}
    with TemporaryDirectory() as folder:
        contents = [with_files(side.content(), Path(folder)) for side in sides.values()]
        found = embed(contents, load(model), prompt="", num_latent_steps=num_latent_steps)
    return KnownVectors(dict(zip(sides, found.vectors, strict=True)))


def mine(
    pairs: Sequence[Pair], vectors: KnownVectors, num_negatives: int, relative_margin: float, range_min: int
) -> dict[tuple[str, str], list[str]]:
    """Names of the hard negatives of each query and positive, hardest first; fewer where there are no more.

    Args:
        pairs: Of one dataset.
        vectors: Of their sides.
        num_negatives: Most negatives of a pair.
        relative_margin: Share of the positive's similarity that a negative must stay below it.
        range_min: Candidates with the highest similarities that are passed over.
    """
    table = {"query": [name_of(pair.query) for pair in pairs], "positive": [name_of(pair.target) for pair in pairs]}
    model: Any = vectors
    triplets = mine_hard_negatives(
        Dataset.from_dict(table),
        model,
        num_negatives=num_negatives,
        relative_margin=relative_margin,
        range_min=range_min,
        # A model that does not know the data yet ranks many candidates above the positive; all of them are left out.
        range_max=range_min + max(_LOOKED_AT, 10 * num_negatives),
        verbose=False,
    )
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for row in triplets:
        found[row["query"], row["positive"]].append(row["negative"])
    return found


def _mine_all(pairs: Sequence[Pair], vectors: KnownVectors, options: argparse.Namespace) -> list[list[int]]:
    """Per pair the rows whose positives are its hard negatives, hardest first."""
    groups: dict[str, list[int]] = defaultdict(list)
    for index, pair in enumerate(pairs):
        groups[pair.dataset].append(index)
    mined: list[list[int]] = [[] for _ in pairs]
    for rows in groups.values():
        own = [pairs[row] for row in rows]
        found = mine(own, vectors, options.num_negatives, options.relative_margin, options.range_min)
        first = {name_of(pair.target): row for row, pair in zip(reversed(rows), reversed(own), strict=True)}
        for row, pair in zip(rows, own, strict=True):
            known = {name_of(side) for side in pair.negatives}
            names = found.get((name_of(pair.query), name_of(pair.target)), [])
            mined[row] = [first[name] for name in names if name not in known]
    return mined


def run(options: argparse.Namespace) -> str:
    """Read, embed, mine, write; what there is to say about it."""
    rows: Any = load_rows(options.pairs, columns=parse_columns(options.column))
    root = options.media_root or folder_of(options.pairs)
    pairs = read_all(rows, root)
    mined = _mine_all(pairs, embed_sides(pairs, options.model, options.num_latent_steps), options)
    raw = [json.loads(row["row"]) for row in rows]

    def with_negatives() -> Iterator[Any]:
        for row, fields, sources in zip(rows, raw, mined, strict=True):
            yield add_negatives(fields, [raw[source] for source in sources], row["place"])

    write_rows(options.output, with_negatives())
    counts = [len(sources) for sources in mined]
    said = (
        f"{options.output}: {len(rows):,} rows, {sum(map(bool, counts)):,} of them with mined negatives, "
        f"{sum(counts) / len(counts):.1f} on average."
    )
    if any(side.images or side.videos for pair in pairs for side in (pair.query, pair.target)):
        said = f"{said}\n{describe_root(root, options.output)}"
    return said.rstrip()

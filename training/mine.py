"""Mine hard negatives for pairs: ``plume mine MODEL PAIRS... --output FILE``.

1. **Read** the rows as training does; equal sides are one item.
2. **Embed** the items with the model, under the prompts of the rows, as training does.
3. **Mine** with sentence-transformers' ``mine_hard_negatives``, each dataset by itself: positives of other rows that
   rank highest, up to a margin below a row's own.
4. **Write** the rows in their order and format, with the negatives that they had, then the mined ones and their
   rationales.
"""

import argparse
import json
import sys
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
from plume.arguments import ArgumentParser
from plume.training.data import (
    Pair,
    Side,
    add_negatives,
    describe_root,
    folder_of,
    load_rows,
    parse_columns,
    read_all,
    refuse_output,
    with_files,
    write_rows,
)


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


def build_parser() -> ArgumentParser:
    """The command line."""
    parser = ArgumentParser(prog="plume mine", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", help="folder or Hub id of a checkpoint, or tiny")
    parser.add_argument("pairs", nargs="+", help="files or names of datasets, as --train-files of the training")
    parser.add_argument("--output", type=Path, required=True, help="JSON lines, to train on")
    parser.add_argument("--column", nargs="+", default=[], help="OURS=YOURS, as in training")
    parser.add_argument("--media-root", help="folder that media paths are relative to; that of the pairs if omitted")
    parser.add_argument("--num-negatives", type=int, default=4, help="most negatives that a row gets")
    parser.add_argument(
        "--relative-margin",
        type=float,
        default=0.05,
        help="a candidate closer to the query than this share below the positive may be a positive: not taken",
    )
    parser.add_argument("--range-min", type=int, default=0, help="closest candidates to pass over, for the same reason")
    parser.add_argument("--num-latent-steps", type=int, help="K; the checkpoint's if omitted")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Read, embed, mine, write."""
    options = build_parser().parse_args(arguments)
    if options.num_negatives < 1 or options.range_min < 0:
        raise ValueError("--num-negatives must be at least 1 and --range-min at least 0.")
    refuse_output(options.output, options.pairs)
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
    print(
        f"{options.output}: {len(rows):,} rows, {sum(map(bool, counts)):,} of them with mined negatives, "
        f"{sum(counts) / len(counts):.1f} on average."
    )
    if any(side.images or side.videos for pair in pairs for side in (pair.query, pair.target)):
        print(describe_root(root, options.output), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())

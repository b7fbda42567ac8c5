"""Score a checkpoint, or what people use today, on the pictures: ``python -m plume.playground.pictures.evaluate``.

The tasks run through ``plume.evaluation``. Their candidates are the same for every language, so every input is embedded
once and remembered. Two searches that see no picture but are told what it shows, in English:

- ``words`` instead of a checkpoint is that of emoji pickers: it compares words with the CLDR name and keywords.
- ``names:FOLDER`` compares vectors of the query and of the CLDR name, from a text encoder of sentence-transformers.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer

from plume.arguments import ArgumentParser
from plume.checkpoints import locate
from plume.evaluation.embedders import Embedder, load_embedder
from plume.evaluation.runner import evaluate
from plume.evaluation.table import read_table, select
from plume.playground.corpora import TABLE
from plume.playground.pictures.concepts import slug
from plume.playground.pictures.splits import TEST_STYLE
from plume.playground.pictures.world import World, read_world

WORDS, NAMES = "words", "names:"
_BATCH = 128


class Remembering:
    """Another embedder, asked once per input.

    Args:
        embedder: The other one.
    """

    def __init__(self, embedder: Embedder) -> None:
        self.embedder, self.condition = embedder, embedder.condition
        self._known: dict[Any, torch.Tensor] = {}

    def encode(self, inputs: Sequence[Mapping[str, Any]], role: str) -> torch.Tensor:
        """Vectors of the inputs, ``(B, D)``."""
        keys = [(role, one.get("text", ""), _pixels(one.get("image"))) for one in inputs]
        new = {key: one for key, one in zip(keys, inputs, strict=True) if key not in self._known}
        if new:
            vectors = self.embedder.encode(list(new.values()), role)
            self._known.update(zip(new, vectors, strict=True))
        return torch.stack([self._known[key] for key in keys])


def _pixels(picture: Any) -> bytes:
    return hashlib.blake2b(picture.convert("RGB").tobytes()).digest() if picture is not None else b""


class WordMatch:
    """Search by the words of CLDR's English names and keywords, weighted by how rare they are.

    Args:
        world: Says what every picture of the test style shows.
    """

    def __init__(self, world: World) -> None:
        self.condition: dict[str, Any] = {"checkpoint": {"name": "word match over CLDR's English names and keywords"}}
        self._shown: dict[bytes, list[str]] = {}
        for row in world.drawn(TEST_STYLE):
            concept = world.by_key[row.key]
            name = slug(concept.names["en"]).split("-")
            others = [word for keyword in concept.keywords.get("en", ()) for word in slug(keyword).split("-")]
            self._shown.setdefault(_pixels(world.picture(row.path)), [*name, *name, *others])
        counts = Counter(word for words in self._shown.values() for word in set(words))
        self._place = {word: place for place, word in enumerate(sorted(counts))}
        rarity = [math.log(len(self._shown) / counts[word]) for word in sorted(counts)]
        self._rarity = rarity

    def encode(self, inputs: Sequence[Mapping[str, Any]], role: str) -> torch.Tensor:
        """Weighted word counts, ``(B, words)``, at unit length."""
        vectors = torch.zeros(len(inputs), len(self._place) + 1)
        for row, one in zip(vectors, inputs, strict=True):
            known = self._shown.get(_pixels(one["image"]), []) if one.get("image") is not None else None
            for word in slug(one["text"]).split("-") if known is None else known:
                if word in self._place:
                    row[self._place[word]] += self._rarity[self._place[word]]
            row[-1] = float(not row.any() and known is None)  # a query without a known word is like no picture
        return torch.nn.functional.normalize(vectors, dim=-1)


class NameSearch:
    """Search by vectors of CLDR's English names.

    Args:
        world: Says what every picture of the test style shows.
        folder: Text encoder of sentence-transformers.
    """

    def __init__(self, world: World, folder: str) -> None:
        self.condition: dict[str, Any] = {"checkpoint": {"name": f"{Path(folder).name} over CLDR's English names"}}
        drawn = world.drawn(TEST_STYLE)
        self._names = {_pixels(world.picture(row.path)): world.by_key[row.key].names["en"] for row in drawn}
        self._encoder = SentenceTransformer(folder, device="cpu")

    def encode(self, inputs: Sequence[Mapping[str, Any]], role: str) -> torch.Tensor:
        """Vectors of texts and of what pictures show, ``(B, D)``."""
        pictures = (one.get("image") for one in inputs)
        texts = [
            one["text"] if picture is None else self._names[_pixels(picture)]
            for one, picture in zip(inputs, pictures, strict=True)
        ]
        return self._encoder.encode(texts, convert_to_tensor=True, normalize_embeddings=True)


def _open(name: str, world: Path, latent_steps: int | None) -> Embedder:
    if name == WORDS:
        return WordMatch(read_world(world))
    if name.startswith(NAMES):
        return NameSearch(read_world(world), name.removeprefix(NAMES))
    return load_embedder(locate(name), latent_steps=latent_steps)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and score.

    Args:
        arguments: Command line without the program; ``sys.argv`` if omitted.
    """
    parser = ArgumentParser(prog="python -m plume.playground.pictures.evaluate", description=__doc__)
    parser.add_argument("model", help=f"folder or Hub id of a checkpoint, {WORDS!r} or {NAMES}FOLDER")
    parser.add_argument("world", type=Path, help="folder that plume.playground.pictures wrote")
    parser.add_argument("output", type=Path, help="folder of the results")
    parser.add_argument("--tasks", nargs="*", default=[], help="ids or groups; all if omitted")
    parser.add_argument("--num-latent-steps", type=int, help="K; the checkpoint's if omitted")
    args = parser.parse_args(arguments)
    embedder = _open(args.model, args.world, args.num_latent_steps)
    rows = select(read_table(args.world / "test" / TABLE), args.tasks)
    data = args.world / "test"
    for result in evaluate(Remembering(embedder), rows, data_root=data, out=args.output, batch_size=_BATCH):
        scores = "".join(f"  {name} {100 * result['scores'][name]:5.1f}" for name in ("hit@1", "hit@10"))
        print(f"{result['task']:<32}{scores}  n={result['n']}")


if __name__ == "__main__":
    main()

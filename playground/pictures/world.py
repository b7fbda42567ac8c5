"""What was built, read back: concepts, words, pictures by style."""

import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from plume.playground.pictures.concepts import Concept
from plume.playground.pictures.drawing import STYLES
from plume.playground.pictures.splits import is_trained_style, split_of
from plume.playground.pictures.words import Word, training_words

CONCEPTS = "concepts.jsonl"


@dataclass(frozen=True)
class Drawn:
    """A picture of a concept in a style; ``path`` is relative to the world's pictures."""

    style: str
    key: str
    path: str


class World:
    """A built folder.

    Args:
        folder: Where it is.
        concepts: Its concepts.
    """

    def __init__(self, folder: Path, concepts: list[Concept]) -> None:
        self.folder, self.concepts = folder, concepts
        self.by_key = {concept.key: concept for concept in concepts}
        self.number = {concept.key: place for place, concept in enumerate(concepts)}

    @cached_property
    def words(self) -> list[Word]:
        """The texts of training."""
        return training_words(self.concepts)

    def drawn(self, style: str) -> list[Drawn]:
        """Pictures of concepts, without skin tones, that a set has."""
        names = sorted(path.stem for path in (self.folder / "pictures" / style).glob("*.png"))
        return [Drawn(style, name, f"{style}/{name}.png") for name in names if name in self.by_key]

    def trained_pictures(self) -> list[Drawn]:
        """Pictures that training rows may show."""
        rows = (row for style in STYLES if is_trained_style(style) for row in self.drawn(style))
        return [row for row in rows if split_of(self.by_key[row.key]) == "train"]

    def picture(self, path: str) -> Image.Image:
        """A picture."""
        with Image.open(self.folder / "pictures" / path) as picture:
            return picture.convert("RGB")

    def open(self, path: str) -> np.ndarray:
        """A picture as ``(3, H, W)`` of bytes."""
        return np.asarray(self.picture(path)).transpose(2, 0, 1).copy()


def write_concepts(folder: Path, concepts: list[Concept]) -> Path:
    """Write the concepts as JSON lines."""
    lines = [json.dumps(asdict(concept), ensure_ascii=False, sort_keys=True) for concept in concepts]
    (folder / CONCEPTS).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / CONCEPTS


def read_world(folder: Path) -> World:
    """Read what ``plume.playground.pictures`` wrote.

    Raises:
        ValueError: If the folder holds no world.
    """
    file = folder / CONCEPTS
    if not file.exists():
        raise ValueError(
            f"{folder} has no {CONCEPTS}, so there is nothing to train on. Build it with "
            f"`python -m plume.playground.pictures --output {folder}`."
        )
    with file.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    for row in rows:
        row["keywords"] = {language: tuple(words) for language, words in row["keywords"].items()}
        row["aliases"] = tuple(row["aliases"])
    return World(folder, [Concept(**row) for row in rows])

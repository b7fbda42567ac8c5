"""A folder that plume-tiny can search: the answers of a playground task, and questions in pictures to ask.

``documents/`` holds every answer as a text file, ``questions/`` pictures that no model was trained on, each next to the
text to type with it. Only the documents are indexed.
"""

import random
import re
from dataclasses import dataclass
from pathlib import Path

from plume.playground.tasks import TASKS, draw_example

TASK = "image-chain"
_DRAWS = 400  # draws after which every answer of the task has come up


@dataclass(frozen=True)
class Question:
    """A picture and a text to ask with it, and the file below ``documents/`` that answers it."""

    picture: Path
    text: str
    answer: str


def write_world(folder: Path, questions: int = 20, seed: int = 0) -> list[Question]:
    """Write the documents and the questions; the same seed writes the same files.

    Args:
        folder: Where to.
        questions: How many.
        seed: Seed of the world.
    """
    for name in ("documents", "questions"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    examples = [draw_example(TASKS[TASK], random.Random(f"search-{seed}-{index}"), "test") for index in range(_DRAWS)]
    for text in sorted({example.target.text for example in examples}):
        (folder / "documents" / _name(text)).write_text(text + "\n", encoding="utf-8")
    asked = []
    for number, example in enumerate(examples[:questions], start=1):
        picture = folder / "questions" / f"{number:02d}.png"
        assert example.query.image is not None
        example.query.image.save(picture)
        picture.with_suffix(".txt").write_text(example.query.text + "\n", encoding="utf-8")
        asked.append(Question(picture, example.query.text, _name(example.target.text)))
    return asked


def _name(text: str) -> str:
    return re.sub(r"\W+", "-", text).strip("-") + ".txt"


def read_questions(folder: Path) -> list[tuple[str, Path]]:
    """The questions below ``folder``: text and picture each."""
    pictures = sorted((folder / "questions").glob("*.png"))
    return [(picture.with_suffix(".txt").read_text(encoding="utf-8").strip(), picture) for picture in pictures]

"""Find the picture for a word, in several languages, and for a picture with a wish.

python examples/pictures_demo.py [--output outputs/pictures-demo.png]

The pictures are of a style that plume-pictures never saw (``examples/pictures``, whose list says whose they are). Green
is the picture that was asked for, red a wrong first one.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import contact_sheet
import torch

import plume

FOLDER = Path(__file__).parent / "pictures"
NUM_SHOWN = 4
# Everyday words and the picture they mean; chosen before the model had answered any.
WORDS = (
    ("dog", "dog"),
    ("rocket", "rocket"),
    ("I am so tired", "tired face"),
    ("Erdbeere", "strawberry"),
    ("sapin de Noël", "Christmas tree"),
    ("mariposa", "butterfly"),
    ("sateenkaari", "rainbow"),
    ("coração partido", "broken heart"),
    ("diş", "tooth"),
    ("trattore", "tractor"),
)
WISHES = (("waving hand", "dark"), ("astronaut", "light"))


def queries() -> list[tuple[Any, str]]:
    """Inputs and the names of their answers."""
    picture = lambda name: str(FOLDER / f"{name.replace(' ', '-')}.png")  # noqa: E731
    wishes = [
        ({"image": picture(name), "text": f"the same with {tone} skin tone"}, f"{name}: {tone} skin tone")
        for name, tone in WISHES
    ]
    return [*WORDS, *wishes]


def main() -> None:
    """Embed pictures and queries, rank, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("outputs/pictures-demo.png"))
    options = parser.parse_args()
    shown = json.loads((FOLDER / "pictures.json").read_text(encoding="utf-8"))["pictures"]
    model, processor = plume.load("pictures")
    documents = [{"image": str(FOLDER / name)} for name in shown]
    asked = queries()
    with torch.inference_mode():
        vectors = torch.cat(
            [
                model(**processor.process_documents(documents[start : start + 64])).embeddings
                for start in range(0, len(documents), 64)
            ]
        )
        similarities = model(**processor.process_queries([query for query, _ in asked])).embeddings @ vectors.T
    names, rows, first = [entry["name"] for entry in shown.values()], [], 0
    for (query, answer), similarity in zip(asked, similarities, strict=True):
        best = similarity.argsort(descending=True).tolist()
        place = [names[index] for index in best].index(answer) + 1
        first += place == 1
        marks: list[bool | None] = [True if names[index] == answer else None for index in best[:NUM_SHOWN]]
        marks[0] = place == 1
        found = [(documents[index], similarity[index].item(), mark) for index, mark in zip(best, marks, strict=False)]
        rows.append((f"right at rank {place}", query, found))
        text = query if isinstance(query, str) else f"{Path(query['image']).stem}, {query['text']}"
        print(f"{text:<48} -> {names[best[0]]:<32} the right one is at rank {place}")
    title = f"The best {NUM_SHOWN} of {len(documents)} pictures, drawn in a style that the model never saw"
    contact_sheet.draw(options.output, title, rows, abreast=2)
    print(f"\n{first} of {len(asked)} first. Contact sheet: {options.output}")


if __name__ == "__main__":
    main()

"""Search sentences, pictures, a clip and a page with one model, through every door. Run by ``make demo``.

python examples/demo.py [--model FOLDER_OR_HUB_ID] [--output outputs/demo.png]

1. **Corpus**: with plume-tiny, questions in pictures that it never saw, and all their possible answers among other
   media; with any other checkpoint, everyday queries on the media alone.
2. **Embed** through three doors, which must agree.
3. **Rank**, with K latent steps and without, and draw what was right and wrong.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import contact_sheet
import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from plume import PlumeForEmbedding, PlumeProcessor
from plume.playground.tasks import TASKS, draw_example

HERE = Path(__file__).parent
TINY = HERE.parent / "checkpoints" / "plume-tiny"
MEDIA: list[Any] = [
    {"image": str(HERE / "media/bus.png")},
    {"image": str(HERE / "media/boat.png"), "text": "sunset"},
    {"image": str(HERE / "media/mountain.png")},
    {"image": str(HERE / "media/timetable_page.png")},
    {"video": str(HERE / "media/rolling_ball.mp4")},
    "the bus to the harbour leaves at ten past eight",
]
NUM_QUESTIONS, NUM_SHOWN = 4, 6

# Runs in an interpreter that never imports plume: the classes come from the checkpoint folder.
REMOTE_CODE = """
import json, sys, torch
from transformers import AutoModel, AutoProcessor
folder, items = sys.argv[1], json.loads(sys.argv[2])
model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
with torch.no_grad():
    vectors = [model(**process(side)).embeddings.tolist()
               for process, side in zip((processor.process_queries, processor.process_documents), items)]
print(json.dumps(vectors))
"""


@dataclass
class Corpus:
    """Queries, documents, and per query the document that answers it where that is known."""

    queries: list[Any]
    documents: list[Any]
    answers: list[Any]


def everyday() -> Corpus:
    """Queries on the media; nobody has judged them."""
    queries = ["a red bus at a stop", "a ball rolls from left to right", {"image": str(HERE / "media/boat.png")}]
    return Corpus(queries, MEDIA, [None] * len(queries))


def lookups(folder: Path) -> Corpus:
    """Questions that take three look-ups in a picture, and every possible answer among the media."""
    task, rng = TASKS["image-chain"], random.Random("demo 2")
    examples = [draw_example(task, rng, "test") for _ in range(400)]
    queries = []
    for number, example in enumerate(examples[:NUM_QUESTIONS]):
        picture = folder / f"question{number}.png"
        assert example.query.image is not None
        example.query.image.save(picture)
        queries.append({"image": str(picture), "text": example.query.text})
    answers = sorted({example.target.text for example in examples})
    return Corpus(queries, [*answers, *MEDIA], [example.target.text for example in examples[:NUM_QUESTIONS]])


def embed_with_package(model_id: str, corpus: Corpus, num_latent_steps: int | None = None) -> list[np.ndarray]:
    """Door 1: the installed package."""
    model = PlumeForEmbedding.from_pretrained(model_id).eval()
    processor = PlumeProcessor.from_pretrained(model_id)
    with torch.no_grad():
        queries = model(**processor.process_queries(corpus.queries), num_latent_steps=num_latent_steps).embeddings
        documents = model(**processor.process_documents(corpus.documents)).embeddings
    return [queries.numpy(), documents.numpy()]


def embed_with_sentence_transformers(model_id: str, corpus: Corpus) -> list[np.ndarray]:
    """Door 2: sentence-transformers."""
    model = SentenceTransformer(model_id)
    return [model.encode_query(corpus.queries), model.encode_document(corpus.documents)]


def embed_with_remote_code(model_id: str, corpus: Corpus) -> list[np.ndarray]:
    """Door 3: AutoModel with the code that ``save_pretrained`` put beside the weights, in an interpreter elsewhere."""
    with tempfile.TemporaryDirectory() as elsewhere:
        folder = f"{elsewhere}/checkpoint"
        PlumeForEmbedding.from_pretrained(model_id).save_pretrained(folder)
        PlumeProcessor.from_pretrained(model_id).save_pretrained(folder)
        command = [sys.executable, "-c", REMOTE_CODE, folder, json.dumps([corpus.queries, corpus.documents])]
        done = subprocess.run(command, cwd=elsewhere, check=True, capture_output=True, text=True)
    return [np.array(side, dtype=np.float32) for side in json.loads(done.stdout.splitlines()[-1])]


def rank(corpus: Corpus, queries: np.ndarray, documents: np.ndarray, caption: str) -> list[tuple[str, Any, list[Any]]]:
    """Rows of the contact sheet: per query its best documents; the first and the answer are marked right or wrong."""
    rows = []
    for query, answer, similarity in zip(corpus.queries, corpus.answers, queries @ documents.T, strict=True):
        best = [corpus.documents[index] for index in np.argsort(-similarity)[:NUM_SHOWN]]
        right = [
            None if answer is None or (place and document != answer) else document == answer
            for place, document in enumerate(best)
        ]
        rows.append((caption, query, list(zip(best, -np.sort(-similarity)[:NUM_SHOWN], right, strict=True))))
    return rows


def main() -> None:
    """Embed, compare the doors, rank, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=str(TINY), help="folder or Hub id of a PLUME checkpoint; default plume-tiny")
    parser.add_argument("--output", type=Path, default=Path("outputs/demo.png"))
    options = parser.parse_args()
    options.output.parent.mkdir(parents=True, exist_ok=True)
    corpus = lookups(options.output.parent.resolve()) if options.model == str(TINY) else everyday()

    package = embed_with_package(options.model, corpus)
    for name, door in (
        ("sentence-transformers", embed_with_sentence_transformers),
        ("AutoModel, remote code", embed_with_remote_code),
    ):
        vectors = door(options.model, corpus)
        apart = max(np.abs(side - other).max() for side, other in zip(package, vectors, strict=True))
        print(f"{name:<24} agrees with the package to {apart:.0e}")

    queries, documents = package
    rows = rank(corpus, queries, documents, "query, with latent steps")
    if corpus.answers[0] is not None:
        queries, _ = embed_with_package(options.model, corpus, num_latent_steps=0)
        without = rank(corpus, queries, documents, "latent steps left out")
        rows = [row for pair in zip(rows, without, strict=True) for row in pair]
    for caption, query, best in rows:
        asked = query.get("text", query.get("image")) if isinstance(query, dict) else query
        document, similarity, right = best[0]
        verdict = {None: "", True: "right", False: "wrong"}[right]
        found = document if isinstance(document, str) else " + ".join(Path(part).name for part in document.values())
        print(f"{caption:<30}{asked:<32} -> {found:<28} {similarity:.3f}  {verdict}")
    title = f"The best {NUM_SHOWN} of {len(corpus.documents)} documents"
    if corpus.answers[0] is not None:
        title += ". 'open red': go to the red box, then to the box of the color in it, and so on. Which is the last?"
    contact_sheet.draw(options.output, title, rows)
    print(f"\nContact sheet: {options.output}")


if __name__ == "__main__":
    main()

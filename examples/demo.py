"""Search sentences, pictures, a clip and a page with one model, through every entry point. Run by ``make demo``.

python examples/demo.py [--model FOLDER_OR_HUB_ID] [--output outputs/demo.png]

1. **Corpus**: with plume-tiny, questions about pictures, pages, texts and clips that it never saw, and all their
   possible answers - sentences, pictures, clips - among other media; with any other checkpoint, everyday queries on
   the media alone.
2. **Embed** through three entry points, which must agree.
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
from plume.playground.tasks import TASKS, Item, draw_example

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
NUM_SHOWN = 6
QUESTIONS = {"image-chain": 2, "document-chain": 1, "text-chain": 1, "video-track": 1}
_DRAWS = 300  # examples of a task after which every answer has come up

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
    """Queries, documents, and what answers the one and what the other shows, in words, where that is known."""

    queries: list[Any]
    documents: list[Any]
    answers: list[str | None]
    shown: list[str | None]


def everyday() -> Corpus:
    """Queries on the media; nobody has judged them."""
    queries = ["a red bus at a stop", "a ball rolls from left to right", {"image": str(HERE / "media/boat.png")}]
    return Corpus(queries, MEDIA, [None] * len(queries), [None] * len(MEDIA))


def lookups(folder: Path) -> Corpus:
    """Questions that take three look-ups, and every possible answer of their tasks among the media."""
    folder.mkdir(exist_ok=True)
    corpus = Corpus([], list(MEDIA), [], [None] * len(MEDIA))
    for name, count in QUESTIONS.items():
        examples = [draw_example(TASKS[name], random.Random(f"demo-{name}-{n}"), "test") for n in range(_DRAWS)]
        targets = {example.answer: example.target for example in examples}
        for answer in sorted(targets):
            corpus.shown.append(answer)
            corpus.documents.append(_write(targets[answer], folder / f"{name}-{answer.replace(' ', '-')}"))
        for number, example in enumerate(examples[:count], start=1):
            corpus.queries.append(_write(example.query, folder / f"{name}-question{number}"))
            corpus.answers.append(example.answer)
    return corpus


def _write(item: Item, stem: Path) -> Any:
    """The input with its media as files, which every entry point can open."""
    pictures = {f"{stem}.png": item.image} if item.image else {}
    pictures |= {f"{stem}-{number}.png": frame for number, frame in enumerate(item.video)}
    for file, picture in pictures.items():
        picture.save(file)
    media: dict[str, Any] = {"image": next(iter(pictures))} if item.image else {"video": list(pictures)}
    return {**(media if pictures else {}), **({"text": item.text} if item.text else {})}


def embed_with_package(model_id: str, corpus: Corpus) -> list[np.ndarray]:
    """Entry point 1: the installed package; queries, documents, and the queries again without latent steps."""
    model = PlumeForEmbedding.from_pretrained(model_id).eval()
    processor = PlumeProcessor.from_pretrained(model_id)
    queries, documents = processor.process_queries(corpus.queries), processor.process_documents(corpus.documents)
    with torch.no_grad():
        outputs = [model(**queries), model(**documents), model(**queries, num_latent_steps=0)]
    return [output.embeddings.numpy() for output in outputs]


def embed_with_sentence_transformers(model_id: str, corpus: Corpus) -> list[np.ndarray]:
    """Entry point 2: sentence-transformers."""
    model = SentenceTransformer(model_id)
    return [model.encode_query(corpus.queries), model.encode_document(corpus.documents)]


def embed_with_remote_code(model_id: str, corpus: Corpus) -> list[np.ndarray]:
    """Entry point 3: AutoModel in another interpreter, with the code that ``save_pretrained`` put into the folder."""
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
        best = np.argsort(-similarity)[:NUM_SHOWN].tolist()
        right: list[bool | None] = [None] * len(best)
        if answer is not None:  # in whatever form: a picture of the box is as right as a clip of it
            right = [True if corpus.shown[place] == answer else None for place in best]
            right[0] = corpus.shown[best[0]] == answer
        found = [(corpus.documents[place], similarity[place], mark) for place, mark in zip(best, right, strict=True)]
        rows.append((caption, query, found))
    return rows


def _named(item: Any) -> str:
    """An input in a few words."""
    if isinstance(item, str):
        return item
    if "text" in item:
        return _shortened(item["text"])
    media = item.get("image") or item["video"]
    return Path(media if isinstance(media, str) else media[0]).name


def _shortened(text: str) -> str:
    return text if len(text) <= 32 else f"... {text[-28:]}"


def main() -> None:
    """Embed, compare the entry points, rank, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=str(TINY), help="folder or Hub id of a PLUME checkpoint; default plume-tiny")
    parser.add_argument("--output", type=Path, default=Path("outputs/demo.png"))
    options = parser.parse_args()
    options.output.parent.mkdir(parents=True, exist_ok=True)
    is_tiny = Path(options.model).resolve() == TINY.resolve()
    corpus = lookups(options.output.parent.resolve() / "demo") if is_tiny else everyday()

    package = embed_with_package(options.model, corpus)
    for name, embed in (
        ("sentence-transformers", embed_with_sentence_transformers),
        ("AutoModel, remote code", embed_with_remote_code),
    ):
        vectors = embed(options.model, corpus)
        apart = max(np.abs(side - other).max() for side, other in zip(package, vectors, strict=False))
        print(f"{name:<24} agrees with the package to {apart:.0e}")
        if apart > 1e-4:
            raise SystemExit(f"{name} gives other vectors than the package: one of the two is broken.")

    queries, documents, single_pass = package
    rows = rank(corpus, queries, documents, "query, with latent steps")
    if corpus.answers[0] is not None:
        without = rank(corpus, single_pass, documents, "latent steps left out")
        rows = [row for pair in zip(rows, without, strict=True) for row in pair]
    for caption, query, best in rows:
        document, similarity, right = best[0]
        verdict = {None: "", True: "right", False: "wrong"}[right]
        print(f"{caption:<30}{_named(query):<36} -> {_named(document):<36} {similarity:.3f}  {verdict}")
    title = f"The best {NUM_SHOWN} of {len(corpus.documents)} documents"
    if corpus.answers[0] is not None:
        title += ". Every question takes three look-ups: go to the box named, then to the one that it names, and so on."
    contact_sheet.draw(options.output, title, rows)
    print(f"\nContact sheet: {options.output}")


if __name__ == "__main__":
    main()

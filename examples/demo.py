"""Search pictures, a clip, a page and a sentence with one model, through every door. Run by ``make demo``.

python examples/demo.py [--model FOLDER_OR_HUB_ID] [--output outputs/demo.png]
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import contact_sheet
import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from plume import PlumeForEmbedding, PlumeProcessor
from plume.hub.random_checkpoint import save_random_plume

MEDIA = Path(__file__).parent / "media"
QUERIES = ["a red bus at a stop", "a ball rolls from left to right", {"image": str(MEDIA / "boat.png")}]
DOCUMENTS = [
    {"image": str(MEDIA / "bus.png")},
    {"image": str(MEDIA / "boat.png"), "text": "sunset"},
    {"image": str(MEDIA / "mountain.png")},
    {"image": str(MEDIA / "timetable_page.png")},
    {"video": str(MEDIA / "rolling_ball.mp4")},
    "the bus to the harbour leaves at ten past eight",
]
LABELS = ["bus", "boat+text", "mountain", "page", "clip", "sentence"]

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


def embed_with_package(model_id: str) -> list[np.ndarray]:
    """Door 1: the installed package."""
    model = PlumeForEmbedding.from_pretrained(model_id).eval()
    processor = PlumeProcessor.from_pretrained(model_id)
    with torch.no_grad():
        queries = model(**processor.process_queries(QUERIES)).embeddings
        documents = model(**processor.process_documents(DOCUMENTS)).embeddings
    return [queries.numpy(), documents.numpy()]


def embed_with_sentence_transformers(model_id: str) -> list[np.ndarray]:
    """Door 2: sentence-transformers."""
    model = SentenceTransformer(model_id)
    return [model.encode_query(QUERIES), model.encode_document(DOCUMENTS)]


def embed_with_remote_code(model_id: str) -> list[np.ndarray]:
    """Door 3: AutoModel with the code of the checkpoint, in a fresh interpreter elsewhere."""
    command = [sys.executable, "-c", REMOTE_CODE, model_id, json.dumps([QUERIES, DOCUMENTS])]
    with tempfile.TemporaryDirectory() as elsewhere:
        done = subprocess.run(command, cwd=elsewhere, check=True, capture_output=True, text=True)
    return [np.array(side, dtype=np.float32) for side in json.loads(done.stdout.splitlines()[-1])]


def main() -> None:
    """Embed, compare the doors, print similarities, draw the ranking."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="folder or Hub id of a PLUME checkpoint; random weights where omitted")
    parser.add_argument("--output", type=Path, default=Path("outputs/demo.png"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        if options.model is None:
            save_random_plume(Path(scratch))
            print("No --model given: the weights are RANDOM, so the ranking below means nothing yet.\n")
        model_id = options.model or scratch
        package = embed_with_package(model_id)
        doors = {
            "sentence-transformers": embed_with_sentence_transformers(model_id),
            "AutoModel, remote code": embed_with_remote_code(model_id),
        }
    for name, vectors in doors.items():
        apart = max(np.abs(side - other).max() for side, other in zip(package, vectors, strict=True))
        print(f"{name:<24} agrees with the package to {apart:.0e}")
    similarity = package[0] @ package[1].T
    print("\nsimilarity" + "".join(f"{label:>11}" for label in LABELS))
    for name, row in zip(["red bus", "rolling", "boat.png"], similarity, strict=True):
        print(f"{name:<10}" + "".join(f"{value:>11.3f}" for value in row))
    rows = [
        (query, [(DOCUMENTS[i], float(row[i]), None) for i in np.argsort(-row)])
        for query, row in zip(QUERIES, similarity, strict=True)
    ]
    note = "" if options.model else "   (random weights: the order means nothing yet)"
    contact_sheet.draw(options.output, f"PLUME: query -> ranked documents{note}", rows)
    print(f"\nContact sheet: {options.output}")


if __name__ == "__main__":
    main()

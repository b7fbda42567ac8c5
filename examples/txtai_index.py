"""PLUME in txtai: an index of texts and pictures.

python examples/txtai_index.py [MODEL]

Needs txtai (extra `integrations`). txtai itself uses the checkpoint's instructions for queries and documents.
"""

import sys
from pathlib import Path

from PIL import Image
from txtai import Embeddings

import plume  # noqa: F401 - makes the model known to transformers

MODEL = sys.argv[1] if len(sys.argv) > 1 else "checkpoints/plume-tiny"
MEDIA = Path(__file__).parent / "media"

texts = ["the bus to the harbour leaves at ten past eight", "two dogs on a sofa"]
paths = sorted(MEDIA.glob("*.png"))
names = [*texts, *(path.name for path in paths)]

embeddings = Embeddings(path=MODEL, method="sentence-transformers")
embeddings.index(enumerate([*texts, *map(Image.open, paths)]))

for query in ("when does the bus leave?", Image.open(MEDIA / "bus.png")):
    for place, score in embeddings.search(query, 2):
        print(f"{score:.3f}  {names[place]}")

"""Search your own photos by a text, a photo, or both.

python examples/own_photos.py FOLDER "a red bus" [--like PHOTO] [--model MODEL]

Embeds on every run. `python -m plume.apps.search` keeps an index, and reads clips, PDFs and texts, too.
Needs the extra `st`.
"""

import argparse
from pathlib import Path

from sentence_transformers import SentenceTransformer

import plume  # noqa: F401 - makes the model known to transformers

ENDINGS = {".jpg", ".jpeg", ".png", ".webp", ".avif"}

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("folder", type=Path, help="folder of photos")
parser.add_argument("text", nargs="?", default="", help="what to look for")
parser.add_argument("--like", help="a photo to look for, next to or instead of the text")
parser.add_argument("--model", default="checkpoints/plume-tiny", help="PLUME checkpoint: folder or Hub id")
options = parser.parse_args()

photos = sorted(path for path in options.folder.rglob("*") if path.suffix.lower() in ENDINGS)
query = {"text": options.text} if options.text else {}
if options.like:
    query["image"] = options.like

model = SentenceTransformer(options.model)
vectors = model.encode_document([{"image": str(path)} for path in photos], batch_size=8, show_progress_bar=True)
scores = model.similarity(model.encode_query([query]), vectors)[0]
for place in scores.argsort(descending=True)[:5].tolist():
    print(f"{scores[place]:.3f}  {photos[place]}")

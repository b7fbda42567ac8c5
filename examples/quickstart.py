"""Embed texts, a picture and a clip into one space, and rank them.

python examples/quickstart.py [MODEL]

Needs the extras `st` and `video`.
"""

import sys
from pathlib import Path

from sentence_transformers import SentenceTransformer

import plume  # noqa: F401 - makes the model known to transformers

MODEL = sys.argv[1] if len(sys.argv) > 1 else "checkpoints/plume-tiny"
MEDIA = Path(__file__).parent / "media"

documents = [
    "the bus to the harbour leaves at ten past eight",
    {"image": str(MEDIA / "bus.png")},
    {"video": str(MEDIA / "rolling_ball.mp4")},
    {"image": str(MEDIA / "boat.png"), "text": "sunset"},
]
query = {"image": str(MEDIA / "bus.png"), "text": "where does it go?"}

model = SentenceTransformer(MODEL)
# Queries and documents have instructions of their own, so each has its own method.
document_vectors = model.encode_document(documents)
query_vector = model.encode_query([query])

scores = model.similarity(query_vector, document_vectors)[0]
for place in scores.argsort(descending=True).tolist():
    print(f"{scores[place]:.3f}  {documents[place]}")

# More latent steps think longer, none at all is the plain encoder.
fast = model.encode_query([query], num_latent_steps=0)
print(f"K = 0 differs from the checkpoint's K by {abs(fast - query_vector).max():.3f} at most")

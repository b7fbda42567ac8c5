"""Find the page of a PDF that answers a question. Pages are embedded as pictures: no text recognition, no layout model.

python examples/pdf_pages.py FILE.pdf "when does the last bus leave?" [MODEL]

Needs the extra `st` and pypdfium2 (extra `search`).
"""

import sys

import pypdfium2
from sentence_transformers import SentenceTransformer

import plume  # noqa: F401 - makes the model known to transformers

FILE, QUESTION = sys.argv[1:3]
MODEL = sys.argv[3] if len(sys.argv) > 3 else "checkpoints/plume-tiny"
PIXELS = 1280 * 28 * 28  # as many as the model looks at by default

pages = []
with pypdfium2.PdfDocument(FILE) as pdf:
    for page in pdf:
        width, height = page.get_size()
        pages.append(page.render(scale=(PIXELS / (width * height)) ** 0.5).to_pil())

model = SentenceTransformer(MODEL)
scores = model.similarity(model.encode_query([QUESTION]), model.encode_document(pages, batch_size=4))[0]
for place in scores.argsort(descending=True)[:3].tolist():
    print(f"{scores[place]:.3f}  page {place + 1}")

"""PLUME in Haystack: texts and pictures in one document store.

python examples/haystack_pictures.py [MODEL]

Needs sentence-transformers-haystack (extra `integrations`). Haystack sends usage statistics unless the environment has
HAYSTACK_TELEMETRY_ENABLED=False.
"""

import sys
from pathlib import Path
from typing import Any

from haystack import Document
from haystack.document_stores.in_memory import InMemoryDocumentStore
from haystack_integrations.components.embedders.sentence_transformers import (
    SentenceTransformersDocumentEmbedder,
    SentenceTransformersDocumentImageEmbedder,
    SentenceTransformersTextEmbedder,
)

import plume  # noqa: F401 - makes the model known to transformers

MODEL = sys.argv[1] if len(sys.argv) > 1 else "checkpoints/plume-tiny"
MEDIA = Path(__file__).parent / "media"
OPTIONS: dict[str, Any] = {"model": MODEL, "progress_bar": False}

# The checkpoint has an instruction for documents and one for queries.
texts = SentenceTransformersDocumentEmbedder(**OPTIONS, encode_kwargs={"prompt_name": "document"})
pictures = SentenceTransformersDocumentImageEmbedder(**OPTIONS, encode_kwargs={"prompt_name": "document"})
queries = SentenceTransformersTextEmbedder(**OPTIONS, encode_kwargs={"prompt_name": "query"})
for embedder in (texts, pictures, queries):
    embedder.warm_up()

store = InMemoryDocumentStore(embedding_similarity_function="cosine")
sentences = ("the bus to the harbour leaves at ten past eight", "two dogs on a sofa")
store.write_documents(texts.run([Document(content=text) for text in sentences])["documents"])
files = [Document(meta={"file_path": str(path)}) for path in sorted(MEDIA.glob("*.png"))]
store.write_documents(pictures.run(files)["documents"])

query = queries.run("when does the bus leave?")["embedding"]
for found in store.embedding_retrieval(query, top_k=3):
    print(f"{found.score:.3f}  {found.content or found.meta['file_path']}")

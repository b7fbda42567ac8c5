"""PLUME in LlamaIndex: texts and pictures.

python examples/llamaindex.py [MODEL]

Needs llama-index-embeddings-huggingface (extra `integrations`).
"""

import sys
from pathlib import Path

from llama_index.core import VectorStoreIndex
from llama_index.core.schema import TextNode
from llama_index.embeddings.huggingface import HuggingFaceEmbedding
from transformers import AutoProcessor

import plume  # noqa: F401 - makes the model known to transformers

MODEL = sys.argv[1] if len(sys.argv) > 1 else "checkpoints/plume-tiny"
MEDIA = Path(__file__).parent / "media"

# LlamaIndex replaces the checkpoint's instructions by its own, so they are given back.
processor = AutoProcessor.from_pretrained(MODEL)
embedding = HuggingFaceEmbedding(
    MODEL, query_instruction=processor.query_prompt, text_instruction=processor.document_prompt
)

nodes = [TextNode(text=text) for text in ("the bus to the harbour leaves at ten past eight", "two dogs on a sofa")]
for path in sorted(MEDIA.glob("*.png")):
    nodes.append(TextNode(text=path.name, embedding=embedding.get_image_embedding(str(path))))
index = VectorStoreIndex(nodes, embed_model=embedding)

for found in index.as_retriever(similarity_top_k=3).retrieve("when does the bus leave?"):
    print(f"{found.score:.3f}  {found.node.get_content()}")

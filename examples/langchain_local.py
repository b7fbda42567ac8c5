"""PLUME in LangChain without a server, with HuggingFaceEmbeddings.

python examples/langchain_local.py [MODEL]

Needs the extra `integrations` and langchain-huggingface. Release 1.2.3 of the latter asks for huggingface-hub below 2
but runs with 2.4: pip install --no-deps langchain-huggingface. Texts only: LangChain's interface has no pictures.
"""

import sys

from langchain_core.vectorstores import InMemoryVectorStore
from langchain_huggingface import HuggingFaceEmbeddings

import plume  # noqa: F401 - makes the model known to transformers

MODEL = sys.argv[1] if len(sys.argv) > 1 else "checkpoints/plume-tiny"

embeddings = HuggingFaceEmbeddings(
    model_name=MODEL,
    encode_kwargs={"prompt_name": "document"},
    query_encode_kwargs={"prompt_name": "query"},  # queries have an instruction of their own
)
store = InMemoryVectorStore(embeddings)
store.add_texts(["the bus to the harbour leaves at ten past eight", "two dogs on a sofa", "a museum of ships"])
for document, score in store.similarity_search_with_score("when does the bus leave?", k=3):
    print(f"{score:.3f}  {document.page_content}")

"""PLUME in LangChain through the server, with LangChain's own OpenAIEmbeddings.

python -m plume.apps.serving                        # in another terminal
python examples/langchain_server.py [http://127.0.0.1:8000/v1]

Needs langchain-openai (extra `integrations`). Texts only: LangChain's interface has no pictures.
"""

import sys
from typing import Any

from langchain_core.vectorstores import InMemoryVectorStore
from langchain_openai import OpenAIEmbeddings

ADDRESS = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000/v1"
SERVER = {
    "model": "plume",
    "base_url": ADDRESS,
    "api_key": "none",  # or the server's --api-key
    "check_embedding_ctx_length": False,  # send texts: token ids of OpenAI's tokenizer mean nothing to PLUME
}


class PlumeEmbeddings(OpenAIEmbeddings):
    """Embeds queries with the instruction for queries, where OpenAIEmbeddings treats both alike."""

    def embed_query(self, text: str, **kwargs: Any) -> list[float]:
        """The vector of a query."""
        return OpenAIEmbeddings(**SERVER, model_kwargs={"extra_body": {"role": "query"}}).embed_documents([text])[0]


store = InMemoryVectorStore(PlumeEmbeddings(**SERVER))
store.add_texts(["the bus to the harbour leaves at ten past eight", "two dogs on a sofa", "a museum of ships"])
for document, score in store.similarity_search_with_score("when does the bus leave?", k=3):
    print(f"{score:.3f}  {document.page_content}")

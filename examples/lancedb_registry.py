"""PLUME in LanceDB's embedding registry: a table that embeds texts and pictures by itself.

python examples/lancedb_registry.py FOLDER_OF_THE_DATABASE [MODEL]

Needs lancedb (extra `integrations`).
"""

import sys
from functools import cached_property
from pathlib import Path
from typing import Any

import lancedb
import pyarrow as pa
from lancedb.embeddings import EmbeddingFunction, get_registry, register
from lancedb.pydantic import LanceModel, Vector
from PIL import Image
from sentence_transformers import SentenceTransformer

import plume  # noqa: F401 - makes the model known to transformers

DATABASE = sys.argv[1]
MODEL = sys.argv[2] if len(sys.argv) > 2 else "checkpoints/plume-tiny"
MEDIA = Path(__file__).parent / "media"


@register("plume")
class PlumeFunction(EmbeddingFunction):
    """Texts, and pictures as paths or PIL images."""

    name: str = MODEL

    @cached_property
    def _model(self) -> SentenceTransformer:
        return SentenceTransformer(self.name)

    def ndims(self) -> int:
        """Length of a vector."""
        return len(self._model.encode("a"))

    def compute_query_embeddings(self, query: Any, *args: Any, **kwargs: Any) -> list:
        """The vector of one query: a text, or a PIL image."""
        return self._model.encode_query([query]).tolist()

    def compute_source_embeddings(self, sources: Any, *args: Any, **kwargs: Any) -> list:
        """The vectors of a column; what is the path of a picture is embedded as the picture."""
        texts = pa.array(sources).to_pylist()
        items = [{"image": text} if text.endswith(".png") else text for text in texts]
        return self._model.encode_document(items).tolist()


function = get_registry().get("plume").create(name=MODEL, max_retries=0)


class Document(LanceModel):
    """A row: what it holds, and its vector, which the table fills in."""

    content: str = function.SourceField()
    vector: Vector(function.ndims()) = function.VectorField()  # type: ignore[valid-type]


table = lancedb.connect(DATABASE).create_table("documents", schema=Document, mode="overwrite")
table.add([{"content": text} for text in ("the bus to the harbour leaves at ten past eight", "two dogs on a sofa")])
table.add([{"content": str(path)} for path in sorted(MEDIA.glob("*.png"))])

for query in ("when does the bus leave?", Image.open(MEDIA / "bus.png")):
    for row in table.search(query).distance_type("cosine").limit(2).to_list():
        print(f"{1 - row['_distance']:.3f}  {row['content']}")

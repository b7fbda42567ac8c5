"""A document as a row, the same in the index and in the Parquet files of the distributed job."""

import io
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image, ImageOps

JOB_FILE = "job.json"  # what embeds, and what it embeds
SHOWN = ("id", "root", "path", "part", "parts", "kind", "text")
_PREVIEW, _FRAME_MILLISECONDS, _TEXT_SHOWN = (360, 360), 220, 400


def same_checkpoint(one: str, other: str) -> bool:
    """Whether two identities of encoders have the same hash, whatever the names of their folders."""
    return one.split()[-1:] == other.split()[-1:]


def row_schema(dimension: int, metadata: dict[bytes, bytes] | None = None) -> pa.Schema:
    """Columns of a row.

    - ``id``; where the document lies: ``root``, ``path``, ``part`` of ``parts``; its ``kind``;
    - what it shows: the beginning of its ``text``, a ``preview`` as WebP;
    - what tells whether it has changed: ``stamp`` (size and time) and ``digest`` (hash) of its file;
    - ``vector``: ``(dimension,)``, unit length, fp32.
    """
    fields = [(name, pa.int32() if name.startswith("part") else pa.string()) for name in SHOWN]
    fields += [("stamp", pa.string()), ("digest", pa.string()), ("preview", pa.binary())]
    return pa.schema([*fields, ("vector", pa.list_(pa.float32(), dimension))], metadata)


def build_row(facts: dict[str, Any], content: dict[str, Any], vector: np.ndarray) -> dict[str, Any]:
    """A row from the facts of a document (``id`` to ``kind``, ``stamp``, ``digest``), its content and its vector."""
    return {**facts, "text": content.get("text", "")[:_TEXT_SHOWN], "preview": preview(content), "vector": vector}


def preview(content: dict[str, Any]) -> bytes:
    """A document as a small WebP: the picture, the page, or the frames that the model saw; nothing for a text."""
    frames = content["video"].frames if "video" in content else [content["image"]] if "image" in content else []
    if not frames:
        return b""
    small = [_shrink(frame) for frame in frames]
    buffer = io.BytesIO()
    options: dict[str, Any] = {"quality": 80, "method": 2}
    if len(small) > 1:
        options |= {"save_all": True, "append_images": small[1:], "duration": _FRAME_MILLISECONDS, "loop": 0}
    small[0].save(buffer, "WEBP", **options)
    return buffer.getvalue()


def _shrink(frame: Image.Image) -> Image.Image:
    return ImageOps.contain(ImageOps.exif_transpose(frame).convert("RGB"), _PREVIEW)

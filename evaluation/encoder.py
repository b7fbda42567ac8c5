"""The encoder that mteb drives: batches of columns -> our inputs -> unit vectors, checked, kept and resumed.

1. **Rows to inputs**: text after one image or the frames of one clip; a single frame stays a clip unless the task
   says that it is an image.
2. **Embed**, with progress; parts go to disk, and what is there already is not embedded again.
3. **Check and finish**: finite (mteb scores NaN silently when it searches a whole corpus), cut to ``dim``, unit length,
   float32: bfloat16 scores would tie.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Image, List, Video
from mteb import TaskMetadata
from mteb.models.model_meta import ModelMeta, ScoringFunction
from mteb.similarity_functions import dot_score, pairwise_dot_score
from mteb.types import PromptType
from torch.utils.data import DataLoader
from tqdm import tqdm

from plume.checks_plume import check_finite
from plume.evaluation.embedders import Embedder
from plume.evaluation.parsers.common import frame_indices
from plume.evaluation.store import VectorStore

_PART = 256  # vectors per file: what a killed run loses at most
_DECODED_FRAMES = 8


class PlumeEncoder:
    """An mteb encoder (``EncoderProtocol``) over anything that embeds.

    Args:
        embedder: Has ``encode(inputs, role) -> (B, D)`` and ``condition``.
        name: Name in results.
        dim: Leading dimensions to keep, renormalised. Defaults to all.
        store: Folder for vectors while tasks run. Defaults to none.
        instructions: In front of every text, per role (``query``, ``document``), for tasks of mteb itself; the tasks of
            our tables bring their own.
    """

    def __init__(
        self,
        embedder: Embedder,
        name: str = "plume",
        dim: int | None = None,
        store: str | Path | None = None,
        instructions: Mapping[str, str] | None = None,
    ) -> None:
        self.embedder, self.name, self.dim = embedder, name, dim
        self.instructions = dict(instructions or {})
        self.store = Path(store) if store else None
        self.num_encoded = 0  # inputs embedded, not read from the store
        self.vectors: dict[str, Any] = {}  # what the last task's vectors look like, per role

    @property
    def mteb_model_meta(self) -> ModelMeta:
        """Metadata for mteb: any name without a slash is put into an organisation of its own."""
        fields: dict[str, Any] = {
            "name": self.name if "/" in self.name else f"plume/{self.name}",
            "embed_dim": self.dim,
            "framework": ["PyTorch"],
            "similarity_fn_name": ScoringFunction.DOT_PRODUCT,
            "use_instructions": True,
            "modalities": ["text", "image", "video"],
        }
        return ModelMeta.create_empty(overwrites=fields)

    def encode(
        self,
        inputs: Any,
        *,
        task_metadata: TaskMetadata,
        hf_split: str,
        hf_subset: str,
        prompt_type: PromptType | None = None,
        show_progress_bar: bool = True,
        **kwargs: Any,
    ) -> np.ndarray:
        """Vectors of all inputs of a loader, ``(N, D)``, float32, unit length.

        Args:
            inputs: A ``DataLoader`` of mteb's batches of columns.
            task_metadata: The task.
            hf_split: Its split.
            hf_subset: Its subset.
            prompt_type: Query or document.
            show_progress_bar: Whether to show progress.
            **kwargs: What mteb adds; no effect here.

        Raises:
            ValueError: If a vector is not finite or zero, or stored vectors belong to other settings.
        """
        role = "query" if prompt_type == PromptType.query else "document"
        keep = self._open_store(inputs.dataset, task_metadata.name, role)
        parts = keep.read() if keep else []
        start = sum(map(len, parts))
        waiting: list[np.ndarray] = []
        with tqdm(
            total=len(inputs.dataset),
            initial=start,
            desc=f"{task_metadata.name} {role}",
            unit="input",
            disable=not show_progress_bar,
        ) as bar:
            for batch in _remaining(inputs, start) if start < len(inputs.dataset) else ():
                vectors = self._embed(to_inputs(batch, self.instructions.get(role, "")), role)
                waiting.append(vectors)
                bar.update(len(vectors))
                if sum(map(len, waiting)) >= _PART:
                    start = _flush(waiting, parts, keep, start)
            _flush(waiting, parts, keep, start)
        finished = finish(np.concatenate(parts), self.dim)
        self.vectors[role] = describe(finished)
        return finished

    def _embed(self, items: list[dict[str, Any]], role: str) -> np.ndarray:
        vectors = torch.as_tensor(self.embedder.encode(items, role)).float().cpu()
        self.num_encoded += len(items)
        check_finite(vectors)
        return vectors.numpy()

    def _open_store(self, dataset: Any, task: str, role: str) -> VectorStore | None:
        if self.store is None or not isinstance(dataset, Dataset) or "id" not in dataset.column_names:
            return None
        inputs = digest(dataset)
        settings = {**self.embedder.condition, "instructions": self.instructions, "inputs": inputs}
        return VectorStore(self.store / task / f"{role}-{inputs[:8]}", settings)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> torch.Tensor:
        """Dot products, ``(N, M)``: cosines, as vectors have unit length."""
        return dot_score(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> torch.Tensor:
        """Dot products of pairs, ``(N,)``."""
        return torch.as_tensor(pairwise_dot_score(embeddings1, embeddings2))


def finish(vectors: np.ndarray, dim: int | None = None) -> np.ndarray:
    """The leading ``dim`` dimensions of vectors ``(N, D)``, at unit length.

    Raises:
        ValueError: If there are not as many dimensions, or a vector is zero.
    """
    if dim is not None and not 0 < dim <= vectors.shape[1]:
        raise ValueError(f"Embeddings have {vectors.shape[1]} dimensions, so {dim} cannot be kept. Mend --dim.")
    kept = vectors[:, :dim]
    lengths = np.linalg.norm(kept, axis=1, keepdims=True)
    if not (lengths > 0).all():
        raise ValueError("An embedding is zero, so it has no direction to compare. Check the checkpoint, or --dim.")
    return kept / lengths


def to_inputs(batch: Mapping[str, Any], instruction: str = "") -> list[dict[str, Any]]:
    """Our inputs from mteb's batch of columns: dicts of ``text`` and ``image`` or ``video``, without what is blank.

    An instruction is on its own line before the text, as the processor writes it.
    """
    columns = [name for name in ("text", "image", "video") if name in batch]
    media = batch.get("medium", [None] * len(batch[columns[0]]))
    items = []
    for place, medium in enumerate(media):
        item = {name: batch[name][place] for name in columns}
        if medium == "image":
            item["image"] = item.pop("video")[0]
        elif item.get("video") is not None:
            item["video"] = _frames(item["video"])
        if instruction:
            item["text"] = f"{instruction}\n{item.get('text') or ''}".strip()
        items.append({name: value for name, value in item.items() if value is not None and not _is_blank(value)})
    return items


def _frames(video: Any) -> Any:
    """Frames of a clip: those that a task gives, or eight of what a decoder of mteb's own tasks (torchcodec) reads."""
    if isinstance(video, list):
        return video
    return video.get_frames_at(indices=frame_indices(len(video), _DECODED_FRAMES)).data  # (T, C, H, W)


def _is_blank(value: Any) -> bool:
    return isinstance(value, (str, list)) and len(value) == 0


def _remaining(loader: Any, start: int) -> Any:
    if start == 0:
        return loader
    return DataLoader(
        loader.dataset.select(range(start, len(loader.dataset))),
        batch_size=loader.batch_size,
        collate_fn=loader.collate_fn,
        num_workers=loader.num_workers,
    )


def _flush(waiting: list[np.ndarray], parts: list[np.ndarray], keep: VectorStore | None, start: int) -> int:
    if not waiting:
        return start
    part = np.concatenate(waiting)
    if keep:
        keep.append(start, part)
    parts.append(part)
    waiting.clear()
    return start + len(part)


def digest(dataset: Dataset) -> str:
    """A hash over one side of a task: which data were embedded, whatever their revision is called.

    Ids and texts count, the bytes of media that lie in the data, and of files their name, the name of their folder and
    their size, which are the same on every machine.
    """
    columns = [name for name in ("id", "text", "medium", "image", "video") if name in dataset.column_names]
    plain = dataset.select_columns(columns).with_format(None)
    for name in {"image", "video"} & set(columns):
        plain = plain.cast_column(name, _undecoded(plain.features[name]))
    hashed = hashlib.blake2b(digest_size=16)
    for row in plain:
        hashed.update(json.dumps({name: _told(value) for name, value in row.items()}).encode())
    return hashed.hexdigest()


def _undecoded(feature: Any) -> Any:
    if isinstance(feature, List):
        return List(_undecoded(feature.feature))
    return replace(feature, decode=False) if isinstance(feature, (Image, Video)) else feature


def _told(value: Any) -> Any:
    """What of a cell goes into the hash: a text as it is, a medium by its bytes or by its file."""
    if isinstance(value, list):
        return [_told(part) for part in value]
    if not isinstance(value, dict):
        return value
    if value["bytes"] is not None:
        return hashlib.blake2b(value["bytes"], digest_size=16).hexdigest()
    file = Path(value["path"])
    return [file.parent.name, file.name, file.stat().st_size]


def describe(vectors: np.ndarray) -> dict[str, Any]:
    """How spread vectors ``(N, D)`` are: their number, the mean cosine of pairs, and how many are distinct."""
    count = len(vectors)
    total = float(np.square(vectors.sum(axis=0, dtype=np.float64)).sum())
    mean_cosine = (total - count) / (count * (count - 1)) if count > 1 else None
    return {
        "count": count,
        "mean_cosine": mean_cosine,
        "distinct": len(np.unique(vectors.round(5), axis=0)),
        "dim": int(vectors.shape[1]),
    }

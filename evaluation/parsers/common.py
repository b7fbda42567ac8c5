"""What all parsers share: items, media that must exist, and the dataset that mteb reads.

A picture whose file was cut off is read as far as it goes, as the authors' loader does; a warning names the file.
"""

import hashlib
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Features, Image, List, Value
from datasets.features.features import register_feature
from PIL import ImageFile, UnidentifiedImageError
from PIL.Image import DecompressionBombError
from transformers.utils import logging

from plume.evaluation.table import Row

logger = logging.get_logger(__name__)

_FRAME_ENDINGS = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class Item:
    """One input: ``text`` after the media, and one ``image`` (a file) or one ``video`` (files of its frames)."""

    text: str
    image: str | None = None
    video: tuple[str, ...] | None = None


@dataclass
class Parsed:
    """A parsed task.

    Attributes:
        queries: The queries in the order of the data.
        candidates: Candidate key -> item; equal keys are one candidate across the whole task.
        relevant: Per query, candidate key -> grade.
        pools: Per query, the keys that it is ranked against; none where every query ranks all candidates.
        pages: Candidates as a dataset with the columns ``key`` and ``image`` instead, for page corpora.
        page_text: Text after every page.
    """

    queries: list[Item] = field(default_factory=list)
    candidates: dict[str, Item] = field(default_factory=dict)
    relevant: list[dict[str, int]] = field(default_factory=list)
    pools: list[list[str]] | None = None
    pages: Dataset | None = None
    page_text: str = ""

    def add(self, query: Item, relevant: Sequence[str], candidates: Mapping[str, Item], local: bool = True) -> None:
        """Add a query with its relevant keys (grade 1) and the candidates of its row."""
        self.queries.append(query)
        self.relevant.append(dict.fromkeys(relevant, 1))
        for key, item in candidates.items():
            self.candidates.setdefault(key, item)
        if local:
            self.pools = self.pools or []
            self.pools.append(list(candidates))


class MediaFiles:
    """Finds images and frames of a row under the media root.

    Args:
        row: The task.
        root: Media root.
        num_frames: Frames per clip. Defaults to ``row.num_frames``.
    """

    def __init__(self, row: Row, root: Path, num_frames: int | None = None) -> None:
        self.row, self.root = row, root / (row.media or "")
        self.num_frames: int | str | None = num_frames or row.num_frames
        self._images: dict[str, str] = {}  # a candidate occurs in the pools of many queries: look once
        self._clips: dict[str, tuple[str, ...]] = {}

    def image(self, path: str) -> str:
        """File of an image.

        Raises:
            ValueError: If it does not exist.
        """
        if path not in self._images:
            found = self.root / path
            if not found.is_file():
                raise ValueError(self._missing("image", found))
            self._images[path] = str(found)
        return self._images[path]

    def frames(self, folder: str) -> tuple[str, ...]:
        """Files of the frames of a clip, in the order of their numbers, ``num_frames`` of them evenly spaced.

        With fewer files than ``num_frames`` all are used; ``"all"`` takes all.

        Raises:
            ValueError: If the folder does not exist or holds no frame.
        """
        if folder not in self._clips:
            self._clips[folder] = self._find_frames(self.root / folder)
        return self._clips[folder]

    def _find_frames(self, found: Path) -> tuple[str, ...]:
        names = [path.name for path in found.iterdir()] if found.is_dir() else []
        frames = sorted((name for name in names if name.lower().endswith(_FRAME_ENDINGS)), key=natural_key)
        if not frames:
            raise ValueError(self._missing("folder of frames", found))
        return tuple(str(found / frames[index]) for index in frame_indices(len(frames), self.num_frames))

    def _missing(self, kind: str, found: Path) -> str:
        return (
            f"The {kind} {str(found)!r} of the task {self.row.id} is missing or empty, so the task cannot be scored. "
            f"It belongs to {self.row.archive or 'the media of this table'}: unpack that under the media root."
        )


def natural_key(name: str) -> list[Any]:
    """Sort key that reads digits as numbers, so that frame 10 follows frame 9."""
    return [int(part) if part.isdigit() else part.lower() for part in re.split(r"(\d+)", name)]


def frame_indices(num_saved: int, num_frames: int | str | None) -> list[int]:
    """Which of the saved frames are used: evenly spaced, first and last included; all if there are fewer."""
    if not isinstance(num_frames, int) or num_saved < num_frames:
        return list(range(num_saved))
    return np.linspace(0, num_saved - 1, num_frames, dtype=int).tolist()


def candidate_id(key: str) -> str:
    """Document id of a candidate. A hash, so that the order in which ties are broken says nothing about relevance."""
    return hashlib.blake2b(key.encode(), digest_size=8).hexdigest()


def join(*parts: str | None) -> str:
    """Instruction and text as one string: one space between parts, none at the ends (PLUME strips both sides)."""
    return " ".join(part for part in parts if part).strip()


_UNREADABLE = (UnidentifiedImageError, DecompressionBombError, SyntaxError)


@dataclass(repr=False)
class Picture(Image):
    """The image column of ``datasets``, which also reads what there is of a file that was cut off."""

    _type: str = field(default="Picture", init=False, repr=False)

    def decode_example(self, value: Any, token_per_repo_id: Any = None) -> Any:
        """The decoded picture; what a cut file lacks is grey or black.

        Raises:
            ValueError: If the file is no picture at all.
        """
        where = value.get("path") or "A picture inside the data set" if isinstance(value, dict) else "A picture"
        try:
            return super().decode_example(value, token_per_repo_id)
        except _UNREADABLE as error:
            raise _unreadable(where, error) from error
        except OSError as error:
            if error.errno is not None:  # the file system's, not the decoder's
                raise
            logger.warning_once(f"{where} was cut off ({error}): what is there is read. Unpack or download it again.")
        before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, True
        try:
            return super().decode_example(value, token_per_repo_id)
        except (*_UNREADABLE, OSError) as error:
            raise _unreadable(where, error) from error
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = before


def _unreadable(where: str, error: Exception) -> ValueError:
    return ValueError(f"{where} is no picture that can be read ({error}). Unpack or download it again.")


with warnings.catch_warnings():  # "experimental": the name must be known when a cached data set is opened again
    warnings.simplefilter("ignore")
    register_feature(Picture, "Picture")

_FEATURES = {
    "id": Value("string"),
    "text": Value("string"),
    "image": Picture(),
    "video": List(Picture()),
    "medium": Value("string"),
}


def to_dataset(ids: Sequence[str], items: Sequence[Item], modality: str) -> Dataset:
    """The columns that mteb reads for one side of a task.

    Args:
        ids: Query or document ids.
        items: The inputs.
        modality: As in the table. ``"any"`` puts an image into the video column and records it in ``medium``, because
            mteb has no category for queries of mixed kinds.

    Raises:
        ValueError: If an item has no text and no media.
    """
    for name, item in zip(ids, items, strict=True):
        if not (item.text or item.image or item.video):
            raise ValueError(f"The input {name} is blank: no text and no media, so there is nothing to embed.")
    columns: dict[str, list[Any]] = {"id": list(ids), "text": [item.text for item in items]}
    if "image" in modality:
        columns["image"] = [item.image for item in items]
    elif "video" in modality:
        columns["video"] = [list(item.video or ()) for item in items]
    elif modality == "any":
        columns["video"] = [[item.image] if item.image else list(item.video or ()) for item in items]
        columns["medium"] = ["image" if item.image else "video" if item.video else "text" for item in items]
    return Dataset.from_dict(columns, features=Features({name: _FEATURES[name] for name in columns}))

"""Video classification, retrieval and moments: clips are folders of extracted frames."""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from plume.evaluation.parsers.common import Item, MediaFiles, Parsed, join

LABELS = Path(__file__).with_name("video_labels.json")


def parse_classification(
    rows: Iterable[Mapping[str, Any]], media: MediaFiles, instruction: str, labels: str | None
) -> Parsed:
    """A clip against all labels: those of the list and those that occur.

    Args:
        rows: The data: ``video_id``, ``pos_text``.
        media: Frames.
        instruction: Text of every query.
        labels: A list in ``video_labels.json``; none where the labels that occur are all.
    """
    parsed = Parsed()
    for row in rows:
        label = row["pos_text"]
        query = Item(instruction.strip(), video=media.frames(str(row["video_id"])))
        parsed.add(query, [label], {label: Item(label.strip())}, local=False)
    if labels:
        known = json.loads(LABELS.read_text(encoding="utf-8"))[labels]
        parsed.candidates = {label: Item(label.strip()) for label in known} | parsed.candidates
    return parsed


def parse_ssv2(rows: Iterable[Mapping[str, Any]], media: MediaFiles, instruction: str) -> Parsed:
    """Something-Something: a clip against the candidates of its row (``neg_text``, which holds the positive too)."""
    parsed = Parsed()
    for row in rows:
        query = Item(instruction.strip(), video=media.frames(str(row["video_id"])))
        parsed.add(query, [row["pos_text"]], {text: Item(text.strip()) for text in row["neg_text"]})
    return parsed


def _stem(path: str) -> str:
    return PurePosixPath(path).stem


# Data set -> clip of a row (also its frame folder and key), and its caption.
RETRIEVAL: dict[str, tuple[Callable[[Mapping[str, Any]], str], Callable[[Mapping[str, Any]], str]]] = {
    "didemo": (lambda row: _stem(row["video"]), lambda row: row["caption"]),
    "msrvtt": (lambda row: row["video_id"], lambda row: row["caption"]),
    "msvd": (lambda row: row["video_id"], lambda row: row["caption"][0]),
    "vatex": (lambda row: row["videoID"], lambda row: row["enCap"][0]),
    "youcook2": (lambda row: row["id"], lambda row: row["sentence"]),
}


def parse_retrieval(
    rows: Iterable[Mapping[str, Any]], media: MediaFiles, instruction: str, target: str, schema: str
) -> Parsed:
    """A caption against all clips.

    Args:
        rows: The data, whose columns ``schema`` (a key of :data:`RETRIEVAL`) knows.
        media: Frames.
        instruction: In front of the caption.
        target: Text after every clip.
        schema: Which data set.
    """
    clip_of, caption_of = RETRIEVAL[schema]
    parsed = Parsed()
    for row in rows:
        clip = clip_of(row)
        candidates = {clip: Item(target.strip(), video=media.frames(clip))}
        parsed.add(Item(join(instruction, caption_of(row))), [clip], candidates, local=False)
    return parsed


def parse_moments(rows: Iterable[Mapping[str, Any]], media: MediaFiles, instruction: str, target: str) -> Parsed:
    """QVHighlight and Charades-STA: a video and a text against the clips of its folder, one of them positive.

    The frame folder of a video holds ``query`` and one folder per clip; positives start with ``positive``.

    Raises:
        ValueError: If a video has no positive clip.
    """
    parsed = Parsed()
    for row in rows:
        name = _stem(row["video_path"])
        query = Item(join(instruction, row["query"]), video=media.frames(f"{name}/query"))
        clips = sorted(path.name for path in (media.root / name).iterdir() if path.is_dir() and path.name != "query")
        candidates = {f"{name}/{clip}": Item(target.strip(), video=media.frames(f"{name}/{clip}")) for clip in clips}
        positives = [f"{name}/{clip}" for clip in clips if clip.startswith("positive")]
        if not positives:
            raise ValueError(
                f"The folder {str(media.root / name)!r} of the task {media.row.id} has no clip that starts with "
                f"'positive', so no answer is right. Unpack {media.row.archive} again."
            )
        parsed.add(query, positives, candidates)
    return parsed


def parse_momentseeker(
    rows: Iterable[Mapping[str, Any]], media: MediaFiles, instructions: Mapping[str, str], target: str
) -> Parsed:
    """MomentSeeker: a text, an image and text, or a video and text, against ten clips; several may be positive.

    All frames of every clip are used. A missing query image or clip is an error: standing in another clip's frame
    for it would show the model the answer.

    Args:
        rows: The data: ``query``, ``input_frames``, ``positive_frames``, ``negative_frames``.
        media: Frames.
        instructions: Per kind of query (``text``, ``image``, ``video``).
        target: Text after every clip.
    """
    parsed = Parsed()
    for row in rows:
        given = row["input_frames"] or ""
        if given.endswith(".mp4"):
            query = Item(join(instructions["video"], row["query"]), video=media.frames(_clip_folder(given)))
        elif given.endswith(".jpg"):
            query = Item(join(instructions["image"], row["query"]), image=media.image(f"query_{given}"))
        else:
            query = Item(join(instructions["text"], row["query"]))
        positives = [_clip_folder(entry["output_path"]) for entry in row["positive_frames"]]
        negatives = [_clip_folder(entry["output_path"]) for entry in row["negative_frames"]]
        clips = {clip: Item(target.strip(), video=media.frames(clip)) for clip in [*positives, *negatives]}
        parsed.add(query, positives, clips)
    return parsed


def _clip_folder(path: str) -> str:
    return "video_frames/" + path.replace("/", "_").split(".mp4")[0]

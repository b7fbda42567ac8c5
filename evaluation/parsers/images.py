"""The 36 image tasks: one schema, five readings.

Columns: ``qry_inst, qry_text, qry_img_path`` and ``tgt_inst``, with lists ``tgt_text, tgt_img_path``.

Instructions are columns of the data. The strings equal those of VLM2Vec without the media token and without
white space at their ends; the positive is the first candidate of a row.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from plume.evaluation.parsers.common import Item, MediaFiles, Parsed

_MARK = "<|image_1|>"


def clean_instruction(instruction: str | None) -> str:
    """An instruction of the data without its image mark and without white space at its ends."""
    return (instruction or "").replace(_MARK, "").strip()


def _written(instruction: str, text: str = "") -> str:
    """Instruction and text after an image, as VLM2Vec writes them: without a space before a line break."""
    string = f" {instruction.replace(_MARK, '')}" + (f" {text}" if text else "")
    return string.replace(" \n", "\n").strip()


def _image_query(row: Mapping[str, Any], media: MediaFiles, strip: bool) -> Item:
    instruction = (row.get("qry_inst") or "").replace(_MARK, "")
    instruction = "\n" + instruction.strip() if strip else instruction
    picture = None if media.row.query.modality == "text" else media.image(row["qry_img_path"])
    return Item(_written(instruction, row["qry_text"]), image=picture)


def parse_image_to_text(rows: Iterable[Mapping[str, Any]], media: MediaFiles, strip: bool) -> Parsed:
    """Classification, question answering and image-to-text: image and text against texts.

    A task of our own may say that its queries are texts alone.

    Args:
        rows: The data.
        media: Images.
        strip: Strip the instruction, as question answering does.
    """
    parsed = Parsed()
    for row in rows:
        texts = list(row["tgt_text"])
        parsed.add(_image_query(row, media, strip), texts[:1], {text: Item(text.strip()) for text in texts})
    return parsed


def parse_text_to_image(rows: Iterable[Mapping[str, Any]], media: MediaFiles) -> Parsed:
    """Text against images, which have captions in WebQA and EDIS."""
    parsed = Parsed()
    for row in rows:
        query = Item(f"{(row.get('qry_inst') or '').replace(_MARK, '')} {row['qry_text']}".strip())
        paths = list(row["tgt_img_path"])
        candidates = dict(zip(paths, _image_targets(row, media), strict=True))
        parsed.add(query, paths[:1], candidates)
    return parsed


def parse_image_to_image(rows: Iterable[Mapping[str, Any]], media: MediaFiles) -> Parsed:
    """Image and text against images; the key is path and caption, since objects of one image can be targets."""
    parsed = Parsed()
    for row in rows:
        pairs = zip(row["tgt_img_path"], row["tgt_text"], strict=True)
        keys = [f"{path}:{caption.strip(chr(34))}" for path, caption in pairs]
        candidates = dict(zip(keys, _image_targets(row, media), strict=True))
        parsed.add(_image_query(row, media, strip=True), keys[:1], candidates)
    return parsed


def _image_targets(row: Mapping[str, Any], media: MediaFiles) -> list[Item]:
    instruction, captions = row.get("tgt_inst") or "", list(row["tgt_text"])
    captioned = bool(captions[0].strip())  # the first decides for all, as in VLM2Vec
    texts = [_written(f"{instruction} {caption}" if captioned else instruction) for caption in captions]
    return [Item(text, image=media.image(path)) for text, path in zip(texts, row["tgt_img_path"], strict=True)]

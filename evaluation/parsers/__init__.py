"""Parsers: from the rows of a public data set to queries, candidates, pools and relevance."""

from collections.abc import Callable
from functools import partial

from datasets import Dataset

from plume.evaluation.parsers.common import MediaFiles, Parsed
from plume.evaluation.parsers.images import parse_image_to_image, parse_image_to_text, parse_text_to_image
from plume.evaluation.parsers.pages import parse_pages
from plume.evaluation.parsers.video_qa import SCHEMAS, parse_video_qa
from plume.evaluation.parsers.videos import (
    RETRIEVAL,
    parse_classification,
    parse_moments,
    parse_momentseeker,
    parse_retrieval,
    parse_ssv2,
)
from plume.evaluation.table import Row

__all__ = ["PARSERS", "MediaFiles", "Parsed", "parse"]

PAGES = "beir"
_IMAGES: dict[str, Callable[..., Parsed]] = {
    "image_cls": partial(parse_image_to_text, strip=False),
    "image_i2t": partial(parse_image_to_text, strip=False),
    "image_qa": partial(parse_image_to_text, strip=True),
    "image_t2i": parse_text_to_image,
    "image_i2i_vg": parse_image_to_image,
}
_VIDEOS = ("video_cls", "video_ssv2", "moment", "momentseeker")
_QA = {f"video_qa_{schema}": schema for schema in SCHEMAS}
_RETRIEVAL = {f"video_ret_{schema}": schema for schema in RETRIEVAL}
PARSERS = (*_IMAGES, *_VIDEOS, *_QA, *_RETRIEVAL, PAGES)


def parse(row: Row, data: dict[str, Dataset], media: MediaFiles, prompt_set: str) -> Parsed:
    """Parse the data of a task.

    Args:
        row: The task.
        data: The data by name: ``rows``, or ``queries``, ``corpus`` and ``qrels`` for pages.
        media: Finds images and frames.
        prompt_set: ``"clean"`` or ``"official"``.

    Raises:
        ValueError: If the parser is unknown, or data or media are unusable.
    """
    query, target = (row.instruction(side, prompt_set) or "" for side in ("query", "candidate"))
    if row.parser == PAGES:
        return parse_pages(**data, instruction=query, target=target, name=row.id)
    rows = data["rows"]
    if row.parser in _IMAGES:
        return _IMAGES[row.parser](rows, media)
    if row.parser in _QA:
        return parse_video_qa(rows, media, query, _QA[row.parser])
    if row.parser in _RETRIEVAL:
        return parse_retrieval(rows, media, query, target, _RETRIEVAL[row.parser])
    if row.parser == "video_cls":
        return parse_classification(rows, media, query, row.labels)
    if row.parser == "video_ssv2":
        return parse_ssv2(rows, media, query)
    if row.parser == "moment":
        return parse_moments(rows, media, query, target)
    if row.parser == "momentseeker":
        return parse_momentseeker(rows, media, query, target)
    raise ValueError(f"The task {row.id} names the unknown parser {row.parser!r}. Use one of {', '.join(PARSERS)}.")

"""Shortening an input that is too long: the end of the user's text goes, nothing else ever does."""

from collections.abc import Callable
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

logger = logging.get_logger(__name__)


def fit(
    encode: Callable[[], list[int]],
    texts: list[dict[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    truncate: bool,
) -> list[int]:
    """Ids of an input within ``max_length`` tokens.

    Args:
        encode: Encodes the whole input, with the texts as they stand.
        texts: The user's text parts in order; shortened in place from the last one backwards.
        tokenizer: Fast tokenizer, for character offsets.
        max_length: Most tokens the input may have, visual tokens included.
        truncate: Whether texts may be shortened.

    Raises:
        ValueError: If the input is too long and may not be shortened, or is too long without any text.
    """
    ids = encode()
    given = len(ids)
    if given > max_length and not truncate:
        raise ValueError(
            f"An input has {given} tokens, more than max_length={max_length}, and truncation is off. Shorten its text, "
            "raise max_length, or allow truncation."
        )
    while len(ids) > max_length:
        if not texts:
            raise ValueError(
                f"An input needs {len(ids)} tokens without any of its text, more than max_length={max_length}. Shorten "
                "its instruction, lower max_pixels or num_frames, or raise max_length."
            )
        text = texts[-1]["text"]
        offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        kept = len(offsets) - (len(ids) - max_length)
        # Up to the start of the first token that must go: the tokens of one character share its offsets, so the end of
        # the last token that may stay can lie behind it. The text gets shorter in every round.
        texts[-1]["text"] = text[: offsets[kept][0]].rstrip() if kept > 0 else ""
        if not texts[-1]["text"]:
            texts.pop()
        ids = encode()
    if given > len(ids):
        logger.warning_once(
            "An input was longer than max_length and was shortened: the end of its text is not part of the embedding. "
            "Pass a larger max_length, or raise processor.tokenizer.model_max_length, to keep more."
        )
    return ids

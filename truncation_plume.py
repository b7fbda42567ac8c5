"""Shortening an input that is too long: the end of the user's text goes, nothing else."""

from collections.abc import Callable
from typing import Any

from .options_plume import warn_once

# A text is read in pieces of this many characters per token that may stay, until it is known to be too long.
_CHARACTERS_PER_TOKEN = 8


def fit(
    encode: Callable[[], list[int]], texts: list[dict[str, Any]], tokenizer: Any, max_length: int, truncate: bool
) -> list[int]:
    """Ids of an input within ``max_length`` tokens, visual tokens included.

    ``encode`` encodes the whole input with the user's ``texts`` as they stand; they are shortened in place, from the
    last one backwards, by the offsets that the fast tokenizer gives.

    Raises:
        ValueError: If the input is too long and may not be shortened, or is too long without any text.
    """
    given = [part["text"] for part in texts]
    for part in texts:
        part["text"] = _beginning(part["text"], tokenizer, max_length)
    ids = encode()
    if len(ids) <= max_length and [part["text"] for part in texts] == given:
        return ids
    if not truncate:
        cause = f"An input has {len(ids)} tokens or more, over max_length={max_length}, and truncation is off."
        raise ValueError(f"{cause} Shorten its text, raise max_length, or allow truncation.")
    while len(ids) > max_length:
        if not texts:
            cause = f"An input needs {len(ids)} tokens without any of its text, more than max_length={max_length}."
            raise ValueError(f"{cause} Shorten its instruction, lower max_pixels or num_frames, or raise max_length.")
        offsets = _offsets(texts[-1]["text"], tokenizer)
        texts[-1]["text"] = _first_tokens(texts[-1]["text"], offsets, len(offsets) - (len(ids) - max_length))
        if not texts[-1]["text"]:
            texts.pop()
        ids = encode()
    what = "An input was longer than max_length: the end of its text is not part of the embedding."
    warn_once(f"{what} Pass a larger max_length, or raise processor.tokenizer.model_max_length, to keep more.")
    return ids


def _beginning(text: str, tokenizer: Any, max_tokens: int) -> str:
    """The text, or its first ``max_tokens`` tokens where it has more, found without reading all of a long one."""
    size = _CHARACTERS_PER_TOKEN * max_tokens
    while size < len(text):
        # Where the piece ends, inside a word, its last tokens may differ from the text's: they are not used.
        offsets = _offsets(text[:size], tokenizer)
        if len(offsets) > max_tokens + _CHARACTERS_PER_TOKEN:
            return _first_tokens(text, offsets, max_tokens)
        size *= 2
    return text


def _offsets(text: str, tokenizer: Any) -> list[tuple[int, int]]:
    return tokenizer(text, add_special_tokens=False, verbose=False, return_offsets_mapping=True)["offset_mapping"]


def _first_tokens(text: str, offsets: list[tuple[int, int]], kept: int) -> str:
    # Up to the start of the first token that must go: the tokens of one character share its offsets, so the end of
    # the last token that may stay can lie after it. The text gets shorter in every round.
    return text[: offsets[kept][0]].rstrip() if kept > 0 else ""

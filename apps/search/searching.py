"""A query: text, a picture or clip, or both, within bounds; the documents nearest to it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plume.apps.search.store import Hit, Index
from plume.apps.shared.batches import BatchEncoder, as_array
from plume.apps.shared.limits import Limits, MediaError, check_clip, decode_picture
from plume.arguments import KINDS

MAX_RESULTS = 48


@dataclass(frozen=True)
class Answer:
    """What a query found, and the forward pass that embedded it."""

    hits: list[Hit]
    output: Any


class Search:
    """Queries against an index.

    Args:
        index: The index.
        encoder: The checkpoint that made it.
        limits: Bounds on a query's media.
    """

    def __init__(self, index: Index, encoder: BatchEncoder, limits: Limits) -> None:
        self.index, self.encoder, self.limits = index, encoder, limits

    def run(
        self, text: str, media: Path | None, num_latent_steps: int | None, limit: int, kinds: Sequence[str] = ()
    ) -> Answer:
        """Search by text, by a picture or clip, or by both.

        Raises:
            ValueError: If there is nothing to search for, or the media are unusable or exceed the bounds.
        """
        content = self.read(text, media)
        output = self.encoder.think([content], "query", num_latent_steps)
        assert output.embeddings is not None
        vector = as_array(output.embeddings[0])
        return Answer(self.index.search(vector, max(1, min(limit, MAX_RESULTS)), kinds), output)

    def read(self, text: str, media: Path | None) -> dict[str, Any]:
        """A query as an input of the processor.

        Raises:
            MediaError: If there is nothing in it, or it exceeds the bounds.
        """
        if len(text) > self.limits.max_characters:
            raise MediaError(f"The text has more than the {self.limits.max_characters} characters allowed. Shorten it.")
        content: dict[str, Any] = {"text": text} if text.strip() else {}
        if media is not None:
            if media.suffix.lower() in KINDS["clip"]:
                check_clip(media, self.limits)
                content["video"] = self.encoder.clip(media)
            else:
                content["image"] = decode_picture(media, self.limits)
        if not content:
            raise MediaError("Type a query, or drop a picture or clip.")
        return content

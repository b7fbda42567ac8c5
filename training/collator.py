"""From parsed pairs to stage-free tensors: all heavy work happens here, in the workers, once.

Rows are queries, then targets, then hard negatives, in one left-padded batch: both sides go through one rollout.
The suffix is *not* built here: it depends on the stage, which only the trainer knows (late rewriting).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from PIL import Image
from torch.nn.functional import pad

from plume import PlumeProcessor
from plume.content_plume import MEDIA_KINDS, MediaKind, neutralize
from plume.training.config import PlumeTrainingConfig
from plume.training.curriculum import Stage, split_segments
from plume.training.data import Pair, RowError, Side, read_pair, with_files

_KINDS = tuple(MEDIA_KINDS.values())


@dataclass
class Text:
    """Token ids of one row's rationale, per segment, and of what is between it and the embedding token."""

    segments: list[list[int]]
    answer: list[int]


class Texts:
    """What the rows of a batch hold besides tensors. A class, so that device placement does not walk through it."""

    def __init__(self, rows: Sequence[Text], places: Sequence[str], num_media: Sequence[tuple[int, int]]) -> None:
        self.rows, self.places, self.num_media = list(rows), list(places), list(num_media)


@dataclass
class Rows:
    """Some rows of a batch with the suffix of a stage: what one forward pass takes.

    Attributes:
        inputs: Keyword arguments of the model.
        places: Where each row comes from, for messages.
        num_media: Images and videos of each row.
        num_scored: The first rows, whose suffix counts in the cross entropy: queries and targets, not hard negatives.
    """

    inputs: dict[str, Any]
    places: list[str]
    num_media: list[tuple[int, int]]
    num_scored: int

    def tensors(self) -> list[torch.Tensor]:
        """Its tensors."""
        return [value for value in self.inputs.values() if isinstance(value, torch.Tensor)]

    def __len__(self) -> int:
        return len(self.inputs["input_ids"])


class PairCollator:
    """Turn rows of :func:`~plume.training.data.load_rows` into a batch.

    Args:
        processor: Writes the prompts.
        media_root: As in :func:`~plume.training.data.parse_row`.
        max_length: Most prefix tokens; the user's text is shortened to fit.
        max_suffix_length: Most rationale tokens; later segments are left out. Unlimited if omitted.
        num_negatives: Hard negatives taken from each row, the first ones; a row may have fewer.
    """

    def __init__(
        self,
        processor: PlumeProcessor,
        media_root: str | None = None,
        max_length: int | None = None,
        max_suffix_length: int | None = None,
        num_negatives: int = 0,
    ) -> None:
        self.processor, self.media_root = processor, media_root
        self.max_length, self.max_suffix_length = max_length, max_suffix_length
        self.num_negatives = num_negatives

    @classmethod
    def from_config(cls, processor: PlumeProcessor, args: PlumeTrainingConfig) -> "PairCollator":
        """The collator of a run."""
        return cls(processor, args.media_root, args.prefix_max_length, args.max_suffix_length, args.num_negatives)

    def __call__(self, rows: Sequence[dict[str, str]]) -> dict[str, Any]:
        """Batch of N pairs and the H hard negatives that their rows have.

        Returns:
            ``prefix``: model inputs of the 2N + H rows; ``texts``: their :class:`Texts`; ``candidate_ids``
            ``(N + N num_negatives,)``, -1 where a row has no further negative; ``teacher_scores`` ``(N, 1 +
            num_negatives)``, NaN where there is none; ``num_pairs``.

        Raises:
            ValueError: If a row is unusable; the message names file and line.
        """
        pairs = [self._parse(row) for row in rows]
        negatives = [(row, side) for row, pair in zip(rows, pairs, strict=True) for side in self._negatives(pair)]
        sides = [*(pair.query for pair in pairs), *(pair.target for pair in pairs), *(side for _, side in negatives)]
        places = [*(row["place"] for row in rows)] * 2 + [row["place"] for row, _ in negatives]
        ids = [pair.target.identity() for pair in pairs]
        for pair in pairs:  # ranks gather equally many candidates, so absent negatives keep their places
            own = [side.identity() for side in self._negatives(pair)]
            ids += own + [-1] * (self.num_negatives - len(own))
        return {
            "prefix": self._encode(sides, places),
            "texts": Texts([self._tokenize(side) for side in sides], places, [self._num_media(side) for side in sides]),
            "candidate_ids": torch.tensor(ids),
            "teacher_scores": torch.tensor([self._scores(pair) for pair in pairs]),
            "num_pairs": len(pairs),
        }

    def _num_media(self, side: Side) -> tuple[int, int]:
        blank = self.processor.blank_image_size > 0 and not (side.images or side.videos)
        return len(side.images) + blank, len(side.videos)

    def _negatives(self, pair: Pair) -> tuple[Side, ...]:
        return pair.negatives[: self.num_negatives]

    def _scores(self, pair: Pair) -> list[float]:
        width = 1 + self.num_negatives
        return [*pair.scores, *[math.nan] * width][:width]

    def _parse(self, row: dict[str, str]) -> Pair:
        try:
            return read_pair(row, self.media_root)
        except RowError as error:
            raise ValueError(
                f"{row['place']} cannot be trained on: {error}. Mend the row, or let --skip_bad_rows leave out "
                "and count such rows."
            ) from error

    def _encode(self, sides: list[Side], places: list[str]) -> dict[str, torch.Tensor]:
        try:
            with TemporaryDirectory() as folder:
                contents = [with_files(side.content(), Path(folder)) for side in sides]
                return dict(self.processor.process_documents(contents, prompt="", max_length=self.max_length))
        except ValueError as error:
            if len(sides) == 1:
                raise ValueError(f"{places[0]} cannot be encoded: {error}") from error
            for side, place in zip(sides, places, strict=True):
                self._encode([side], [place])  # raises at the row at fault
            raise

    def _tokenize(self, side: Side) -> Text:
        """Rationale and answer as ids, free of control tokens; the pieces around the answer are those of the suffix."""
        encode = lambda text: self.processor.tokenizer(text, add_special_tokens=False)["input_ids"]  # noqa: E731
        # A <gen> in a rationale would otherwise be taken for the place of the embedding.
        rationale, said = (neutralize(text, self.processor.control_tokens) for text in (side.rationale, side.answer))
        between = self.processor.suffix.removeprefix(self.processor.latent_end_token)
        closing = between.removesuffix(self.processor.embedding_token)
        tag, newline = closing.rstrip("\n"), closing[len(closing.rstrip("\n")) :]
        answer = f"<answer>{said}</answer>" if said else ""
        segments = [encode(segment) for segment in split_segments(rationale)]
        if self.max_suffix_length is not None:
            kept, length = [], 0
            for segment in segments:
                length += len(segment)
                if length > self.max_suffix_length:
                    break
                kept.append(segment)
            segments = kept
        return Text(segments, encode(tag + answer + newline))


def rewrite(batch: dict[str, Any], stage: Stage, suffix: list[int], readout_steps: Sequence[int] = ()) -> Rows:
    """All rows of a batch at a stage of the curriculum.

    Args:
        batch: From :class:`PairCollator`.
        stage: What to replace by how many latent steps.
        suffix: The fully latent suffix, ``config.suffix_token_ids``.
        readout_steps: Numbers of steps to read out after, too.
    """
    suffixes = [stage.rewrite(text.segments, text.answer, suffix) for text in batch["texts"].rows]
    width = max(map(len, suffixes))
    device = batch["prefix"]["input_ids"].device
    ids = torch.tensor([row + [row[-1]] * (width - len(row)) for row in suffixes])
    mask = torch.arange(width) < torch.tensor([[len(row)] for row in suffixes])
    # The padding must not hold the embedding token, whose last occurrence is the embedding.
    ids = ids.masked_fill(~mask, suffix[0])
    inputs = {**batch["prefix"], "num_latent_steps": stage.num_latent_steps, "suffix_mask": mask.to(device)}
    if readout_steps:
        inputs["readout_steps"] = list(readout_steps)
    if not (readout_steps and stage.is_final):  # there the model's own suffix, which a read-out shares, is the same
        inputs["suffix_input_ids"] = ids.to(device)
    return Rows(inputs, batch["texts"].places, batch["texts"].num_media, 2 * batch["num_pairs"])


def split_rows(rows: Rows, sizes: Sequence[int]) -> list[Rows]:
    """Cut rows into consecutive chunks, each trimmed to its own longest prefix and suffix.

    Args:
        rows: The rows.
        sizes: Rows per chunk, adding up to all rows.
    """
    inputs, chunks, start = rows.inputs, [], 0
    for size in sizes:
        stop = start + size
        chunk: dict[str, Any] = {name: inputs[name] for name in ("num_latent_steps", "readout_steps") if name in inputs}
        mask = inputs["attention_mask"][start:stop]
        first = mask.shape[1] - mask.sum(dim=1).max().item()
        chunk["input_ids"], chunk["attention_mask"] = inputs["input_ids"][start:stop, first:], mask[:, first:]
        width = inputs["suffix_mask"][start:stop].sum(dim=1).max().item()
        for name in ("suffix_mask", "suffix_input_ids"):
            if name in inputs:
                chunk[name] = inputs[name][start:stop, :width]
        for kind, counts in zip(_KINDS, zip(*rows.num_media, strict=True), strict=True):
            chunk.update(_slice_media(inputs, kind, sum(counts[:start]), sum(counts[:stop])))
        scored = min(max(rows.num_scored - start, 0), size)
        chunks.append(Rows(chunk, rows.places[start:stop], rows.num_media[start:stop], scored))
        start = stop
    return chunks


def spare_row(processor: PlumeProcessor) -> dict[str, torch.Tensor]:
    """Model inputs of a row with a picture and a clip, as small as they come."""
    blank = Image.new("RGB", (28, 28))
    return dict(processor.process_documents([{"image": blank, "video": [blank, blank]}], prompt=""))


def with_media_of_every_kind(rows: Rows, spare: dict[str, torch.Tensor]) -> Rows:
    """Rows that hold a picture and a clip, so that every rank runs the vision tower as often as the others.

    Where parameters are sharded, a rank with text alone next to one with pictures would wait for ever.

    Args:
        rows: Some rows.
        spare: Model inputs of one more row with both, which goes last; its outputs are to be dropped.
    """
    inputs = rows.inputs
    if all(kind.pixels in inputs for kind in _KINDS):
        return rows
    width = max(inputs["input_ids"].shape[1], spare["input_ids"].shape[1])
    # On the left, where the mask hides it, any token will do.
    padded = {
        name: torch.cat([pad(part, (width - part.shape[1], 0)) for part in (inputs[name], spare[name])])
        for name in ("input_ids", "attention_mask")
    }
    media = {
        name: torch.cat([inputs[name], spare[name]]) if name in inputs else spare[name]
        for kind in _KINDS
        for name in (kind.pixels, kind.grid, *kind.others)
        if name in spare
    }
    suffixes = {
        name: torch.cat([value, value[:1]])
        for name in ("suffix_input_ids", "suffix_mask")
        if (value := inputs.get(name)) is not None
    }
    return replace(rows, inputs={**inputs, **padded, **media, **suffixes})


def _slice_media(inputs: dict[str, Any], kind: MediaKind, first: int, last: int) -> dict[str, torch.Tensor]:
    """What the batch holds of the items ``first`` to ``last - 1`` of a kind."""
    if first == last:
        return {}
    patches = inputs[kind.grid].prod(dim=1)
    begin, end = patches[:first].sum().item(), patches[:last].sum().item()
    rows = {name: inputs[name][first:last] for name in (kind.grid, *kind.others) if name in inputs}
    return {kind.pixels: inputs[kind.pixels][begin:end], **rows}


def chunk_sizes(lengths: torch.Tensor, chunk_size: int | None, chunk_tokens: int | None) -> list[int]:
    """Rows per chunk: at most ``chunk_size`` rows, and at most ``chunk_tokens`` padded tokens where given.

    Args:
        lengths: Prefix tokens per row, ``(R,)``.
        chunk_size: Most rows per chunk. Defaults to all.
        chunk_tokens: Most rows times longest prefix; a single row may exceed it.
    """
    sizes, rows, longest = [], 0, 0
    for length in lengths.tolist():
        full = rows == chunk_size or (chunk_tokens is not None and (rows + 1) * max(longest, length) > chunk_tokens)
        if rows and full:
            sizes.append(rows)
            rows, longest = 0, 0
        rows, longest = rows + 1, max(longest, length)
    return [*sizes, rows]


def even_sizes(rows: int, chunks: int) -> list[int]:
    """Rows per chunk when a number of rows is cut into so many chunks, as evenly as it goes.

    Raises:
        ValueError: If there are fewer rows than chunks.
    """
    if rows < chunks:
        raise ValueError(
            f"Another rank cuts its rows into {chunks} chunks, this one has {rows} rows, and sharded ranks need "
            "equally many. Raise chunk_size or chunk_tokens, or give all rows equally many hard negatives."
        )
    return [rows // chunks + (index < rows % chunks) for index in range(chunks)]

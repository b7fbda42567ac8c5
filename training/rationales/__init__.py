"""Rationales for pairs that have none: the curriculum lives on them, and a larger model can write them.

1. **Plan** (:func:`make_plan`): read all rows; a side that has no rationale is known by a hash of its content, its
   prompt and the writer, so equal sides are asked once.
2. **Ask** (:func:`ask`) a writer (:mod:`.writers`) for the sides whose rationale is not in the journal
   (:mod:`.journal`); each is stored when it arrives, and asked again if the reply has no rationale (:mod:`.prompts`).
3. **Write** (:func:`with_rationales`) all rows in their order.

After a kill at any moment the same call goes on, and ends with the file of an uninterrupted one.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from datasets import Dataset
from tqdm import tqdm

from plume.training.data import Pair, RowError, Side, read_pair

from .journal import Journal
from .prompts import PROMPTS, VERSION, FormatError, Rationale, parse_reply, parts_of
from .writers import Ask, EndpointWriter, LocalWriter, Parts, Reply, Writer

__all__ = [
    "Ask",
    "EndpointWriter",
    "Journal",
    "LocalWriter",
    "Outcome",
    "Plan",
    "Rationale",
    "Reply",
    "Writer",
    "ask",
    "make_plan",
    "parse_reply",
    "with_rationales",
]
_SIDES = (("query", "qry"), ("positive", "pos"))  # of a pair, as columns and in the UME-R1 format


@dataclass
class Plan:
    """What is to be asked.

    Attributes:
        keys: Per row the keys of query and positive; None for a side that is not asked.
        asks: One per content.
        unusable: Per row that cannot be read, why.
        has_one: Sides that have a rationale already.
        has_media: Whether a row has a picture or clip.
        texts: Texts to be asked, of :attr:`asks`.
        pictures: Pictures.
        clips: Clips.
    """

    keys: list[tuple[str | None, str | None]] = field(default_factory=list)
    asks: list[Ask] = field(default_factory=list)
    unusable: dict[int, str] = field(default_factory=dict)
    has_one: int = 0
    has_media: bool = False
    texts: int = 0
    pictures: int = 0
    clips: int = 0


@dataclass
class Outcome:
    """What became of the asked sides.

    Attributes:
        failures: Per key, why it has no rationale.
        problems: Replies without a rationale by their fault, those that a second reply mended included.
        asked: Replies.
        input_tokens: Of all replies.
        output_tokens: Of all replies.
    """

    failures: dict[str, str] = field(default_factory=dict)
    problems: Counter[str] = field(default_factory=Counter)
    asked: int = 0
    input_tokens: int = 0
    output_tokens: int = 0

    def tokens_of(self, sides: int) -> tuple[int, int]:
        """What so many sides cost at the rate so far."""
        share = sides / max(self.asked, 1)
        return round(share * self.input_tokens), round(share * self.output_tokens)


def _sides(pair: Pair) -> tuple[tuple[str, Side], tuple[str, Side]]:
    return ("query", pair.query), ("positive", pair.target)


@lru_cache(maxsize=100_000)  # a picture may be in many rows
def _file_digest(path: str) -> str:
    return hashlib.blake2b(Path(path).read_bytes(), digest_size=16).hexdigest()


def _digest(medium: str | tuple[str, ...]) -> str:
    if isinstance(medium, tuple):
        return " ".join(map(_digest, medium))
    embedded = medium.startswith("data:")
    return hashlib.blake2b(medium.encode(), digest_size=16).hexdigest() if embedded else _file_digest(medium)


def _key(writer: str, kind: str, side: Side) -> str:
    media = [[_digest(medium) for medium in media] for media in (side.images, side.videos)]
    content = json.dumps([VERSION, PROMPTS[kind], writer, side.text, media])
    return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()


def make_plan(rows: Dataset, media_root: str | None, writer: str, known: Mapping[str, Rationale]) -> Plan:
    """Read all rows and find what is to be asked.

    Args:
        rows: From :func:`~plume.training.data.load_rows`.
        media_root: As in :func:`~plume.training.data.parse_row`.
        writer: Name of the writer.
        known: Rationales that are there already, by key.
    """
    plan, seen = Plan(), set(known)
    for index, row in enumerate(tqdm(rows, desc="reading rows", unit="row")):
        try:
            sides = _sides(read_pair(row, media_root))
        except RowError as error:
            plan.unusable[index] = str(error)
            plan.keys.append((None, None))
            continue
        query, positive = (None if side.rationale else _key(writer, kind, side) for kind, side in sides)
        plan.keys.append((query, positive))
        plan.has_one += (query is None) + (positive is None)
        for (kind, side), key in zip(sides, (query, positive), strict=True):
            plan.has_media |= bool(side.images or side.videos)
            if key is not None and key not in seen:
                seen.add(key)
                plan.asks.append(Ask(key, kind, index))
                plan.texts += bool(side.text)
                plan.pictures += len(side.images)
                plan.clips += len(side.videos)
    return plan


def ask(asks: Sequence[Ask], rows: Dataset, media_root: str | None, writer: Writer, journal: Journal) -> Outcome:
    """Ask the writer, store what it finds.

    Args:
        asks: Of a :class:`Plan`.
        rows: The rows it was made of.
        media_root: As there.
        writer: Who is asked.
        journal: Where rationales go as they arrive.

    Raises:
        ValueError: If the writer cannot answer at all.
    """

    def read(wanted: Ask) -> Parts:
        side = dict(_sides(read_pair(rows[wanted.row], media_root)))[wanted.kind]
        return parts_of(side, wanted.kind)

    outcome, left = Outcome(), list(asks)
    with tqdm(total=len(left), desc=writer.name, unit="side") as bar:
        for chance in range(writer.chances):
            again: list[Ask] = []
            for asked, reply in writer.replies(left, read):
                problem = _take(asked, reply, journal, outcome)
                if isinstance(problem, FormatError) and chance + 1 < writer.chances:
                    again.append(asked)
                    continue
                if problem is not None:
                    outcome.failures[asked.key] = str(problem)
                bar.update()
                bar.set_postfix_str(_cost(outcome, len(asks)), refresh=False)
            left = again
    return outcome


def _take(asked: Ask, reply: Reply | str, journal: Journal, outcome: Outcome) -> FormatError | str | None:
    """Store a reply; what is wrong with it, if anything."""
    if isinstance(reply, str):
        return reply
    outcome.asked += 1
    outcome.input_tokens += reply.input_tokens
    outcome.output_tokens += reply.output_tokens
    try:
        journal.add(asked.key, parse_reply(reply.text, reply.is_cut))
    except FormatError as problem:
        outcome.problems[problem.kind] += 1
        return problem
    return None


def _cost(outcome: Outcome, sides: int) -> str:
    total_in, total_out = outcome.tokens_of(sides)
    return f"tokens in {outcome.input_tokens:,} of ~{total_in:,}, out {outcome.output_tokens:,} of ~{total_out:,}"


def with_rationales(rows: Dataset, plan: Plan, found: Mapping[str, Rationale]) -> Iterator[Any]:
    """The rows in their order, with the rationales that were found; a row that is no JSON is left out."""
    for row, keys in zip(rows, plan.keys, strict=True):
        if row["row"]:
            replies = [found[key].as_reply() if key and key in found else None for key in keys]
            yield _with_replies(json.loads(row["row"]), replies)


def _with_replies(fields: Any, replies: Sequence[str | None]) -> Any:
    """A row with the replies where training looks for them."""
    for (column, side), reply in zip(_SIDES, replies, strict=True):
        if reply is None:
            continue
        if "qry" not in fields and "pos" not in fields:
            fields[f"rationale_{column}"] = reply
            continue
        name = "messages" if fields[side].get("messages") else "conversations"
        turns = fields[side].get(name) or []
        question = [turn for turn in turns if (turn.get("from") or turn.get("role")) not in ("gpt", "assistant")]
        said = {"role": "assistant", "content": reply} if name == "messages" else {"from": "gpt", "value": reply}
        fields[side][name] = [*question, said]
    return fields

"""Rationales from a writer of your own: here one that knows the facts of the playground, in place of a large model.

python -m plume.playground --output WORLD --rows 2000 --tasks image-chain document-chain text-chain --hops 4
python examples/rationales.py WORLD

Writes WORLD/plain.jsonl, the pairs without rationales, and WORLD/with_rationales.jsonl. A writer has a name, a place
that data go to (none), a number of chances, and `replies`. Needs the extra `train`.
"""

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from plume.training.data import load_rows, read_pair, write_rows
from plume.training.rationales import Ask, Journal, Reply, ask, make_plan, with_rationales

WORLD = Path(sys.argv[1])
MEDIA = WORLD / "train" / "media"


class FactsWriter:
    """Says what the world itself knows of a row."""

    name, place, chances = "facts of the playground", "", 1

    def __init__(self, world: Path) -> None:
        self.pairs = [read_pair(row, str(MEDIA)) for row in load_rows([str(world / "train" / "pairs.jsonl")])]

    def replies(self, asks: Iterable[Ask], read: object) -> Iterator[tuple[Ask, Reply | str]]:
        """A reply per side; `read(ask)` would give the prompt, the pictures and the text that a model reads."""
        for wanted in asks:
            pair = self.pairs[wanted.row]
            side = pair.query if wanted.kind == "query" else pair.target
            text = f"<thinking>{side.rationale}</thinking><answer>{side.answer}</answer>"
            yield wanted, Reply(text, is_cut=False, input_tokens=0, output_tokens=0)


def without_rationale(side: dict) -> dict:
    """A side with its question alone, and paths from WORLD."""
    media = {"image": f"train/media/{side['image']}"} if "image" in side else {}
    return {**media, "conversations": side["conversations"][:1]}


lines = (WORLD / "train" / "pairs.jsonl").read_text(encoding="utf-8").splitlines()
pairs = [{side: without_rationale(json.loads(line)[side]) for side in ("qry", "pos")} for line in lines]
names = [{"dataset_name": json.loads(line)["dataset_name"]} for line in lines]
plain, output = WORLD / "plain.jsonl", WORLD / "with_rationales.jsonl"
content = "".join(json.dumps(name | pair) + "\n" for name, pair in zip(names, pairs, strict=True))
plain.write_text(content, encoding="utf-8")

rows, writer = load_rows([str(plain)]), FactsWriter(WORLD)
with Journal(WORLD / "replies.jsonl").opened() as journal:
    plan = make_plan(rows, str(WORLD), writer.name, journal.found)
    outcome = ask(plan.asks, rows, str(WORLD), writer, journal)
    write_rows(output, with_rationales(rows, plan, journal.found))
print(f"{output}: {len(rows)} pairs, {outcome.asked} sides asked, {len(outcome.failures)} without a rationale")

"""The work of ``plume rationales``, whose flags are in ``plume.training.write_rationales``."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from datasets import Dataset

from plume.training.data import describe_root, folder_of, load_rows, parse_columns, write_rows
from plume.training.rationales import (
    EndpointWriter,
    Journal,
    LocalWriter,
    Outcome,
    Plan,
    Writer,
    ask,
    make_plan,
    with_rationales,
)
from plume.training.rationales.prompts import NUM_FRAMES
from plume.training.write_rationales import main


def run(options: argparse.Namespace) -> int:
    """Plan, ask, write; 1 if a side is left without a rationale."""
    rows: Any = load_rows(options.pairs, columns=parse_columns(options.column))
    rows = rows if options.limit is None else rows.select(range(min(options.limit, len(rows))))
    root = options.media_root or folder_of(options.pairs)
    writer = _make_writer(options)
    with Journal(_next_to(options.output, "replies")).opened() as journal:
        plan = make_plan(rows, root, writer.name, journal.found)
        only = f"A sample of {options.sample} rows of the following. " if options.sample else ""
        print(only + _announce(plan, writer, journal, rows), flush=True)
        if options.sample:
            return _show_sample(options.sample, plan, rows, root, writer, journal)
        outcome = ask(plan.asks, rows, root, writer, journal)
        write_rows(options.output, with_rationales(rows, plan, journal.found))
        failures = _list_failures(plan, outcome, rows, journal)
    _report(options.output, plan, outcome, failures)
    if plan.has_media:
        print(describe_root(root, options.output), end="")
    return 1 if failures else 0


def _make_writer(options: argparse.Namespace) -> Writer:
    if options.writer:
        return LocalWriter.load(options.writer, options.batch_size, options.max_tokens)
    return EndpointWriter(
        options.endpoint,
        options.model,
        options.concurrency,
        options.requests_per_minute,
        options.timeout,
        options.retries,
        options.max_tokens,
    )


def _next_to(output: Path, what: str) -> Path:
    return output.with_name(f"{output.name}.{what}.jsonl")


def _announce(plan: Plan, writer: Writer, journal: Journal, rows: Dataset) -> str:
    """What will be asked, and where it goes."""
    keys = {key for pair in plan.keys for key in pair if key}
    clips = f" and up to {NUM_FRAMES} frames of each of {plan.clips:,} clips" if plan.clips else ""
    what = f"{plan.texts:,} texts, {plan.pictures:,} pictures{clips}"
    where = f"SENDS {what} to {writer.place}" if writer.place else f"Reads {what} on this machine, sends nothing"
    known = len(keys & set(journal.found))
    return (
        f"{where}: {len(plan.asks):,} different sides of {len(rows):,} rows. {known:,} are answered already in "
        f"{journal.path}, {plan.has_one:,} sides have a rationale, {len(plan.unusable):,} rows are unusable."
    )


def _show_sample(count: int, plan: Plan, rows: Dataset, root: str | None, writer: Writer, journal: Journal) -> int:
    """Ask for some rows, spread over the data, and print them."""
    usable = [index for index, keys in enumerate(plan.keys) if any(keys)]
    chosen = {usable[place * len(usable) // count] for place in range(count)} if usable else set()
    wanted = {key for index in chosen for key in plan.keys[index]}
    asks = [each for each in plan.asks if each.key in wanted]
    outcome = ask(asks, rows, root, writer, journal)
    for index in sorted(chosen):
        fields = json.loads(rows[index]["row"])
        print(f"\n{rows[index]['place']}: {json.dumps(fields, ensure_ascii=False)[:300]}")
        for kind, key in zip(("query", "positive"), plan.keys[index], strict=True):
            if key:
                found = journal.found.get(key)
                print(f"  {kind}: " + (found.as_reply() if found else f"NO RATIONALE: {outcome.failures[key]}"))
    total_in, total_out = outcome.tokens_of(len(plan.asks))
    rate = f"about {total_in:,} tokens in and {total_out:,} out" if outcome.asked else "unknown: nothing was asked"
    print(f"\nAll {len(plan.asks):,} sides at this rate: {rate}. Without --sample they are asked; these are stored.")
    return 1 if outcome.failures else 0


def _list_failures(plan: Plan, outcome: Outcome, rows: Dataset, journal: Journal) -> list[dict[str, str]]:
    """Sides that are left without a rationale, and why."""
    failures = []
    for index, keys in enumerate(plan.keys):
        if index in plan.unusable:
            failures.append({"place": rows[index]["place"], "side": "both", "reason": plan.unusable[index]})
        for kind, key in zip(("query", "positive"), keys, strict=True):
            if key and key not in journal.found:
                failures.append({"place": rows[index]["place"], "side": kind, "reason": outcome.failures[key]})
    return failures


def _report(output: Path, plan: Plan, outcome: Outcome, failures: list[dict[str, str]]) -> None:
    """Say what was written, and name what is missing in a file of its own."""
    reasons = _next_to(output, "failures")
    reasons.unlink(missing_ok=True)
    print(
        f"{output}: {len(plan.keys):,} rows. {outcome.asked:,} replies, {outcome.input_tokens:,} tokens in, "
        f"{outcome.output_tokens:,} out. Replies without a rationale: "
        + (", ".join(f"{count} with {kind}" for kind, count in outcome.problems.items()) or "none")
        + "."
    )
    if failures:
        reasons.write_text("".join(json.dumps(each) + "\n" for each in failures), encoding="utf-8")
        print(
            f"{len(failures):,} sides or rows are left without a rationale; {reasons} says why. Run the same command "
            "again to ask for them once more.",
            file=sys.stderr,
        )


if __name__ == "__main__":
    sys.exit(main())

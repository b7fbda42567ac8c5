"""Write rationales for pairs that have none: ``plume rationales PAIRS... --output FILE --writer MODEL``.

With ``--writer`` a model on this machine writes them, and nothing leaves it. With ``--endpoint URL --model NAME`` texts
and pictures are sent there. ``--sample 5`` shows five rows first. Run again, the same command goes on where it stopped.
"""

import argparse
from pathlib import Path

from plume.arguments import ArgumentParser, refuse_output


def build_parser() -> ArgumentParser:
    """The command line."""
    parser = ArgumentParser(prog="plume rationales", description=__doc__)
    parser.add_argument("pairs", nargs="+", help="files or names of datasets, as --train-files of the training")
    parser.add_argument("--output", type=Path, required=True, help="JSON lines, to train on")
    writer = parser.add_mutually_exclusive_group(required=True)
    writer.add_argument("--writer", metavar="MODEL", help="image-text-to-text model that writes on this machine")
    writer.add_argument("--endpoint", metavar="URL", help="server that speaks OpenAI's protocol, up to /v1")
    parser.add_argument("--model", help="name of the model at the endpoint; its key is read from OPENAI_API_KEY")
    parser.add_argument("--column", nargs="+", default=[], help="OURS=YOURS, as in training")
    parser.add_argument("--media-root", help="folder that media paths are relative to; that of the pairs if omitted")
    parser.add_argument("--limit", type=int, help="take the first rows only; all if omitted")
    parser.add_argument("--sample", type=int, default=0, help="ask for so many rows, print them, and stop")
    parser.add_argument("--max-tokens", type=int, default=512, help="most tokens of a reply")
    parser.add_argument("--batch-size", type=int, default=8, help="sides per batch of --writer")
    parser.add_argument("--concurrency", type=int, default=8, help="requests at a time to --endpoint")
    parser.add_argument("--requests-per-minute", type=float, help="most requests to --endpoint; no limit if omitted")
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds to wait for --endpoint")
    parser.add_argument("--retries", type=int, default=6, help="how often a failed request is repeated")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Plan, ask, write; 1 if a side is left without a rationale."""
    options = build_parser().parse_args(arguments)
    _check(options)
    from plume.training.rationales.__main__ import run  # not before: a help does not wait for libraries

    return run(options)


def _check(options: argparse.Namespace) -> None:
    if bool(options.endpoint) != bool(options.model):
        raise ValueError("--endpoint URL and --model NAME go together: a server is asked for one of its models.")
    refuse_output(options.output, options.pairs)
    for name in ("limit", "concurrency", "batch_size", "max_tokens", "requests_per_minute", "timeout"):
        value = vars(options)[name]
        if value is not None and value <= 0:
            raise ValueError(f"--{name.replace('_', '-')} {value} allows nothing. Give a positive number.")
    if options.sample < 0 or options.retries < 0:
        raise ValueError("--sample and --retries count something: give 0 or more.")

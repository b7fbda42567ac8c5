"""``python -m plume.training.data check FILE...``: read a training corpus and report what is wrong with it."""

import json
from dataclasses import asdict
from pathlib import Path

from plume.arguments import ArgumentParser
from plume.training.data import check, load_rows


def main(arguments: list[str] | None = None) -> None:
    """Check, print the report, exit with 1 where rows are unusable.

    Args:
        arguments: Command line without the program; ``sys.argv`` if omitted.
    """
    parser = ArgumentParser(prog="python -m plume.training.data", description="Check a training corpus.")
    parser.add_argument("command", choices=["check"])
    parser.add_argument("files", nargs="+", help="JSON or JSONL files, or datasets names")
    parser.add_argument("--media-root", help="folder that media paths are relative to")
    parser.add_argument("--decode", action="store_true", help="open every picture and clip")
    parser.add_argument("--report", type=Path, help="also write the report to this JSON file")
    options = parser.parse_args(arguments)
    report, _ = check(load_rows(options.files), options.media_root, options.decode)
    text = json.dumps(asdict(report), indent=2, ensure_ascii=False)
    print(text)
    if options.report:
        options.report.write_text(text + "\n", encoding="utf-8")
    raise SystemExit(0 if report.usable == report.rows else 1)


if __name__ == "__main__":
    main()

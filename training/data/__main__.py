"""``python -m plume.training.data check FILE...``: read a training corpus and report what is wrong with it."""

import json
from dataclasses import asdict
from pathlib import Path

from plume.arguments import ArgumentParser
from plume.training.collator import PairCollator
from plume.training.data import check, load_rows, parse_columns
from plume.training.train import load_processor


def main(arguments: list[str] | None = None) -> None:
    """Check, print the report, exit with 1 where rows are unusable."""
    parser = ArgumentParser(prog="python -m plume.training.data", description="Check a training corpus.")
    parser.add_argument("command", choices=["check"])
    parser.add_argument("files", nargs="+", help="files or datasets names, as --train_files of the training")
    parser.add_argument("--column", nargs="+", default=[], help="OURS=YOURS, as in training")
    parser.add_argument("--media-root", help="folder that media paths are relative to")
    parser.add_argument("--decode", action="store_true", help="run the processor over every row, as a training would")
    parser.add_argument("--model-name-or-path", help="checkpoint whose processor --decode runs")
    parser.add_argument("--layout", default="paper", help="as in training, for a plain backbone")
    parser.add_argument("--report", type=Path, help="also write the report to this JSON file")
    options = parser.parse_args(arguments)
    collate = None
    if options.decode:
        if options.model_name_or_path is None:
            parser.error("--decode runs a checkpoint's processor: give --model-name-or-path.")
        processor = load_processor(options.model_name_or_path, options.layout)
        collate = PairCollator(processor, options.media_root, num_negatives=1_000)
    rows = load_rows(options.files, columns=parse_columns(options.column))
    report, _ = check(rows, options.media_root, collate)
    text = json.dumps(asdict(report), indent=2, ensure_ascii=False)
    print(text)
    if options.report:
        options.report.write_text(text + "\n", encoding="utf-8")
    raise SystemExit(0 if report.usable == report.rows else 1)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error

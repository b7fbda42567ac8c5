"""Mine hard negatives for pairs: ``plume mine MODEL PAIRS... --output FILE``.

1. **Read** the rows as training does; equal sides are one item.
2. **Embed** the items with the model, under the prompts of the rows, as training does.
3. **Mine** with sentence-transformers' ``mine_hard_negatives``, each dataset by itself: positives of other rows that
   rank highest, up to a margin below a row's own.
4. **Write** the rows in their order and format, with the negatives that they had, then the mined ones and their
   rationales.
"""

import sys
from pathlib import Path

from plume.arguments import ArgumentParser, refuse_output
from plume.checkpoints import SHIPPED


def build_parser() -> ArgumentParser:
    """The command line."""
    parser = ArgumentParser(prog="plume mine", description=__doc__)
    parser.add_argument("model", help=f"folder or Hub id of a checkpoint, or {', '.join(SHIPPED)}")
    parser.add_argument("pairs", nargs="+", help="files or names of datasets, as --train-files of the training")
    parser.add_argument("--output", type=Path, required=True, help="JSON lines, to train on")
    parser.add_argument("--column", nargs="+", default=[], help="OURS=YOURS, as in training")
    parser.add_argument("--media-root", help="folder that media paths are relative to; that of the pairs if omitted")
    parser.add_argument("--num-negatives", type=int, default=4, help="most negatives that a row gets")
    parser.add_argument(
        "--relative-margin",
        type=float,
        default=0.05,
        help="a candidate closer to the query than this share below the positive may be a positive: not taken",
    )
    parser.add_argument("--range-min", type=int, default=0, help="closest candidates to pass over, for the same reason")
    parser.add_argument("--num-latent-steps", type=int, help="K; the checkpoint's if omitted")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Mine, and write the rows."""
    options = build_parser().parse_args(arguments)
    if options.num_negatives < 1 or options.range_min < 0:
        raise ValueError("--num-negatives must be at least 1 and --range-min at least 0.")
    refuse_output(options.output, options.pairs)
    from plume.training.mining import run  # not before: a help does not wait for libraries

    print(run(options))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Write the world out: ``python -m plume.playground --output DIR``.

``DIR/train`` holds training pairs (UME-R1 format), ``DIR/dev`` and ``DIR/test`` evaluation tasks (MMEB-v2 schemas) with
their tables, ``DIR/student`` a fresh model to train, ``DIR/sheet.png`` one example of every task.
"""

from pathlib import Path

from plume.arguments import ArgumentParser
from plume.playground.tasks import TASKS


def main(arguments: list[str] | None = None) -> None:
    """Read the command line and write.

    Args:
        arguments: Command line without the program; ``sys.argv`` if omitted.
    """
    parser = ArgumentParser(prog="plume playground", description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="new folder")
    parser.add_argument("--rows", type=int, default=24000, help="training pairs")
    parser.add_argument("--queries", type=int, default=100, help="queries per evaluation task")
    parser.add_argument("--seed", type=int, default=0, help="seed of the world and of the fresh model")
    parser.add_argument("--tasks", nargs="*", default=[], choices=list(TASKS), help="tasks; all if omitted")
    parser.add_argument(
        "--hops",
        nargs="*",
        type=int,
        default=[],
        choices=range(1, 7),
        help="numbers of look-ups that vary from row to row, e.g. 1 2 3 4, and then 5 and 6 in test; 3 if omitted",
    )
    args = parser.parse_args(arguments)
    from plume.playground.corpora import conditions, write_evaluation, write_training  # torch: not for a help
    from plume.playground.sheet import draw_sheet
    from plume.playground.student import save_student

    write_training(args.output / "train", args.rows, args.seed, args.tasks, hops=args.hops)
    for split in ("dev", "test"):
        wanted = conditions(split, args.tasks, extrapolate=split == "test", hops=args.hops)
        write_evaluation(args.output / split, wanted, args.queries, args.seed)
    save_student(args.output / "student", args.seed)
    draw_sheet(seed=args.seed).save(args.output / "sheet.png")
    print(f"{args.output}: train/pairs.jsonl, dev/tasks.json, test/tasks.json, student/, sheet.png")


if __name__ == "__main__":
    main()

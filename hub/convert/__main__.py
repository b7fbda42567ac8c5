"""``plume convert SOURCE TARGET``: a published checkpoint in the layout of this package."""

from collections import Counter
from pathlib import Path

from plume.arguments import ArgumentParser
from plume.hub.convert import KINDS, LAYOUTS, convert


def main(arguments: list[str] | None = None) -> None:
    """Convert and say what was done.

    Args:
        arguments: Command line without the program; ``sys.argv`` if omitted.
    """
    parser = ArgumentParser(prog="plume convert", description=__doc__)
    parser.add_argument("source", help="folder or Hub id of a Qwen-VL, UME-R1 or released PLUME checkpoint")
    parser.add_argument("target", type=Path, help="new folder")
    parser.add_argument("--from", dest="kind", choices=["auto", *KINDS], default="auto", help="layout of the source")
    parser.add_argument("--num-latent-steps", type=int, help="K; a released PLUME checkpoint does not store it")
    parser.add_argument("--num-active-experts", type=int, default=2, help="K_r; not stored either")
    parser.add_argument("--ignore", help="regular expression of tensors to leave out")
    parser.add_argument("--seed", type=int, default=0, help="seed of a fresh adapter")
    parser.add_argument("--layout", choices=LAYOUTS, default="paper", help="prompt of a plain backbone")
    options = parser.parse_args(arguments)
    report = convert(**vars(options))
    for note in report.notes:
        print(note)
    counts = Counter(report.tensors.values())
    print(", ".join(f"{count} tensors {what}" for what, count in sorted(counts.items())))
    print(f"{options.target}: ready. Check it with `plume verify {options.target}`")


if __name__ == "__main__":
    main()

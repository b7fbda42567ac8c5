"""Check an exported model on this machine against its golden vectors: python -m plume.runtime OUT."""

from pathlib import Path

from plume.arguments import ArgumentParser
from plume.runtime import Runtime
from plume.runtime.golden import check_golden


def main(arguments: list[str] | None = None) -> None:
    """Compare, and say what was found.

    Args:
        arguments: Command line without the program; ``sys.argv`` if omitted.
    """
    parser = ArgumentParser(prog="python -m plume.runtime", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="OUT", help="what `plume export` wrote")
    runtime = Runtime(parser.parse_args(arguments).folder)
    worst = check_golden(runtime)
    found = (
        f"cosines are at least {1 - worst:.5f}" if runtime.manifest.int8 else f"numbers differ by at most {worst:.1e}"
    )
    print(f"{runtime.folder}: golden vectors {runtime.manifest.checkpoint}, {found}")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error

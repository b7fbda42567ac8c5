"""``plume verify FOLDER``: check a checkpoint folder; the exit status is 1 if a check fails."""

from pathlib import Path

from plume.arguments import ArgumentParser
from plume.checkpoints import locate
from plume.hub.verify import verify


def main(arguments: list[str] | None = None) -> int:
    """Check and print one line per check.

    Args:
        arguments: Command line without the program; ``sys.argv`` if omitted.

    Returns:
        The exit status.
    """
    parser = ArgumentParser(prog="plume verify", description=__doc__)
    parser.add_argument("folder", help="checkpoint folder")
    findings = verify(Path(locate(parser.parse_args(arguments).folder)))
    for finding in findings:
        print(f"{'ok  ' if finding.passed else 'FAIL'}  {finding.name:<22} {finding.detail}")
    return 0 if all(finding.passed for finding in findings) else 1


if __name__ == "__main__":
    raise SystemExit(main())

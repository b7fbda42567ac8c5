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
    parser.add_argument("--int8", action="store_true", help="compare speed_up(int8=True) with it, per K")
    parser.add_argument("--quantized", type=Path, help="folder of the same checkpoint, quantized: compare it too, per K")
    options = parser.parse_args(arguments)
    findings = verify(Path(locate(options.folder)), options.int8, options.quantized)
    for finding in findings:
        print(f"{'ok  ' if finding.passed else 'FAIL'}  {finding.name:<22} {finding.detail}")
    return 0 if all(finding.passed for finding in findings) else 1


if __name__ == "__main__":
    raise SystemExit(main())

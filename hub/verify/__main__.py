"""``python -m plume.hub.verify TARGET``: check a checkpoint folder; exits with 1 where a check fails."""

import argparse
from pathlib import Path

from plume.hub.verify import verify


def main() -> None:
    """Check and print one line per check."""
    parser = argparse.ArgumentParser(prog="python -m plume.hub.verify", description=__doc__)
    parser.add_argument("folder", type=Path, help="checkpoint folder")
    findings = verify(parser.parse_args().folder)
    for finding in findings:
        print(f"{'ok  ' if finding.passed else 'FAIL'}  {finding.name:<22} {finding.detail}")
    raise SystemExit(0 if all(finding.passed for finding in findings) else 1)


if __name__ == "__main__":
    main()

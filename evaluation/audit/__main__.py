"""``python -m plume.evaluation.audit``: the same as ``python -m plume.evaluation audit``."""

import sys

from plume.evaluation.__main__ import main

if __name__ == "__main__":
    raise SystemExit(main(["audit", *sys.argv[1:]]))

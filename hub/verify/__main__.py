"""``python -m plume.hub.verify``: the same as ``plume verify``."""

import sys

from plume.hub.__main__ import main

if __name__ == "__main__":
    raise SystemExit(main(["verify", *sys.argv[1:]]))

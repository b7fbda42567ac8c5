"""``python -m plume.hub.export``: the same as ``plume export``."""

import sys

from plume.hub.__main__ import main

if __name__ == "__main__":
    raise SystemExit(main(["export", *sys.argv[1:]]))

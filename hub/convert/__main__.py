"""``python -m plume.hub.convert``: the same as ``plume convert``."""

import sys

from plume.hub.__main__ import main

if __name__ == "__main__":
    raise SystemExit(main(["convert", *sys.argv[1:]]))

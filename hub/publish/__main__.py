"""``python -m plume.hub.publish``: the same as ``plume publish``."""

import sys

from plume.hub.__main__ import main

if __name__ == "__main__":
    raise SystemExit(main(["publish", *sys.argv[1:]]))

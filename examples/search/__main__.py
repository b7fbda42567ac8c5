"""The former place of ``plume search``."""

raise SystemExit("examples.search is part of the package now: use `plume search`, with the same arguments.")

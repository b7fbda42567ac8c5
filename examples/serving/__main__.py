"""The former place of ``plume serve``."""

raise SystemExit("examples.serving is part of the package now: use `plume serve`, with the same arguments.")

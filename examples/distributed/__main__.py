"""The former place of ``plume corpus``."""

raise SystemExit("examples.distributed is part of the package now: use `plume corpus`, with the same arguments.")

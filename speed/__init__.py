"""Optional CPU acceleration with private operators of torch, for ``speed_up()``; not part of a checkpoint's code."""

from plume.speed.packed import speed_up

__all__ = ["speed_up"]

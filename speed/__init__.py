"""Optional CPU acceleration with private operators of torch: not part of a checkpoint's code, used by ``speed_up()``."""

from plume.speed.packed import speed_up

__all__ = ["speed_up"]

"""Opt-in speed that needs private operators: not part of a checkpoint's code, found by ``model.speed_up()``."""

from plume.speed.packed import speed_up

__all__ = ["speed_up"]

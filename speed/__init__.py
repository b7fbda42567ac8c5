"""Optional acceleration on a CPU, for ``model.speed_up()``; not part of a checkpoint's code.

- :mod:`plume.speed.packed`: weights packed for products of few rows, in their own dtype or in eight bits.
- :mod:`plume.speed.prefixes`: what inputs have in common at their beginning is read once.
- :mod:`plume.speed.pictures`: a picture that comes again does not go through the vision tower again.
"""

from typing import Any

from plume.speed.bfloat16 import warn_of_emulation
from plume.speed.packed import pack_products
from plume.speed.pictures import reuse_pictures
from plume.speed.prefixes import reuse_prefixes


def speed_up(model: Any, enabled: bool = True, *, pack: bool = True, int8: bool = False, reuse: bool = True) -> None:
    """Set how a PLUME model runs without gradient on a CPU; each call replaces the settings of the one before.

    Args:
        model: The model; its modules and weights stay what they are.
        enabled: False takes everything back.
        pack: Whether to keep packed copies of the weights of decoder and adapter. They take the memory of the decoder
            once more, half of that in eight bits.
        int8: Whether the copies have eight bits per weight, with a scale per output channel. Vectors change by more
            than rounding: ``plume verify --int8`` measures by how much.
        reuse: Whether to keep what recent inputs began with, and recent pictures, in bounded memory. Vectors change by
            rounding only.

    Raises:
        ValueError: If ``int8`` is asked for without ``pack``.
    """
    if int8 and not pack:
        raise ValueError("int8=True is a way to pack weights, so pack=False would leave it without effect. Drop one.")
    if enabled:
        warn_of_emulation(model)
    pack_products(model, enabled and pack, int8)
    reuse_prefixes(model, enabled and reuse)
    reuse_pictures(model, enabled and reuse)


__all__ = ["speed_up"]

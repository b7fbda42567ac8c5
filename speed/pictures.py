"""A picture or clip that comes again does not go through the vision tower again, in a batch or after it.

1. :func:`reuse_pictures` replaces the backbone's ``get_image_features``.
2. Every picture is known by a digest of its patches and its grid. The tower reads those that are new, each once.
3. Their features are kept, the oldest give way, and all are dropped when the weights of the tower change.
"""

import hashlib
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from transformers.utils import logging

from plume.speed.freshness import Keeper, is_served, runs_own_code

logger = logging.get_logger(__name__)

_MOST_TOKENS = 8192  # visual tokens kept; 3 kB each in the 2b shape in bfloat16, four times that with deepstack
_METHOD = "get_image_features"


class Picture(NamedTuple):
    """What the tower made of one picture.

    Attributes:
        tokens: Features for the decoder, ``(N, D)``.
        levels: Deepstack features, ``(N, D)`` each; none for most backbones.
    """

    tokens: torch.Tensor
    levels: list[torch.Tensor]


@dataclass
class Features:
    """What the tower made of a batch, as ``get_image_features`` of the backbones returns it.

    Attributes:
        pooler_output: Features per picture, ``(N, D)`` each.
        deepstack_features: Features per level and picture, ``(N, D)`` each.
    """

    pooler_output: list[torch.Tensor]
    deepstack_features: list[tuple[torch.Tensor, ...]]


class PictureFeatures(Keeper):
    """Replaces ``get_image_features`` of a backbone; keeps pictures by their digests."""

    nothing: Any = dict

    def __call__(self, pixels: torch.Tensor, grids: torch.Tensor | None = None, **kwargs: Any) -> Any:
        """As the backbone's own method, to rounding."""
        own, tower = getattr(type(self.owner), _METHOD), self.owner.visual
        if grids is None or kwargs or not is_served(tower, pixels.device) or not runs_own_code(tower):
            return own(self.owner, pixels, grids, **kwargs)
        known, stamp = self.fresh(tower)
        # 2. The tower reads what is new, once each.
        patches = pixels.split(grids.prod(dim=-1).tolist())
        keys = [_digest(patch, grid) for patch, grid in zip(patches, grids, strict=True)]
        new = {key: place for place, key in reversed(list(enumerate(keys))) if key not in known}
        places = sorted(new.values())
        if places:
            output = own(self.owner, torch.cat([patches[place] for place in places]), grids[places])
            known |= {keys[place]: picture for place, picture in zip(places, _split(output), strict=True)}
        # 3. Keep them.
        pictures = {key: known[key] for key in keys}
        self.keep(stamp, lambda kept: _most_recent(kept, pictures))
        levels = zip(*(pictures[key].levels for key in keys), strict=True)
        return Features([pictures[key].tokens for key in keys], list(levels))


def _most_recent(kept: dict[bytes, Picture], pictures: dict[bytes, Picture]) -> dict[bytes, Picture]:
    """The pictures of a batch after the others, without the oldest of all where there are too many tokens."""
    kept = {key: old for key, old in kept.items() if key not in pictures} | pictures
    total = sum(len(picture.tokens) for picture in kept.values())
    for key in list(kept):
        if total > _MOST_TOKENS:
            total -= len(kept.pop(key).tokens)
    return kept


def _digest(patches: torch.Tensor, grid: torch.Tensor) -> bytes:
    digest = hashlib.sha256(repr((grid.tolist(), patches.dtype)).encode())
    digest.update(patches.contiguous().view(torch.uint8).numpy().data)
    return digest.digest()


def _split(output: Any) -> list[Picture]:
    """The pictures of an output of the tower; copies, which do not keep the whole batch alive."""
    tokens = output.pooler_output
    sizes = [len(part) for part in tokens]
    levels = [
        level.split(sizes) if isinstance(level, torch.Tensor) else level  # older transformers do not split them
        for level in vars(output).get("deepstack_features") or []
    ]
    return [Picture(part.clone(), [level[place].clone() for level in levels]) for place, part in enumerate(tokens)]


def reuse_pictures(model: Any, enabled: bool) -> None:
    """Let a model read a picture once, or every time again; says so where it cannot."""
    backbone = model.model
    if isinstance(vars(backbone).get(_METHOD), PictureFeatures):
        del backbone.get_image_features
    if not enabled:
        return
    if _METHOD in vars(backbone):
        logger.warning(f"speed_up(): something else replaces {_METHOD}, so a picture that comes again is read again.")
        return
    backbone.get_image_features = PictureFeatures(backbone)


__all__ = ["reuse_pictures"]

"""A picture or clip that comes again does not go through the vision tower again, in a batch or after it.

1. :func:`reuse_pictures` replaces the backbone's ``get_image_features``.
2. Every picture is known by a digest of its patches and its grid. The tower reads those that are new, each once.
3. Their features are kept, the oldest give way, and all are dropped when the weights of the tower change.
"""

import hashlib
import threading
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from transformers.utils import logging

from plume.speed.freshness import is_served, runs_own_code, stamp_module

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


class PictureFeatures:
    """Replaces ``get_image_features`` of a backbone; what is kept is not copied with it.

    Args:
        backbone: Whose method it is.
    """

    def __init__(self, backbone: Any) -> None:
        self.backbone = backbone
        self.kept: dict[bytes, Picture] = {}
        self._stamp: list[Any] = []
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"backbone": self.backbone}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def __call__(self, pixels: torch.Tensor, grids: torch.Tensor | None = None, **kwargs: Any) -> Any:
        """As the backbone's own method, to rounding."""
        own, tower = getattr(type(self.backbone), _METHOD), self.backbone.visual
        if grids is None or kwargs or not is_served(tower, pixels.device) or not runs_own_code(tower):
            return own(self.backbone, pixels, grids, **kwargs)
        known, stamp = self._fresh()
        # 2. The tower reads what is new, once each.
        patches = pixels.split(grids.prod(dim=-1).tolist())
        keys = [_digest(patch, grid) for patch, grid in zip(patches, grids, strict=True)]
        new = {key: place for place, key in reversed(list(enumerate(keys))) if key not in known}
        places = sorted(new.values())
        if places:
            output = own(self.backbone, torch.cat([patches[place] for place in places]), grids[places])
            known |= {keys[place]: picture for place, picture in zip(places, _split(output), strict=True)}
        # 3. Keep them.
        pictures = {key: known[key] for key in keys}
        self._keep(pictures, stamp)
        levels = zip(*(pictures[key].levels for key in keys), strict=True)
        return Features([pictures[key].tokens for key in keys], list(levels))

    def _fresh(self) -> tuple[dict[bytes, Picture], list[Any]]:
        """What is kept, and the state of the tower that it belongs to."""
        stamp = stamp_module(self.backbone.visual)
        with self._lock:
            if stamp != self._stamp:
                self.kept, self._stamp = {}, stamp
            return dict(self.kept), self._stamp

    def _keep(self, pictures: dict[bytes, Picture], stamp: list[Any]) -> None:
        """Keep the pictures of a batch and the most recent others, unless the tower has changed since."""
        with self._lock:
            if stamp is not self._stamp:
                return
            self.kept = {key: old for key, old in self.kept.items() if key not in pictures} | pictures
            total = sum(len(picture.tokens) for picture in self.kept.values())
            for key in list(self.kept):
                if total > _MOST_TOKENS:
                    total -= len(self.kept.pop(key).tokens)


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

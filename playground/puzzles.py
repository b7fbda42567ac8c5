"""Look-up chains: what every picture, clip, page and text of the world holds.

1. A puzzle has nine *names*. Each holds the name that comes next in its chain, or a *sign* at the chain's end. A chain
   of h names takes h look-ups, each of which needs the result of the one before.
2. Names are shuffled over nine *places*. Place, chain and sign are independent, so nothing but following the chain
   tells its end; the signs alone narrow it down to one chain in three.
3. A puzzle belongs to the split that a hash of its layout says (:func:`split_of`), so no layout is in two splits.
"""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass

SPLITS = ("train", "dev", "test")
NUM_NAMES = 9
# Lengths of the chains of a puzzle, by the number of look-ups that is asked for.
_LENGTHS = {1: (3, 3, 3), 2: (2, 2, 2, 3), 3: (3, 3, 3), 4: (4, 4, 1), 5: (5, 3, 1), 6: (6, 2, 1)}


@dataclass(frozen=True)
class Puzzle:
    """One layout.

    Attributes:
        names: Name at each of the nine places.
        contents: What the box at each place holds.
        chains: The chains, each its names in order and then its sign.
    """

    names: tuple[str, ...]
    contents: tuple[str, ...]
    chains: tuple[tuple[str, ...], ...]

    def holds(self, name: str) -> str:
        """What the box of this name holds."""
        return self.contents[self.names.index(name)]


def make_puzzle(rng: random.Random, names: Sequence[str], signs: Sequence[str], hops: int) -> Puzzle:
    """Draw a puzzle in which a chain of ``hops`` look-ups exists.

    Args:
        rng: Source of randomness.
        names: The nine names.
        signs: At least four signs.
        hops: 1 to 6.

    Raises:
        ValueError: If ``hops`` is out of range.
    """
    if hops not in _LENGTHS:
        raise ValueError(f"hops={hops} is not a number of look-ups of this world. Use one of {sorted(_LENGTHS)}.")
    shuffled, lengths = rng.sample(list(names), NUM_NAMES), _LENGTHS[hops]
    ends = rng.sample(list(signs), len(lengths))
    chains, start = [], 0
    for length, sign in zip(lengths, ends, strict=True):
        chains.append((*shuffled[start : start + length], sign))
        start += length
    holds = {name: after for chain in chains for name, after in zip(chain, chain[1:], strict=False)}
    places = rng.sample(list(names), NUM_NAMES)
    return Puzzle(tuple(places), tuple(holds[name] for name in places), tuple(chains))


def split_of(layout: object) -> str:
    """The split of a layout: one in ten is dev, one in ten test, by a hash of its description."""
    digest = hashlib.blake2b(repr(layout).encode(), digest_size=8).digest()
    return {0: "dev", 1: "test"}.get(int.from_bytes(digest, "big") % 10, "train")

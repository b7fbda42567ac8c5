"""What is trained and what is only asked.

- **By style**: one set of pictures is only in test, one only in dev.
- **By concept**: families of concepts that no training row shows or names, in any style or language.
- **By language**: of some languages, the words of a share of the trained families are left out.

Every decision is a hash of a family, so that neither a new package nor the order of a file moves one.
"""

import hashlib

from plume.playground.pictures.concepts import LANGUAGES, PARTIAL_LANGUAGES, Concept

TEST_STYLE, DEV_STYLE = "twemoji", "fxemoji"
_TEST_CONCEPTS, _DEV_CONCEPTS, _UNSEEN_WORDS = 0.04, 0.02, 0.2


def _share(purpose: str, family: str) -> float:
    """A number in 0..1 that depends on the family alone."""
    digest = hashlib.blake2b(f"{purpose}/{family}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def split_of(concept: Concept) -> str:
    """``"train"``, ``"dev"`` or ``"test"``: where the family of a concept belongs."""
    share = _share("concept", concept.family)
    if share < _TEST_CONCEPTS:
        return "test"
    return "dev" if share < _TEST_CONCEPTS + _DEV_CONCEPTS else "train"


def has_unseen_words(concept: Concept) -> bool:
    """Whether the words of a concept in :data:`PARTIAL_LANGUAGES` are never trained."""
    return _share("words", concept.family) < _UNSEEN_WORDS


def trained_languages(concept: Concept) -> tuple[str, ...]:
    """Languages in which a training row may name a concept; none for one of dev or test."""
    if split_of(concept) != "train":
        return ()
    return LANGUAGES if has_unseen_words(concept) else (*LANGUAGES, *PARTIAL_LANGUAGES)


def is_trained_style(style: str) -> bool:
    """Whether training rows may show the pictures of a set."""
    return style not in (TEST_STYLE, DEV_STYLE)

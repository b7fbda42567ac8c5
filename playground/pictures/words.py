"""The words of training: which text means which concepts."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from plume.playground.pictures.concepts import TONES, Concept
from plume.playground.pictures.splits import trained_languages

_MOST_MEANINGS = 12
GENDERS = ("man", "woman")
_NAMED = 0.85  # share of the concepts that have a text as their name


def tone_wish(tone: str) -> str:
    """What is wished of a picture of a person or a hand."""
    return f"the same with {tone} skin tone"


def gender_wish(gender: str) -> str:
    """What is wished of a picture of a man or a woman."""
    return f"the same as a {gender}"


WISHES = (*map(tone_wish, TONES.values()), *map(gender_wish, GENDERS))


@dataclass(frozen=True)
class Word:
    """A text in a language and the concepts it may mean.

    Attributes:
        text: As CLDR writes it.
        language: Of the text.
        keys: Keys of the concepts, sorted.
        named: Those whose name it is; of the others it is only a keyword.
    """

    text: str
    language: str
    keys: tuple[str, ...]
    named: tuple[str, ...]

    @property
    def is_name(self) -> bool:
        """Whether it is the name of a concept, not only a keyword."""
        return bool(self.named)

    def shares(self) -> dict[str, float]:
        """How much it means each concept. A dog is first of all a dog, and also a poodle."""
        others = set(self.keys) - set(self.named)
        named = (_NAMED if others else 1.0) if self.named else 0.0
        return {key: named / len(self.named) if key in self.named else (1 - named) / len(others) for key in self.keys}


def _texts(concept: Concept, language: str) -> Iterator[tuple[str, bool]]:
    name = concept.names.get(language)
    if name:
        yield name, True
        head, colon, tail = name.partition(":")  # "flag: France"
        if colon and tail.strip():
            yield tail.strip(), True
    for keyword in concept.keywords.get(language, ()):
        yield keyword, False


def training_words(concepts: Iterable[Concept]) -> list[Word]:
    """Every name and every keyword that training rows may use, in a fixed order.

    Keywords of more than a dozen concepts, such as "face", say too little and are left out.
    """
    meanings: dict[tuple[str, str], set[str]] = defaultdict(set)
    names: dict[tuple[str, str], set[str]] = defaultdict(set)
    for concept in concepts:
        for language in trained_languages(concept):
            for text, is_name in _texts(concept, language):
                meanings[language, text].add(concept.key)
                if is_name:
                    names[language, text].add(concept.key)
    return [
        Word(text, language, tuple(sorted(keys)), tuple(sorted(names[language, text])))
        for (language, text), keys in sorted(meanings.items())
        if len(keys) <= _MOST_MEANINGS
    ]

"""The words of training: which text means which concepts."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from plume.playground.pictures.concepts import Concept
from plume.playground.pictures.splits import trained_languages

_MOST_MEANINGS = 12


@dataclass(frozen=True)
class Word:
    """A text in a language and the concepts it may mean.

    Attributes:
        text: As CLDR writes it.
        language: Of the text.
        keys: Keys of the concepts, sorted.
        is_name: Whether it is the name of one of them, not only a keyword.
    """

    text: str
    language: str
    keys: tuple[str, ...]
    is_name: bool


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
    names: set[tuple[str, str]] = set()
    for concept in concepts:
        for language in trained_languages(concept):
            for text, is_name in _texts(concept, language):
                meanings[language, text].add(concept.key)
                if is_name:
                    names.add((language, text))
    return [
        Word(text, language, tuple(sorted(keys)), (language, text) in names)
        for (language, text), keys in sorted(meanings.items())
        if len(keys) <= _MOST_MEANINGS
    ]

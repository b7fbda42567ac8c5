"""Concepts: what the sets draw and CLDR names, joined by code points.

A key is the hexadecimal code points of an emoji, without variation selectors, joined by dashes. A *concept* has no skin
tone; toned pictures are variants of it. A *family* is what must not be torn apart by a split: one person as woman, man
and person, and flags that look the same.
"""

import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from plume.playground.pictures.sources import Archive

TONES = {"1f3fb": "light", "1f3fc": "medium-light", "1f3fd": "medium", "1f3fe": "medium-dark", "1f3ff": "dark"}
# Trained languages. The last four are trained on the concepts outside `splits.UNSEEN_WORDS` only.
LANGUAGES = (
    "en", "de", "fr", "es", "it", "pt", "nl", "sv", "da", "fi", "pl", "cs", "hu", "tr", "el", "ru", "ar", "he", "hi",
    "th", "vi", "id", "zh", "ja", "ko",
)  # fmt: skip
PARTIAL_LANGUAGES = ("ca", "no", "uk", "ms")
_ENGLISH = "en"
_GENDERED = {"1f468": "1f9d1", "1f469": "1f9d1", "1f466": "1f9d2", "1f467": "1f9d2", "1f474": "1f9d3", "1f475": "1f9d3"}
_LETTER_A = 0x1F1E6  # regional indicator symbol A
_SIGNS = {"2640", "2642"}  # female, male
# Flags of territories that fly the flag of a state, by region code -> the state's.
_SAME_FLAG = {"BV": "NO", "SJ": "NO", "UM": "US", "HM": "AU", "MF": "FR", "CP": "FR", "EA": "ES", "DG": "IO"}


@dataclass(frozen=True)
class Concept:
    """One thing that is drawn and named.

    Attributes:
        key: Its code points.
        group: Such as ``Smileys & Emotion``.
        subgroup: Such as ``face-sleepy``.
        family: Key that it shares with those that no split may part it from.
        names: Its name per language.
        keywords: Further words per language.
        aliases: Short names of another vendor, as people type them; never trained.
        toned: Per skin tone the key of its variant.
    """

    key: str
    group: str
    subgroup: str
    family: str
    names: Mapping[str, str]
    keywords: Mapping[str, tuple[str, ...]]
    aliases: tuple[str, ...] = ()
    toned: Mapping[str, str] = field(default_factory=dict)


def key_of(code_points: str) -> str:
    """Key of hexadecimal code points in any spelling, such as ``0033-FE0F-20E3``."""
    parts = (part.lower().lstrip("0") for part in re.split(r"[-_ ]", code_points))
    return "-".join(part for part in parts if part != "fe0f")


def key_of_text(emoji: str) -> str:
    """Key of an emoji as a string."""
    return "-".join(f"{ord(character):x}" for character in emoji if character != "\ufe0f")


def slug(text: str) -> str:
    """A name as the icon sets spell it: ``Côte d’Ivoire`` is ``cote-divoire``."""
    plain = unicodedata.normalize("NFKD", re.sub("[’“”]", "", text)).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")


def read_annotations(archives: Mapping[str, Archive], language: str) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Name and keywords of every key that CLDR annotates in a language."""
    found = {}
    for source, folder in (("names", "annotations"), ("derived", "annotationsDerived")):
        content = archives[source].json(f"{folder}/{language}/annotations.json")[folder]["annotations"]
        for emoji, entry in content.items():
            if entry.get("tts"):
                found[key_of_text(emoji)] = (entry["tts"][0], tuple(entry.get("default", ())))
    return found


def read_concepts(archives: Mapping[str, Archive], languages: Iterable[str]) -> list[Concept]:
    """All concepts, in the order of their keys.

    Args:
        archives: From :func:`~plume.playground.pictures.sources.fetch`.
        languages: Languages of the words; English is always read.
    """
    entries = archives["noto"].json("emoji.json")
    words = {language: read_annotations(archives, language) for language in dict.fromkeys((_ENGLISH, *languages))}
    concepts = [_concept(entry, words) for entry in entries if key_of(entry["unified"]) in words[_ENGLISH]]
    return sorted(concepts, key=lambda concept: concept.key)


def _concept(entry: Mapping[str, Any], words: Mapping[str, Mapping[str, tuple[str, tuple[str, ...]]]]) -> Concept:
    key = key_of(entry["unified"])
    named = {language: table[key] for language, table in words.items() if key in table}
    toned = {tone: key_of(other["unified"]) for tone, other in entry.get("skin_variations", {}).items()}
    return Concept(
        key=key,
        group=entry["category"],
        subgroup=entry["subcategory"],
        family=family_of(key),
        names={language: name for language, (name, _) in named.items()},
        keywords={language: tuple(w for w in others if w != name) for language, (name, others) in named.items()},
        aliases=tuple(alias.replace("_", " ").replace("-", " ") for alias in entry["short_names"]),
        toned={TONES[tone.lower()]: other for tone, other in toned.items() if tone.lower() in TONES},
    )


def region_of(key: str) -> str:
    """ISO code of the region whose flag it is; empty for everything else."""
    letters = [int(part, 16) - _LETTER_A for part in key.split("-")]
    return "".join(chr(ord("A") + letter) for letter in letters if 0 <= letter < 26) if len(letters) == 2 else ""


def family_of(key: str) -> str:
    """The key without gender, and of a flag, the state's that flies it."""
    state = _SAME_FLAG.get(region_of(key))
    if state:
        return "-".join(f"{ord(letter) - ord('A') + _LETTER_A:x}" for letter in state)
    parts = [_GENDERED.get(part, part) for part in key.split("-")]
    signs = [place for place, part in enumerate(parts) if part in _SIGNS and len(parts) > 1]
    for place in reversed(signs):
        del parts[place - (parts[place - 1] == "200d") : place + 1]
    return "-".join(parts)


def names_to_keys(concepts: Iterable[Concept], archives: Mapping[str, Archive]) -> dict[str, str]:
    """How the icon sets call what they draw -> its key.

    Two sets list the code points of their names. The others use the same names, CLDR's, or short names.
    """
    found: dict[str, str] = {}
    for source in ("noto-names", "fluent-flat"):
        for code_points, name in archives[source].json("chars.json").items():
            found.setdefault(name, key_of(code_points))
    for concept in concepts:
        name = slug(concept.names[_ENGLISH])
        spellings = {name, *map(slug, concept.aliases)}
        if concept.group == "Flags":
            country = name.removeprefix("flag-")
            spellings |= {f"flag-for-{country}", f"flag-for-flag-{country}", f"{country}-flag"}
        for spelling in sorted(spellings):
            found.setdefault(spelling, concept.key)
    return found

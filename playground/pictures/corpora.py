"""Training pairs and evaluation tasks over a built world, in the formats of the trainer and of ``plume.evaluation``.

Evaluation: every picture that is asked or answered is of the test style, unless a task says otherwise, and all of its
kind are candidates of every query. Files are named by a hash of their pixels, so equal pictures are one candidate.
"""

import json
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from PIL import Image
from tqdm import tqdm

from plume.playground.corpora import TABLE, MediaFolder, save_datasets, write_whole
from plume.playground.pictures.augment import augment
from plume.playground.pictures.concepts import LANGUAGES, PARTIAL_LANGUAGES, Concept, slug
from plume.playground.pictures.splits import TEST_STYLE, has_unseen_words, split_of, trained_languages
from plume.playground.pictures.words import GENDERS, gender_wish, tone_wish
from plume.playground.pictures.world import World

_OTHER_STYLE = "noto"  # answers of the task that asks for the same concept in another style
_SOME_LANGUAGES = ("en", "de", "fi", "ar", "ja")
_TRANSLATED = (("de", "en"), ("en", "ja"), ("fi", "sv"), ("ar", "fr"), ("ja", "ko"))
_AT_ONCE = 256  # pictures that are changed together


@dataclass(frozen=True)
class Asked:
    """A query and its answer: a text or a picture each, or both for a composed query."""

    query: str = ""
    query_picture: str = ""
    answer: str = ""
    answer_picture: str = ""


# Evaluation


def write_tasks(world: World, folder: Path, progress: bool = True) -> Path:
    """Write all evaluation tasks and their table.

    Args:
        world: What was built.
        folder: Where to.
        progress: Whether to show progress.

    Returns:
        The table.
    """
    media, rows = MediaFolder(folder / "media"), []
    add = cache(lambda path: media.add(world.picture(path)) if path else "")
    for name, group, asked, others in tqdm(list(_tasks(world)), desc="tasks", disable=not progress):
        rows.append(_write_task(folder, add, name, group, asked, others))
    table = {"meta": {"benchmark": "pictures", "version": "1"}, "tasks": rows}
    return write_whole(folder / TABLE, json.dumps(table, indent=1) + "\n")


def _tasks(world: World) -> Iterator[tuple[str, str, list[Asked], list[str]]]:
    """Name, group, queries, and candidates that no query of the task asks for."""
    drawn = {row.key: row.path for row in world.drawn(TEST_STYLE)}
    concepts = [world.by_key[key] for key in drawn]
    everything = list(drawn.values())
    for language in LANGUAGES:
        yield f"words-{language}", "words", _named(concepts, drawn, language), everything
    for language in PARTIAL_LANGUAGES:
        for kind, unseen in (("seen", False), ("unseen", True)):
            some = [c for c in concepts if has_unseen_words(c) == unseen and split_of(c) == "train"]
            yield f"words-{language}-{kind}", f"words-{kind}", _named(some, drawn, language), everything
    untrained = [concept for concept in concepts if split_of(concept) == "test"]
    yield "untrained-concepts-en", "untrained", _named(untrained, drawn, "en"), everything
    for kind, found in aliases(concepts).items():
        yield kind, "aliases", [Asked(query=text, answer_picture=drawn[key]) for text, key in found], everything
    yield "naming-en", "naming", [Asked(query_picture=drawn[c.key], answer=c.names["en"]) for c in concepts], []
    for own, another in _TRANSLATED:
        some = [concept for concept in concepts if {own, another} <= concept.names.keys()]
        asked = [Asked(query=concept.names[own], answer=concept.names[another]) for concept in some]
        yield f"words-{own}-to-{another}", "languages", asked, []
    other = {row.key: row.path for row in world.drawn(_OTHER_STYLE)}
    for kind, some in (("styles", concepts), ("untrained-concepts-styles", untrained)):
        asked = [Asked(query_picture=drawn[c.key], answer_picture=other[c.key]) for c in some if c.key in other]
        yield kind, "styles" if kind == "styles" else "untrained", asked, list(other.values())
    flags = [concept for concept in concepts if concept.group == "Flags" and ":" in concept.names["en"]]
    for language in _SOME_LANGUAGES:
        asked = [Asked(query=place, answer_picture=drawn[c.key]) for c in flags if (place := _place(c, language))]
        yield f"flags-{language}", "flags", asked, [drawn[c.key] for c in flags]
    yield "composed-tones", "composed", list(tones(world, TEST_STYLE, concepts)), []
    yield "composed-genders", "composed", list(genders(world, TEST_STYLE)), everything


def _named(concepts: Iterable[Concept], drawn: dict[str, str], language: str) -> list[Asked]:
    named = (concept for concept in concepts if language in concept.names)
    return [Asked(query=concept.names[language], answer_picture=drawn[concept.key]) for concept in named]


def _place(concept: Concept, language: str) -> str:
    """The country of a flag's name, such as ``flag: France``; empty where the name has another form."""
    return concept.names.get(language, "").partition(":")[2].strip()


def aliases(concepts: Sequence[Concept]) -> dict[str, list[tuple[str, str]]]:
    """Short names of another vendor that are no trained text, with their concepts.

    The second kind shares no word with the CLDR name, so no search over names can find it.
    """
    trained = {
        slug(text)
        for concept in concepts
        for text in (concept.names.get("en", ""), _place(concept, "en"), *concept.keywords.get("en", ()))
    }
    found = [
        (alias, concept)
        for concept in concepts
        for alias in concept.aliases
        if slug(alias) not in trained and split_of(concept) == "train"
    ]
    new = [(a, c) for a, c in found if not set(slug(a).split("-")) & set(slug(c.names["en"]).split("-"))]
    return {
        "aliases": [(alias, concept.key) for alias, concept in found],
        "aliases-without-the-name": [(alias, concept.key) for alias, concept in new],
    }


def tones(world: World, style: str, concepts: Iterable[Concept]) -> Iterator[Asked]:
    """A picture and a skin tone; the answer is the same person or hand in that tone."""
    for concept in concepts:
        for tone, key in sorted(concept.toned.items()):
            own, toned = f"{style}/{concept.key}.png", f"{style}/{key}.png"
            if all((world.folder / "pictures" / path).exists() for path in (own, toned)):
                yield Asked(query=tone_wish(tone), query_picture=own, answer_picture=toned)


def genders(world: World, style: str, wanted: Callable[[Concept], bool] = lambda concept: True) -> Iterator[Asked]:
    """A man's picture and "a woman", or the other way round."""
    drawn = {row.key: row.path for row in world.drawn(style)}
    for concept, other, partner in partners([concept for concept in world.concepts if concept.key in drawn]):
        if wanted(concept):
            yield Asked(gender_wish(other), drawn[concept.key], answer_picture=drawn[partner.key])


def partners(concepts: Iterable[Concept]) -> Iterator[tuple[Concept, str, Concept]]:
    """A concept with a man or a woman in its name, the other of both, and the concept named so."""
    by_name = {concept.names["en"]: concept for concept in concepts}
    for name, concept in sorted(by_name.items()):
        words = name.split(" ")
        for own, other in (GENDERS, GENDERS[::-1]):
            partner = by_name.get(" ".join(other if word == own else word for word in words))
            if own in words and partner:
                yield concept, other, partner


def _write_task(
    folder: Path, add: Callable[[str], str], name: str, group: str, asked: list[Asked], others: list[str]
) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    for one in asked:
        extra = sorted({add(path) for path in others}) if not rows else []
        positive = add(one.answer_picture)
        paths = [positive, *(path for path in extra if path != positive)]
        rows.append({
            "qry_inst": "",
            "qry_text": one.query,
            "qry_img_path": add(one.query_picture),
            "tgt_inst": "",
            "tgt_text": [one.answer] if one.answer else [""] * len(paths),
            "tgt_img_path": [""] if one.answer else paths,
        })  # fmt: skip
    save_datasets(folder / "data" / name, {"test": Dataset.from_list(rows)})
    first = asked[0]
    composed = first.query_picture and first.answer_picture
    parser = "image_i2i_vg" if composed else "image_cls" if first.answer else "image_t2i"
    return {
        "id": name,
        "group": group,
        "modality": "image",
        "dataset": {"repo": f"data/{name}", "config": None, "split": "test", "revision": None},
        "parser": parser,
        "media": "media",
        "archive": "the pictures of plume.playground.pictures: build them again",
        "query": {"modality": "image+text" if first.query_picture else "text"},
        "candidate": {"modality": "text" if first.answer else "image+text"},
        "pool": "global",
        "metric": "hit@1",
        "num_frames": None,
        "num_queries": len(rows),
    }


# Training


def rationale(concept: Concept) -> list[str]:
    """What a picture or a word is, in sentences of English, from CLDR's groups and keywords."""
    keywords = concept.keywords.get("en", ())[:3]
    sentences = [f"{concept.group}.", f" {concept.subgroup.replace('-', ' ')}."]
    return sentences + ([f" It means {', '.join(keywords)}."] if keywords else [])


def write_pairs(world: World, folder: Path, rows: int, seed: int = 0, progress: bool = True) -> Path:
    """Write training pairs, with pictures that are bent and recolored beforehand.

    Args:
        world: What was built.
        folder: Where to.
        rows: Number of pairs.
        seed: Seed of the choice and of the changes.
        progress: Whether to show progress.

    Returns:
        The file ``pairs.jsonl``; media are in ``media/`` next to it.
    """
    writer, media = _Pairs(world, random.Random(f"pairs-{seed}")), MediaFolder(folder / "media")
    pairs = [writer.draw() for _ in range(rows)]
    generator = torch.Generator().manual_seed(seed)
    for recolor in (True, False):  # a skin tone does not survive a change of colors
        some = [pair for pair in pairs if (pair["dataset_name"] != "tones") == recolor]
        shown = [side for pair in some for side in (pair["qry"], pair["pos"]) if "image" in side]
        for start in tqdm(range(0, len(shown), _AT_ONCE), "pictures of pairs", disable=not progress):
            sides = shown[start : start + _AT_ONCE]
            pixels = torch.stack([torch.from_numpy(world.open(side["image"])) for side in sides]).float() / 255
            changed = (augment(pixels, generator, recolor) * 255).round().byte().permute(0, 2, 3, 1).numpy()
            for side, picture in zip(sides, changed, strict=True):
                side["image"] = media.add(Image.fromarray(picture))
    lines = [json.dumps(pair, ensure_ascii=False) for pair in pairs]
    return write_whole(folder / "pairs.jsonl", "\n".join(lines) + "\n")


class _Pairs:
    """Draws pairs, of kinds by their shares; their pictures are still paths of the world."""

    def __init__(self, world: World, rng: random.Random) -> None:
        self.world, self.rng = world, rng
        self.styles: dict[str, list[str]] = {}
        for row in world.trained_pictures():
            self.styles.setdefault(row.key, []).append(row.path)
        self.concepts = [world.by_key[key] for key in sorted(self.styles)]
        styles = sorted({row.style for row in world.trained_pictures()})
        trained = [concept for concept in self.concepts if concept.toned]
        self.tones = [asked for style in styles for asked in tones(world, style, trained)]
        is_trained = lambda concept: split_of(concept) == "train"  # noqa: E731
        self.genders = [asked for style in styles for asked in genders(world, style, is_trained)]

    def draw(self) -> dict[str, Any]:
        """A pair in the UME-R1 format."""
        kinds = {"words": 55, "naming": 15, "styles": 10, "tones": 10, "genders": 10}
        (kind,) = self.rng.choices(list(kinds), list(kinds.values()))
        if kind in ("tones", "genders"):
            asked = self.rng.choice(self.tones if kind == "tones" else self.genders)
            sides = [self._side(asked.query_picture, asked.query), self._side(asked.answer_picture)]
            return {"dataset_name": kind, "qry": sides[0], "pos": sides[1]}
        concept = self.rng.choice(self.concepts)
        picture = self._side(self.rng.choice(self.styles[concept.key]), concept=concept)
        if kind == "styles":
            other = self._side(self.rng.choice(self.styles[concept.key]), concept=concept)
        else:
            other = self._side(text=self._word(concept), concept=concept)
        sides = [other, picture] if kind == "words" else [picture, other]
        return {"dataset_name": kind, "qry": sides[0], "pos": sides[1]}

    def _word(self, concept: Concept) -> str:
        languages = [language for language in trained_languages(concept) if language in concept.names]
        language = self.rng.choice(["en", *languages] if self.rng.random() < 0.7 else ["en"])
        if self.rng.random() < 0.3 and concept.keywords.get(language):
            return self.rng.choice(concept.keywords[language])
        name = concept.names.get(language, concept.names["en"])
        return (self.rng.random() < 0.3 and _place(concept, language)) or name

    def _side(self, path: str = "", text: str = "", concept: Concept | None = None) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        if path:
            fields["image"] = path
        turns = [{"from": "human", "value": f"<image>\n{text}" if path else text}]
        if concept:
            reply = f"<think>{''.join(rationale(concept))}</think><answer>{concept.names['en']}</answer>"
            turns.append({"from": "gpt", "value": reply})
        else:
            turns.append({"from": "gpt", "value": ""})
        return {**fields, "conversations": turns}

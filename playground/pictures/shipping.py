"""The pictures of the test style that the repository passes on: ``python -m plume.playground.pictures.shipping``.

``FOLDER/NAME.png`` and ``FOLDER/pictures.json`` with what they show and whose they are. Flags are left out, and all but
the first of those that differ in gender alone.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from plume.arguments import ArgumentParser
from plume.playground.pictures.concepts import Concept, slug
from plume.playground.pictures.sources import PACKAGES
from plume.playground.pictures.splits import TEST_STYLE
from plume.playground.pictures.world import World, read_world

LIST = "pictures.json"
_GROUPS = {
    "Smileys & Emotion": 60, "Animals & Nature": 70, "Food & Drink": 55, "Travel & Places": 55, "Activities": 30,
    "Objects": 70, "People & Body": 60,
}  # fmt: skip
_TONED = ("waving hand", "ear", "santa claus", "astronaut")  # in all skin tones, for composed queries


def choose(world: World) -> list[Concept]:
    """Concepts to pass on: per group those with the shortest names, one per family."""
    chosen, families = [], set()
    drawn = [world.by_key[row.key] for row in world.drawn(TEST_STYLE)]
    for group, count in _GROUPS.items():
        some = sorted((c for c in drawn if c.group == group), key=lambda c: (len(c.names["en"].split()), c.key))
        fresh: list[Concept] = []
        for concept in some:
            if concept.family not in families and len(fresh) < count:
                families.add(concept.family)
                fresh.append(concept)
        chosen += fresh
    return chosen


def ship(world: World, folder: Path) -> Path:
    """Write pictures and their list.

    Args:
        world: What was built.
        folder: Where to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shown = {}
    for concept in choose(world):
        name = concept.names["en"]
        forms = {"": concept.key} | (dict(concept.toned) if name in _TONED else {})
        for tone, key in forms.items():
            full = f"{name}: {tone} skin tone" if tone else name
            shutil.copyfile(world.folder / "pictures" / TEST_STYLE / f"{key}.png", folder / f"{slug(full)}.png")
            shown[f"{slug(full)}.png"] = {"key": key, "name": full}
    content = {"source": asdict(PACKAGES[TEST_STYLE]), "changes": "reduced, on white", "pictures": shown}
    (folder / LIST).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return folder / LIST


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and write.

    Args:
        arguments: Command line without the program; ``sys.argv`` if omitted.
    """
    parser = ArgumentParser(prog="python -m plume.playground.pictures.shipping", description=__doc__)
    parser.add_argument("world", type=Path, help="folder that plume.playground.pictures wrote")
    parser.add_argument("folder", type=Path, help="where to")
    args = parser.parse_args(arguments)
    ship(read_world(args.world), args.folder)


if __name__ == "__main__":
    main()

"""Build pictures and words: ``python -m plume.playground.pictures --output DIR``.

``DIR/concepts.jsonl`` and ``DIR/pictures`` hold what the packages draw and name, ``DIR/train`` training pairs (UME-R1
format), ``DIR/test`` evaluation tasks with their table, ``DIR/student`` a fresh model, ``DIR/manifest.json`` packages,
licences and the hashes of everything built.
"""

import hashlib
import json
from pathlib import Path

from plume.arguments import ArgumentParser
from plume.playground.pictures.concepts import LANGUAGES, PARTIAL_LANGUAGES, read_concepts
from plume.playground.pictures.corpora import write_pairs, write_tasks
from plume.playground.pictures.drawing import draw_all
from plume.playground.pictures.sources import fetch, manifest
from plume.playground.pictures.student import save_student
from plume.playground.pictures.world import read_world, write_concepts


def hash_folder(folder: Path) -> str:
    """A hash over the names and contents of all files of a folder."""
    digest = hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(f"{file.relative_to(folder)}\0{hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def main(arguments: list[str] | None = None) -> None:
    """Read the command line and build.

    Args:
        arguments: Command line without the program; ``sys.argv`` if omitted.
    """
    parser = ArgumentParser(prog="python -m plume.playground.pictures", description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder to build")
    parser.add_argument("--packages", type=Path, help="folder of the packages' archives; DIR/packages if omitted")
    parser.add_argument("--rows", type=int, default=16000, help="training pairs")
    parser.add_argument("--seed", type=int, default=0, help="seed of the pairs and of the fresh model")
    args = parser.parse_args(arguments)
    archives = fetch(args.packages or args.output / "packages")
    concepts = read_concepts(archives, (*LANGUAGES, *PARTIAL_LANGUAGES))
    draw_all(args.output / "pictures", concepts, archives)
    write_concepts(args.output, concepts)
    world = read_world(args.output)
    write_tasks(world, args.output / "test")
    write_pairs(world, args.output / "train", args.rows, args.seed)
    save_student(args.output / "student", world.words, args.seed)
    hashes = {name: hash_folder(args.output / name) for name in ("pictures", "train", "test")}
    content = {"packages": manifest(), "hashes": hashes}
    (args.output / "manifest.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(f"{args.output}: concepts.jsonl, pictures/, train/, test/tasks.json, student/, manifest.json")


if __name__ == "__main__":
    main()

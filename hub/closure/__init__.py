"""The code that travels with a checkpoint: read from its settings, linked into the checkpoints of this repository.

A checkpoint in ``checkpoints/`` is a whole Hub repository without a second copy of the code: its code files are links
to the root files, and a build of the wheel puts their contents in place of the links. After a change of the imports
``python -m plume.hub.closure checkpoints/plume-tiny`` brings the links up to date; a test compares them.
Saving a model into such a folder would write through its links: save elsewhere, and copy weights and settings.
"""

import json
import os
from pathlib import Path

from transformers.dynamic_module_utils import get_relative_import_files

PACKAGE = Path(__file__).parents[2]


def closure(folder: Path, code: Path = PACKAGE) -> list[Path]:
    """Code files that a checkpoint needs, as the loader of remote code finds them: ``auto_map``, then relative imports.

    Args:
        folder: Checkpoint folder.
        code: Folder of the code files; this package if omitted.

    Returns:
        The files, sorted by name, whether or not they exist.

    Raises:
        ValueError: If the settings of the checkpoint name no code.
    """
    names: set[str] = set()
    for settings in ("config.json", "processor_config.json"):
        path = folder / settings
        mapped = json.loads(path.read_text("utf-8")).get("auto_map", {}) if path.is_file() else {}
        names |= {reference.split(".")[0] for reference in mapped.values()}
    if not names:
        raise ValueError(f"{folder} names no code (auto_map) in config.json: save model and processor there first.")
    starts = [code / f"{name}.py" for name in names]
    found = [Path(file) for start in starts if start.is_file() for file in get_relative_import_files(start)]
    return sorted({*starts, *found})


def link_closure(folder: Path) -> list[Path]:
    """Make the code files of a checkpoint folder links to this package's, exactly those that it needs.

    Args:
        folder: Checkpoint folder in this repository.

    Returns:
        The links, sorted by name.

    Raises:
        ValueError: If the folder lies elsewhere, or holds a code file of its own, which would be lost.
    """
    home = PACKAGE.resolve()
    if not folder.resolve().is_relative_to(home):
        raise ValueError(
            f"{folder} lies outside {home}, so links would break when it moves. Use save_pretrained there."
        )
    files = closure(folder)
    existing = list(folder.glob("*.py"))
    if own := [path.name for path in existing if not path.is_symlink()]:
        raise ValueError(
            f"{folder} holds code of its own ({', '.join(own)}), which links would replace. Remove it first."
        )
    for path in existing:
        path.unlink()
    for file in files:
        (folder / file.name).symlink_to(os.path.relpath(home / file.name, folder.resolve()))
    return sorted(folder.glob("*.py"))

"""Small trained models that come with the package, by name."""

import os
from pathlib import Path

SHIPPED = {name: Path(__file__).parent / f"plume-{name}" for name in ("tiny", "anytime", "pictures")}
DEFAULT_MODEL = "tiny"


def locate(model: str | os.PathLike) -> str:
    """Folder of a model that comes with the package; any other folder or Hub id as it is.

    >>> Path(locate("tiny")).name, locate("org/plume")
    ('plume-tiny', 'org/plume')
    """
    return str(SHIPPED.get(os.fspath(model), model))

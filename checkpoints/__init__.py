"""Small trained models that come with the package, by name."""

import os
from pathlib import Path

SHIPPED = {name: Path(__file__).parent / f"plume-{name}" for name in ("tiny", "anytime", "pictures")}
DEFAULT_MODEL = "tiny"


def locate(model: str | os.PathLike) -> str:
    """Folder of a model that comes with the package; any other folder or Hub id as it is.

    Raises:
        ValueError: If it is none of the three. Without this, a typing error would be looked for on the Hub.

    >>> Path(locate("tiny")).name, locate("org/plume")
    ('plume-tiny', 'org/plume')
    """
    name = os.fspath(model)
    if name not in SHIPPED and not Path(name).exists() and len(Path(name).parts) == 1:
        raise ValueError(
            f"There is no model {name!r}: it is no folder, and a Hub id looks like org/name. The models that come with "
            f"the package are {', '.join(SHIPPED)}."
        )
    return str(SHIPPED.get(name, name))

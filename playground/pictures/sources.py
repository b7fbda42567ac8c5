"""The packages that pictures and words come from: versions, licences and hashes.

Packages are fetched with the ordinary npm client (``npm pack``) into a folder, checked against :data:`PACKAGES` and
read from their archives. Nothing is unpacked, and nothing of them is executed.
"""

import hashlib
import json
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

# Licences that allow to pass the material on, changed or not, with attribution.
REDISTRIBUTABLE = frozenset({"Unicode-3.0", "Apache-2.0", "MIT", "CC-BY-4.0", "CC-BY-SA-4.0"})


@dataclass(frozen=True)
class Package:
    """A package of the npm registry.

    Attributes:
        name: Its name there.
        version: Its version.
        sha256: Of its archive.
        licence: SPDX identifier of what is taken from it, which may differ from the licence of the package's own code.
        attribution: Whose work it is.
        stated: Where the licence is stated.
    """

    name: str
    version: str
    sha256: str
    licence: str
    attribution: str
    stated: str

    @property
    def file(self) -> str:
        """Name of the archive that ``npm pack`` writes."""
        return f"{self.name.lstrip('@').replace('/', '-')}-{self.version}.tgz"


_UNICODE = "Unicode, Inc."
_NOTO, _TWITTER, _MICROSOFT = "Google LLC", "Twitter, Inc. and other contributors", "Microsoft Corporation"
_ICONIFY = "package/info.json, license.spdx"
PACKAGES: dict[str, Package] = {
    "names": Package(
        "cldr-annotations-full",
        "48.2.0",
        "28576e51225deb51e3ddd734b0f824a0079682cb5d8c27faa9f68149317a14d1",
        "Unicode-3.0",
        _UNICODE,
        "package/LICENSE",
    ),
    "derived": Package(
        "cldr-annotations-derived-full",
        "48.2.0",
        "4be946ff5815f806ec78b50363d577a769f2fbfb90c6380a44e161a92436996e",
        "Unicode-3.0",
        _UNICODE,
        "package/LICENSE",
    ),
    "noto": Package(
        "emoji-datasource-google",
        "16.0.0",
        "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
        "Apache-2.0",
        _NOTO,
        "package/README.md",
    ),
    "twemoji": Package(
        "emoji-datasource-twitter",
        "16.0.0",
        "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877",
        "CC-BY-4.0",
        _TWITTER,
        "package/README.md",
    ),
    "openmoji": Package(
        "openmoji",
        "17.0.0",
        "55ee7d13485dec86e9f38c1f3a645a13382d33ff97c0cd845ee824b0aef45e68",
        "CC-BY-SA-4.0",
        "OpenMoji",
        "package/LICENSE.txt",
    ),
    "noto-names": Package(
        "@iconify-json/noto",
        "1.2.9",
        "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad",
        "Apache-2.0",
        _NOTO,
        _ICONIFY,
    ),
    "noto-v1": Package(
        "@iconify-json/noto-v1",
        "1.2.5",
        "2bf62c26c2c2884aa99e90aec942cdaee17a5921f05690694f4978ad4b017c37",
        "Apache-2.0",
        _NOTO,
        _ICONIFY,
    ),
    "fluent-flat": Package(
        "@iconify-json/fluent-emoji-flat",
        "1.2.6",
        "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
        "MIT",
        _MICROSOFT,
        _ICONIFY,
    ),
    "fluent": Package(
        "@iconify-json/fluent-emoji",
        "1.2.7",
        "8044210dbf11e016d4de85f15d01a243423bd832457e7e2491df1b751c0e272b",
        "MIT",
        _MICROSOFT,
        _ICONIFY,
    ),
    "fluent-line": Package(
        "@iconify-json/fluent-emoji-high-contrast",
        "1.2.6",
        "0b92d48c90d2200bd499e3cdd09a127ca6a8c8ddefd34c35eb5a1e4994012ae0",
        "MIT",
        _MICROSOFT,
        _ICONIFY,
    ),
    "emojione": Package(
        "@iconify-json/emojione",
        "1.2.3",
        "26a14f44284407e8bcde91799388dca2bfd91dbcd55a97f425524a1c5b73610e",
        "CC-BY-4.0",
        "Emoji One",
        _ICONIFY,
    ),
    "emojione-line": Package(
        "@iconify-json/emojione-monotone",
        "1.2.1",
        "40b90004bafb406b59266155ef9b7e1dd67bf2947fc8db8d07388776f4d0d04e",
        "CC-BY-4.0",
        "Emoji One",
        _ICONIFY,
    ),
    "emojione-v1": Package(
        "@iconify-json/emojione-v1",
        "1.2.3",
        "6641d59d48a42823fdc2b84e7427e9f302944eb98d2c7d94d6e67c139e7b37b3",
        "CC-BY-SA-4.0",
        "Emoji One",
        _ICONIFY,
    ),
    "fxemoji": Package(
        "@iconify-json/fxemoji",
        "1.2.2",
        "f3e72b3c59d05e1db03b7e308d55c0d05bd7ba3f625a90da1b79313c12858eef",
        "Apache-2.0",
        "Mozilla",
        _ICONIFY,
    ),
    "flag-icons": Package(
        "flag-icons",
        "7.5.0",
        "c0b80bf0e08006a60f56621d6bc49f8c7131f4d1fef6737a165a673431f4b518",
        "MIT",
        "Panayiotis Lipiridis",
        "package/LICENSE",
    ),
}


class Archive:
    """A package's archive, read without unpacking it.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def _members(self) -> dict[str, bytes]:
        with tarfile.open(self.path) as tar:
            wanted = (m for m in tar if m.isfile() and "/sheets" not in m.name and "/src/" not in m.name)
            return {m.name.removeprefix("package/"): tar.extractfile(m).read() for m in wanted}  # type: ignore[union-attr]

    def read(self, name: str) -> bytes:
        """Content of a file of the package."""
        return self._members[name]

    def json(self, name: str) -> Any:
        """Content of a JSON file of the package."""
        return json.loads(self.read(name))

    def names(self, folder: str, suffix: str) -> Iterator[str]:
        """Files of a folder with a suffix."""
        return (name for name in self._members if name.startswith(f"{folder}/") and name.endswith(suffix))


def fetch(folder: Path, packages: dict[str, Package] = PACKAGES) -> dict[str, Archive]:
    """Fetch what is missing with ``npm pack`` and check every archive.

    Args:
        folder: Where archives are kept.
        packages: What to fetch.

    Returns:
        Per key of ``packages`` its archive.

    Raises:
        ValueError: If an archive is not the one that the manifest names.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for key, package in packages.items():
        path = folder / package.file
        if not path.exists():
            subprocess.run(["npm", "pack", "--silent", f"{package.name}@{package.version}"], cwd=folder, check=True)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if digest != package.sha256:
            raise ValueError(
                f"{path} has SHA-256 {digest}, not {package.sha256}, so the pictures and words would be others than "
                "those of the results. Delete the file and fetch it again."
            )
        found[key] = Archive(path)
    return found


def manifest(packages: dict[str, Package] = PACKAGES) -> list[dict[str, str]]:
    """What the built data come from: package, version, hash, licence, author, per source."""
    return [{"source": key, **asdict(package)} for key, package in packages.items()]

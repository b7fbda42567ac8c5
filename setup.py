"""Packaging of PLUME: the repository root is the package ``plume``. What it is and needs stands in pyproject.toml."""

import re
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent

PACKAGES = {
    "plume": ".",
    "plume.apps": "apps",
    "plume.apps.corpus": "apps/corpus",
    "plume.apps.search": "apps/search",
    "plume.apps.serving": "apps/serving",
    "plume.apps.serving.load": "apps/serving/load",
    "plume.apps.shared": "apps/shared",
    "plume.benchmarks": "benchmarks",
    "plume.checkpoints": "checkpoints",
    "plume.evaluation": "evaluation",
    "plume.evaluation.audit": "evaluation/audit",
    "plume.evaluation.parsers": "evaluation/parsers",
    "plume.hub": "hub",
    "plume.hub.closure": "hub/closure",
    "plume.hub.convert": "hub/convert",
    "plume.hub.export": "hub/export",
    "plume.hub.publish": "hub/publish",
    "plume.hub.random_checkpoint": "hub/random_checkpoint",
    "plume.hub.verify": "hub/verify",
    "plume.playground": "playground",
    "plume.playground.pictures": "playground/pictures",
    "plume.runtime": "runtime",
    "plume.speed": "speed",
    "plume.training": "training",
    "plume.training.data": "training/data",
    "plume.training.rationales": "training/rationales",
}


class BuildPy(build_py):
    """Leaves this script out of the package whose folder it lies in."""

    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        """Modules of a package as (package, module, file)."""
        return [found for found in super().find_package_modules(package, package_dir) if found[1] != "setup"]


setup(
    version=re.findall(r'__version__ = "(.+)"', (ROOT / "__init__.py").read_text(encoding="utf-8"))[0],
    cmdclass={"build_py": BuildPy},
    package_dir=PACKAGES,
    packages=list(PACKAGES),
    package_data={
        "plume": ["py.typed"],
        "plume.apps.search": ["*.css"],
        # Links to the code become files here.
        "plume.checkpoints": ["plume-tiny/*", "plume-anytime/*", "plume-pictures/*"],
        "plume.evaluation": ["*.json"],
        "plume.evaluation.parsers": ["*.json"],
    },
)

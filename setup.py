"""Packaging of PLUME: the repository root is the package ``plume``. All metadata is here."""

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
    "plume.hub.publish": "hub/publish",
    "plume.hub.random_checkpoint": "hub/random_checkpoint",
    "plume.hub.verify": "hub/verify",
    "plume.playground": "playground",
    "plume.speed": "speed",
    "plume.training": "training",
    "plume.training.data": "training/data",
}
EXTRAS = {
    "st": ["sentence-transformers>=5.4"],
    "video": ["av>=14.1"],
    "pdf": ["pypdfium2>=5"],
    "train": [
        "transformers>=5.19,<6",
        "trl>=1.16,<2",
        "sentence-transformers>=5.4",
        "datasets",
        "accelerate",
        "peft",
        "matplotlib",
    ],
    "eval": ["mteb>=2.26,<2.27", "sentence-transformers>=5.4", "datasets", "matplotlib", "av>=14.1"],
}
EXTRAS["bench"] = [*EXTRAS["train"], "matplotlib"]
# The core tests also run on the oldest supported libraries, which are too old for training.
EXTRAS["test"] = [*EXTRAS["st"], *EXTRAS["video"], *EXTRAS["pdf"], "accelerate", "hypothesis", "pytest"]
EXTRAS["test"] += ["setuptools>=77"]
# What apps/ stands on; the package itself never needs it.
EXTRAS["search"] = [*EXTRAS["video"], *EXTRAS["pdf"], "lancedb>=0.40", "gradio>=6"]
EXTRAS["corpus"] = [*EXTRAS["st"], *EXTRAS["video"], *EXTRAS["pdf"], "pyarrow", "ray[data]>=2.60"]
EXTRAS["serving"] = [*EXTRAS["video"], "fastapi>=0.115", "uvicorn", "prometheus-client"]
EXTRAS["apps"] = [*EXTRAS["search"], *EXTRAS["corpus"], *EXTRAS["serving"], *EXTRAS["test"]]
EXTRAS["apps"] += ["datasets", "httpx", "openai", "playwright", "psutil", "schemathesis>=4"]
# What the examples join PLUME to.
EXTRAS["integrations"] = ["lancedb>=0.40", "langchain-openai>=1", "llama-index-embeddings-huggingface>=0.8"]
EXTRAS["dev"] = [*EXTRAS["test"], *EXTRAS["train"], *EXTRAS["eval"], *EXTRAS["bench"], "mypy", "pytest-xdist", "ruff"]


class BuildPy(build_py):
    """Leaves this script out of the package whose folder it lies in."""

    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        """Modules of a package as (package, module, file)."""
        return [found for found in super().find_package_modules(package, package_dir) if found[1] != "setup"]


setup(
    name="plume-embedding",
    version="0.1.0",
    description="Universal multimodal embeddings through latent reasoning (PLUME, arXiv 2604.02073)",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    cmdclass={"build_py": BuildPy},
    package_dir=PACKAGES,
    packages=list(PACKAGES),
    package_data={
        "plume": ["py.typed"],
        "plume.apps.search": ["*.css"],
        "plume.checkpoints": ["plume-tiny/*"],  # links to the code become files here
        "plume.evaluation": ["*.json"],
        "plume.evaluation.parsers": ["*.json"],
    },
    install_requires=[
        "filelock",
        "huggingface-hub",
        "jinja2>=3.1",
        "numpy",
        "pillow",
        "safetensors",
        "torch>=2.6",
        "tqdm",
        "transformers>=5.0,<6",
    ],
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["plume = plume.__main__:main"]},
)

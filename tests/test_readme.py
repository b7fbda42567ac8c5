"""Every Python block of the README and of the model card runs, with the tiny checkpoint as "org/plume"."""

import os
import re
import subprocess
import sys

import pytest

from inputs import MEDIA, ROOT
from plume.hub.random_checkpoint import save_random_plume


def blocks(path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with the media that the blocks name."""
    folder = tmp_path_factory.mktemp("readme")
    for name, source in (("bus.jpg", "bus.png"), ("page.png", "timetable_page.png"), ("bus.mp4", "rolling_ball.mp4")):
        (folder / name).write_bytes((MEDIA / source).read_bytes())
    save_random_plume(folder / "org" / "plume")
    return folder


def readable(path):
    return f"{path.parent.name}/{path.name}"


@pytest.mark.parametrize("index", range(len(blocks(ROOT / "README.md"))))
def test_readme_block_runs(workplace, index):
    run_block(blocks(ROOT / "README.md")[index], workplace)


def test_model_card_blocks_run(workplace):
    found = blocks(workplace / "org" / "plume" / "README.md")
    assert len(found) == 2
    for block in found:
        run_block(block, workplace)


def run_block(block, folder):
    done = subprocess.run(
        [sys.executable, "-c", block],
        cwd=folder,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{block}\n{done.stderr[-3000:]}"


@pytest.mark.parametrize("name", ["search", "corpus", "serving"])
def test_every_app_has_a_page_that_fits_on_two_screens(name):
    page = (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
    assert len(page.splitlines()) <= 90
    assert f"python -m plume.apps.{name}" in page


def test_the_readme_names_only_commands_that_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"make ([a-z-]+)", (ROOT / "README.md").read_text())) <= targets


def test_links_in_the_documents_lead_somewhere():
    for document in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", document.read_text(encoding="utf-8")):
            if not target.startswith("http"):
                assert (document.parent / target).exists(), f"{document.name}: {target}"

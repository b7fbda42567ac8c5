"""The README and the model card run as printed: the first block in a clone, the others with a stand-in as "org/plume"."""

import contextlib
import io
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.axes import Axes

from inputs import MEDIA, ROOT
from plume.benchmarks import report
from plume.hub.random_checkpoint import save_random_plume

README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with the media that the blocks name, and what lies in a clone."""
    folder = tmp_path_factory.mktemp("readme")
    for name, source in (("bus.jpg", "bus.png"), ("page.png", "timetable_page.png"), ("bus.mp4", "rolling_ball.mp4")):
        (folder / name).write_bytes((MEDIA / source).read_bytes())
    (folder / "examples").symlink_to(ROOT / "examples")
    save_random_plume(folder / "org" / "plume")
    return folder


def test_the_first_block_finds_the_answer_by_thinking(workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(blocks(README)[0], {})
    thinking, without = np.array(re.findall(r"-?\d+\.\d+", printed.getvalue()), float).reshape(2, 4)
    assert thinking.argmax() == 0
    assert f"{thinking[0]:.2f}" == re.search(r"box yellow cross\", (0\.\d+)", README)[1]
    assert without.argmax() != 0


def test_the_blocks_that_import_plume_run(workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    found = [block for block in blocks(README)[1:] if "import plume" in block]
    for block in found:
        exec(block, {})
    assert (workplace / "my-plume" / "config.json").exists()


@pytest.mark.slow
def test_the_other_blocks_and_the_model_card_run_without_the_package(workplace):
    readme = [block for block in blocks(README) if "import plume" not in block]
    card = blocks((workplace / "org" / "plume" / "README.md").read_text(encoding="utf-8"))
    assert len(readme) == len(card) == 2
    script = "".join(f"exec({block!r}, {{}})\n" for block in readme + card)
    script += "import sys\nassert 'plume' not in sys.modules, 'the code must come from the checkpoint'"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=workplace, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_the_sentence_above_the_benchmark_chart_says_what_it_shows(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(Axes, "bar_label", lambda axes, bars, labels, **_: shown.append(labels))
    result = json.loads((ROOT / "docs/results/benchmark-cpu.json").read_text())
    report.draw(result["rows"], result["header"], tmp_path / "chart.png")
    multiples = np.array([[re.search(r"[\d.]+", label)[0] for label in cell] for cell in shown], float)
    latent, explicit = multiples[:, 2], multiples[:, 4]
    said = " ".join(README.split())
    assert f"8 latent steps take {latent.min()} to {latent.max()} times as long" in said
    assert f"first takes {explicit.min():.0f} to {explicit.max():.0f} times" in said


def test_the_table_of_files_names_every_file_that_travels_with_the_weights():
    assert [path.name for path in ROOT.glob("*_plume*.py") if f"]({path.name})" not in README] == []

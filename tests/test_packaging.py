"""The wheel, an environment that has nothing else, and a checkout under an awkward name."""

import shutil
import subprocess
import sys
import sysconfig
import zipfile

import pytest

from inputs import ROOT

TRACKED = subprocess.run(
    ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
).stdout.split()

EMBED = """
import pathlib, sys
import torch
import plume
from plume.hub.random_checkpoint import save_random_plume
assert "site-packages" in plume.__file__ and "main" not in pathlib.Path(plume.__file__).parts, plume.__file__
model, processor = save_random_plume(pathlib.Path(sys.argv[1]))
with torch.no_grad():
    assert model(**processor.process_queries(["a red bus"])).embeddings.shape == (1, 32)
"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of the checkout in a folder whose name is no Python identifier."""
    folder = tmp_path_factory.mktemp("copies") / "PLUME-Qwen2-VL.main"
    for name in TRACKED:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return folder


def run(command, folder):
    done = subprocess.run(list(map(str, command)), cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def wheel(checkout, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, "."],
        checkout,
    )
    return next(folder.glob("*.whl"))


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert all(name.startswith("plume/") for name in names)
    assert {"plume/__init__.py", "plume/modeling_plume.py", "plume/py.typed", "plume/hub/random_checkpoint.py"} <= names
    assert {"plume/evaluation/mmeb_v2.json", "plume/evaluation/parsers/video_labels.json"} <= names
    assert {"plume/apps/search/page.css", "plume/apps/serving/load/__main__.py"} <= names
    assert "plume/setup.py" not in names
    assert not [name for name in names if "test" in name or "example" in name]


def test_the_wheel_works_in_an_environment_of_its_own(wheel, tmp_path):
    """Installed from the wheel; the dependencies are lent by this environment, the checkout is not on the path."""
    environment = tmp_path / "env"
    run([sys.executable, "-m", "venv", environment], tmp_path)
    python = environment / "bin" / "python"
    site = run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], tmp_path).strip()
    run([python, "-m", "pip", "install", "--no-deps", "--no-index", wheel], tmp_path)
    # A path file lends the packages but not the editable install, whose hook it does not execute.
    (tmp_path / site / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    run([python, "-c", EMBED, tmp_path / "checkpoint"], tmp_path)


def test_a_checkout_under_an_awkward_name_collects_its_tests(checkout):
    collected = run([sys.executable, "-m", "pytest", "--collect-only", "-q"], checkout)
    assert "tests/test_vectors.py::" in collected

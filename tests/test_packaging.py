"""The wheel, an environment that has nothing else, and a checkout under an awkward name."""

import json
import os
import resource
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import numpy as np
import pytest

import plume
from inputs import ROOT
from plume.checkpoints import SHIPPED
from plume.hub.closure import closure, link_closure
from plume.hub.verify import verify

TINY = ROOT / "checkpoints" / "plume-tiny"

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
        shutil.copy(ROOT / name, folder / name, follow_symlinks=False)  # links stay links, as in a clone
    return folder


def run(command, folder, **variables):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", **variables}
    done = subprocess.run(
        list(map(str, command)), cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
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


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert all(name.startswith("plume/") for name in names)
    assert {"plume/__init__.py", "plume/modeling_plume.py", "plume/py.typed", "plume/hub/layout.py"} <= names
    assert {"plume/evaluation/mmeb_v2.json", "plume/evaluation/parsers/video_labels.json"} <= names
    assert {"plume/apps/search/page.css", "plume/apps/serving/load/__main__.py"} <= names
    assert "plume/setup.py" not in names
    assert not [name for name in names if "test" in name or "example" in name]


@pytest.mark.slow
def test_the_wheel_holds_the_shipped_model_with_its_code_as_files(wheel):
    archive = zipfile.ZipFile(wheel)
    shipped = {name.rsplit("/", 1)[1]: archive.read(name) for name in archive.namelist() if "plume-tiny/" in name}
    assert set(shipped) == {path.name for path in TINY.iterdir() if path.is_file()}
    assert all(content == (TINY / name).read_bytes() for name, content in shipped.items())
    assert len(shipped["modeling_plume.py"]) > 1000


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The folder of an environment that has the wheel; this one lends the dependencies, the checkout is not on the path."""
    environment = tmp_path_factory.mktemp("installed") / "env"
    run([sys.executable, "-m", "venv", environment], environment.parent)
    python = environment / "bin" / "python"
    site = run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], environment.parent).strip()
    run([python, "-m", "pip", "install", "--no-deps", "--no-index", wheel], environment.parent)
    # A path file lends the packages but not the editable install, whose hook it does not execute.
    (environment.parent / site / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return environment


@pytest.mark.slow
def test_the_wheel_works_in_an_environment_of_its_own(installed, tmp_path):
    run([installed / "bin" / "python", "-c", EMBED, tmp_path / "checkpoint"], tmp_path, PYTHONPATH="")


@pytest.mark.slow
def test_the_installed_command_embeds_with_the_shipped_model(installed, tmp_path):
    command = installed / "bin" / "plume"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run([command, "--help"], tmp_path, PYTHONPATH="")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5
    line = run([command, "embed", "--model", "tiny", "open red"], tmp_path, PYTHONPATH="")
    assert (
        np.abs(np.array(json.loads(line)["vector"]) - plume.embed(["open red"], progress=False).vectors).max() <= 1e-5
    )


@pytest.mark.parametrize("folder", SHIPPED.values(), ids=SHIPPED.keys())
def test_the_code_of_the_shipped_models_is_linked_and_just_what_they_need(folder):
    """`python -m plume.hub.closure checkpoints/plume-...` mends what fails here."""
    links = {path.name: path for path in folder.glob("*.py")}
    assert sorted(links) == [path.name for path in closure(folder)]
    assert all(path.is_symlink() and path.readlink().as_posix() == f"../../{name}" for name, path in links.items())


def test_links_are_refreshed_where_they_differ(checkout, monkeypatch):
    tiny = checkout / "checkpoints" / "plume-tiny"
    shutil.copytree(tiny, tiny.parent / "other", symlinks=True)
    (tiny.parent / "other" / "modeling_plume.py").unlink()
    (tiny.parent / "other" / "gone_plume.py").symlink_to("../../gone_plume.py")
    monkeypatch.setattr("plume.hub.closure.PACKAGE", checkout)
    assert [link.name for link in link_closure(tiny.parent / "other")] == [path.name for path in closure(TINY)]
    assert (tiny.parent / "other" / "modeling_plume.py").resolve() == checkout / "modeling_plume.py"


def test_links_outside_the_repository_are_refused(tmp_path):
    with pytest.raises(ValueError, match="lies outside"):
        link_closure(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["a fresh clone", "the wheel"])
def test_the_shipped_model_opens_anywhere_without_the_package(request, remote, where):
    if where == "the wheel":
        environment = request.getfixturevalue("installed")
        folder = next(environment.glob("lib/*/site-packages/plume/checkpoints/plume-tiny"))
    else:
        folder = request.getfixturevalue("checkout") / "checkpoints" / "plume-tiny"
    expected = plume.embed(["open red", "shut green box"], progress=False).vectors
    for way in ("transformers", "sentence_transformers"):
        assert np.abs(remote(way, folder, ["open red", "shut green box"]) - expected).max() <= 1e-5


@pytest.mark.slow
def test_the_shipped_model_passes_its_verification_from_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert not [finding for finding in verify(Path(os.path.relpath(TINY, tmp_path))) if not finding.passed]


@pytest.mark.slow
def test_a_checkout_under_an_awkward_name_collects_tests(checkout):
    collected = run([sys.executable, "-m", "pytest", "--collect-only", "-q", "tests/test_vectors.py"], checkout)
    assert "tests/test_vectors.py::" in collected

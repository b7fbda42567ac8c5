"""The runtime in an environment without torch, which `make test-runtime` makes: small, quick to import, same vectors."""

import json
import os
import resource
import subprocess
from pathlib import Path

import numpy as np
import pytest

import plume
from inputs import MEDIA, ROOT

pytest.importorskip("onnxscript")

PYTHON = ROOT / ".venv-runtime" / "bin" / "python"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON.exists(), reason="`make test-runtime` makes the environment and runs these"),
]
ITEMS = [
    "a red bus",
    {"image": str(MEDIA / "boxes.png"), "text": "open red"},
    {"video": str(MEDIA / "rolling_ball.mp4")},
]
ENCODE = """
import json, sys
from plume.runtime import Runtime
print(json.dumps(Runtime(sys.argv[1]).encode(json.loads(sys.argv[2]), "query").tolist()))
assert not {"torch", "transformers"} & sys.modules.keys()
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    from plume.hub.export import export

    folder = tmp_path_factory.mktemp("exported") / "tiny"
    export("tiny", folder)
    return folder


def run(*arguments) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [PYTHON, *map(str, arguments)], capture_output=True, text=True, check=False, cwd="/", env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_golden_vectors_are_met(exported):
    assert "golden vectors plume-tiny" in run("-m", "plume.runtime", exported)


def test_texts_pictures_and_clips_get_the_models_vectors(exported):
    expected = plume.embed(ITEMS, "tiny", task="query", progress=False).vectors
    assert np.abs(np.array(json.loads(run("-c", ENCODE, exported, json.dumps(ITEMS)))) - expected).max() <= 1e-5


def test_the_import_takes_less_than_a_second_of_processor_time():
    run("-c", "import plume.runtime")  # compiles
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run("-c", "import plume.runtime")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0


def test_the_environment_is_smaller_than_300_megabytes():
    """pip and this package count; PyAV, which clips need, comes on top."""
    site = next(PYTHON.parents[1].glob("lib/*/site-packages"))
    files = [path for path in PYTHON.parents[1].rglob("*") if path.is_file() and not path.is_symlink()]
    clips = ("av", "av.libs")
    counted = [path for path in files if not (path.is_relative_to(site) and path.relative_to(site).parts[0] in clips)]
    package = [path for path in [*ROOT.glob("*.py"), *(ROOT / "checkpoints").rglob("*")] if path.is_file()]
    assert sum(path.stat().st_size for path in [*counted, *package]) < 300e6


def test_what_needs_torch_says_so():
    told = "import plume\ntry:\n    plume.embed\nexcept ImportError as error:\n    print(error)"
    assert "pip install 'plume-embedding[torch]'" in run("-c", told)

"""The server on an exported model: over HTTP as the Dockerfile starts it, and the search commands."""

import json
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest

for name in ("onnxscript", "fastapi", "uvicorn", "prometheus_client", "lancedb"):
    pytest.importorskip(name)

import plume
from inputs import MEDIA, ROOT, free_port
from plume.apps.search.__main__ import parse_arguments, run
from plume.apps.shared.batches import open_encoder
from plume.hub.export import export

DOCKERFILE = (ROOT / "Dockerfile").read_text()
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "tiny"
    export("tiny", folder)
    return folder


def command_of(instruction: str, before: str = "") -> list[str]:
    """The arguments of an instruction in JSON, after other text of it."""
    lines = DOCKERFILE.replace("\\\n", " ")
    return json.loads(re.search(rf"^{before}\s*{instruction} (\[.+\])$", lines, re.MULTILINE)[1])


def ask(port: int, **body) -> np.ndarray:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/embeddings",
        json.dumps({"model": "plume", **body}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return np.array([row["embedding"] for row in json.load(answer)["data"]])


def wait_until_healthy(check: list[str], process: subprocess.Popen) -> None:
    for _ in range(600):
        if subprocess.run(check, capture_output=True, check=False).returncode == 0:
            return
        assert process.poll() is None, process.stderr.read().decode()[-2000:]
        time.sleep(0.2)
    raise AssertionError("the health check never passed")


def test_the_dockerfiles_command_serves_the_models_vectors_and_its_health_check_passes(exported):
    port = free_port()
    command = command_of("CMD")
    assert command[0] == "plume"
    place = {"/model": str(exported), "8000": str(port), "0.0.0.0": "127.0.0.1"}
    arguments = [place.get(argument, argument) for argument in command[1:]]
    check = command_of("CMD", r"HEALTHCHECK [^\[]*?")
    check = [sys.executable, *(word.replace(":8000", f":{port}") for word in check[1:])]
    assert subprocess.run(check, capture_output=True, check=False).returncode != 0  # nothing serves yet
    process = subprocess.Popen([sys.executable, "-m", "plume", *arguments], cwd="/", stderr=subprocess.PIPE)
    try:
        wait_until_healthy(check, process)
        expected = plume.embed(["a red bus"], "tiny", task="query", num_latent_steps=3, progress=False).vectors
        assert np.abs(ask(port, input="a red bus", role="query", num_latent_steps=3) - expected).max() <= 1e-5
    finally:
        process.terminate()
        process.wait(30)


def test_the_dockerfile_installs_the_extra_without_torch_and_runs_as_a_user():
    lines = DOCKERFILE.replace("\\\n", " ").splitlines()
    instructions = [line.split()[0] for line in lines if line.strip() and not line.startswith("#")]
    assert instructions.index("USER") < instructions.index("CMD")
    assert "USER plume" in DOCKERFILE
    assert "'/source[serving-runtime]'" in DOCKERFILE


@pytest.mark.skipif(
    shutil.which("docker") is None
    or subprocess.run(["docker", "info"], capture_output=True, check=False).returncode != 0,
    reason="no docker daemon here",
)
def test_the_image_is_built_and_answers(exported):
    subprocess.run(["docker", "build", "-t", "plume-test", str(ROOT)], check=True)
    port = free_port()
    started = ["docker", "run", "-d", "--rm", "-p", f"{port}:8000", "-v", f"{exported}:/model:ro", "plume-test"]
    container = subprocess.run(started, capture_output=True, check=True, text=True).stdout.strip()
    try:
        for _ in range(600):
            state = ["docker", "inspect", "-f", "{{.State.Health.Status}}", container]
            if subprocess.run(state, capture_output=True, check=True, text=True).stdout.strip() == "healthy":
                break
            time.sleep(0.5)
        assert ask(port, input="a red bus").shape == (1, 128)
        user = subprocess.run(["docker", "exec", container, "id", "-u"], capture_output=True, check=True, text=True)
        assert user.stdout.strip() == "1000"
    finally:
        subprocess.run(["docker", "stop", container], check=True, capture_output=True)


def test_search_indexes_with_torch_and_asks_without(exported, tmp_path, capsys):
    (tmp_path / "documents").mkdir()
    for name in ("bus.png", "boxes.png"):
        shutil.copy(MEDIA / name, tmp_path / "documents")
    common = ["--index", str(tmp_path / "index")]
    run(parse_arguments(["index", str(tmp_path / "documents"), *common, "--dtype", "float32"]))
    run(parse_arguments(["query", "a bus", *common, "--runtime", str(exported)]))
    assert "bus.png" in capsys.readouterr().out
    again = ["index", str(tmp_path / "documents"), *common, "--runtime", str(exported)]
    run(parse_arguments(again))
    assert "0 embedded, 2 unchanged" in capsys.readouterr().out


def test_options_of_a_checkpoint_are_refused_with_an_export(exported):
    with pytest.raises(ValueError, match=r"--device, --dtype would have no effect"):
        open_encoder(None, "cpu", "float32", exported)

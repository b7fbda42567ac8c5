"""A published checkpoint in a Hugging Face Inference Endpoint: what the endpoint does, in this process."""

import base64
import importlib.util
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest

import plume
from inputs import MEDIA, noise_image
from plume.hub.publish import endpoint_files


@pytest.fixture(scope="module")
def handler(checkpoint, tmp_path_factory):
    """The handler of a repository, loaded from its file as the endpoint loads it."""
    path = tmp_path_factory.mktemp("repository") / "handler.py"
    path.write_text(endpoint_files(checkpoint)["handler.py"])
    spec = importlib.util.spec_from_file_location("endpoint_handler", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.EndpointHandler(str(checkpoint))


def data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def test_texts_pictures_and_clips_get_the_models_vectors(handler, checkpoint):
    pytest.importorskip("av")
    file = BytesIO()
    noise_image(1).save(file, "PNG")
    clip = MEDIA / "rolling_ball.mp4"
    inputs = ["a red bus", {"image": data_uri("image/png", file.getvalue()), "text": "at night"},
              {"video": data_uri("video/mp4", clip.read_bytes())}]  # fmt: skip
    items = ["a red bus", {"image": noise_image(1), "text": "at night"}, {"video": clip}]
    loaded = plume.load(checkpoint)
    expected = plume.embed(items, loaded, progress=False).vectors
    assert np.abs(np.array(handler({"inputs": inputs})) - expected).max() <= 1e-5
    query = plume.embed(items[:1], loaded, task="query", num_latent_steps=1, progress=False).vectors
    asked = handler({"inputs": "a red bus", "parameters": {"task": "query", "num_latent_steps": 1}})
    assert np.abs(np.array(asked) - query).max() <= 1e-5


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"inputs": [{"image": str(MEDIA / "bus.png")}]}, "no data URI"),
        ({"inputs": {"image": ["data:image/png;base64,", "http://127.0.0.1/a.png"]}}, "no data URI"),
        ({"inputs": {"video": "file:///etc/hostname"}}, "no data URI"),
        ({"inputs": [{"sound": "a"}]}, "An input is a text, or an object"),
        ({"parameters": {}}, "An input is a text, or an object"),
        ({"inputs": "a", "parameters": {"temperature": 1}}, "unknown parameters"),
        ({"inputs": "a", "parameters": {"task": "passage"}}, "'document' or 'query'"),
        ({"inputs": "a", "parameters": {"num_latent_steps": 99}}, "num_latent_steps=99"),
        ({"inputs": []}, "nothing to embed"),
    ],
)
def test_what_cannot_be_embedded_or_would_open_a_file_is_refused(handler, data, message):
    with pytest.raises(ValueError, match=message):
        handler(data)


def test_a_folder_with_a_handler_of_its_own_keeps_it(tmp_path):
    (tmp_path / "handler.py").write_text("mine = True\n")
    files = endpoint_files(Path(tmp_path))
    assert files["handler.py"] == "mine = True\n"
    assert "transformers" in files["requirements.txt"]

"""The scripts of examples/ run as they are, with plume-tiny, and put into other libraries the vectors of `encode`."""

import csv
import json
import re
import runpy
import shutil
import sys

import numpy as np
import pytest
import torch

pytest.importorskip("sentence_transformers", reason="the extra `st` is not installed")

from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoProcessor, TorchAoConfig

from inputs import MEDIA, ROOT, embed, noise_image
from plume.speed.int8 import Int8Product, computes_exactly
from plume.speed.packed import PackedForward
from servers import serving

TINY = str(ROOT / "checkpoints" / "plume-tiny")
BUS, DOGS = "the bus to the harbour leaves at ten past eight", "two dogs on a sofa"
ASKED = "when does the bus leave?"


@pytest.fixture(scope="module")
def tiny() -> SentenceTransformer:
    return SentenceTransformer(TINY)


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a script of examples/ in this process: the variables that it leaves, and the lines that it prints."""

    def run(name: str, *arguments) -> tuple[dict, list[str]]:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        left = runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")
        return left, capsys.readouterr().out.splitlines()

    return run


def largest_difference(ours, theirs) -> float:
    return float(np.abs(np.subtract(ours, theirs)).max())


def test_quickstart(run):
    _, said = run("quickstart.py", TINY)
    scores = [float(line.split()[0]) for line in said[:4]]
    assert scores == sorted(scores, reverse=True)
    assert "K = 0" in said[4]


def test_own_photos(run):
    _, said = run("own_photos.py", MEDIA, "--like", MEDIA / "boat.png", "--model", TINY)
    assert "boat.png" in said[0]
    assert len(said) == len(list(MEDIA.glob("*.png")))


def test_pdf_pages(run, tmp_path):
    pytest.importorskip("pypdfium2", reason="the extra `search` is not installed")
    noise_image(1, 168, 224).save(tmp_path / "a.pdf", save_all=True, append_images=[noise_image(2, 224, 168)])
    left, said = run("pdf_pages.py", tmp_path / "a.pdf", "where is the harbour?", TINY)
    assert sorted(line.split("page ")[1] for line in said) == ["1", "2"]
    assert abs(left["pages"][0].width * left["pages"][0].height / left["PIXELS"] - 1) < 0.01


@pytest.mark.slow
def test_finetune_pairs(run, tmp_path):
    for module in ("trl", "peft", "datasets"):
        pytest.importorskip(module, reason="the extra `train` is not installed")
    shutil.copy(MEDIA / "bus.png", tmp_path / "bus.png")
    rows = [("what is this?", "bus.png", f"a bus, {number}", "") for number in range(4)]
    with (tmp_path / "pairs.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["query_text", "query_image", "document_text", "document_image"])
        table.writerows(rows)
    run(
        "finetune_pairs.py",
        tmp_path / "pairs.csv",
        tmp_path / "out",
        TINY,
        "--max_steps",
        1,
        "--per_device_train_batch_size",
        4,
        "--bf16",
        "false",
    )
    pair = json.loads((tmp_path / "out" / "pairs.jsonl").read_text().splitlines()[0])
    assert pair["qry"]["image"] == "bus.png"
    tuned = SentenceTransformer(str(tmp_path / "out" / "model"))
    assert tuned.encode([BUS]).shape == (1, tuned.get_embedding_dimension())


def test_langchain_through_the_server(run, tiny):
    for module in ("langchain_openai", "fastapi", "prometheus_client"):
        pytest.importorskip(module, reason="the extras `integrations` and `serving` are not installed")
    with serving("plume.apps.serving", "--model", TINY, path="/health") as (address, _):
        left, said = run("langchain_server.py", address + "/v1")
        embeddings = left["store"].embeddings
        assert len(said) == 3
        assert largest_difference(embeddings.embed_documents([BUS, DOGS]), tiny.encode_document([BUS, DOGS])) <= 1e-5
        assert largest_difference(embeddings.embed_query(ASKED), tiny.encode_query([ASKED])[0]) <= 1e-5


def test_langchain_in_the_process(run, tiny):
    pytest.importorskip("langchain_huggingface", reason="make test-examples installs it")
    left, said = run("langchain_local.py", TINY)
    embeddings = left["embeddings"]
    assert len(said) == 3
    assert largest_difference(embeddings.embed_documents([BUS, DOGS]), tiny.encode_document([BUS, DOGS])) <= 1e-5
    assert largest_difference(embeddings.embed_query(ASKED), tiny.encode_query([ASKED])[0]) <= 1e-5


def test_llamaindex(run, tiny):
    pytest.importorskip("llama_index.embeddings.huggingface", reason="the extra `integrations` is not installed")
    left, said = run("llamaindex.py", TINY)
    embedding = left["embedding"]
    assert len(said) == 3
    assert (
        largest_difference(embedding.get_text_embedding_batch([BUS, DOGS]), tiny.encode_document([BUS, DOGS])) <= 1e-5
    )
    assert largest_difference(embedding.get_query_embedding(ASKED), tiny.encode_query([ASKED])[0]) <= 1e-5
    picture = tiny.encode_document([{"image": str(MEDIA / "bus.png")}])[0]
    assert largest_difference(embedding.get_image_embedding(str(MEDIA / "bus.png")), picture) <= 1e-5


def test_lancedb_registry(run, tiny, tmp_path):
    pytest.importorskip("lancedb", reason="the extra `integrations` is not installed")
    left, said = run("lancedb_registry.py", tmp_path / "database", TINY)
    rows = {row["content"]: row["vector"] for row in left["table"].to_arrow().to_pylist()}
    assert largest_difference([rows[BUS], rows[DOGS]], tiny.encode_document([BUS, DOGS])) <= 1e-5
    assert re.search(r"bus\.png$", said[2])


def test_haystack(run, tiny):
    pytest.importorskip("haystack_integrations.components.embedders.sentence_transformers", reason="`integrations`")
    left, said = run("haystack_pictures.py", TINY)
    vectors = {found.content or found.meta["file_path"]: found.embedding for found in left["store"].filter_documents()}
    assert len(said) == 3
    assert largest_difference([vectors[BUS], vectors[DOGS]], tiny.encode_document([BUS, DOGS])) <= 1e-5
    assert largest_difference(left["query"], tiny.encode_query([ASKED])[0]) <= 1e-5
    picture = tiny.encode_document([{"image": str(MEDIA / "bus.png")}])[0]
    assert largest_difference(vectors[str(MEDIA / "bus.png")], picture) <= 1e-5


def test_txtai(run, tiny):
    pytest.importorskip("txtai", reason="the extra `integrations` is not installed")
    left, said = run("txtai_index.py", TINY)
    index, picture = left["embeddings"], left["Image"].open(MEDIA / "bus.png")
    assert said[2] == "1.000  bus.png"
    assert (
        largest_difference(index.batchtransform([BUS, picture], "data"), tiny.encode_document([BUS, picture])) <= 1e-5
    )
    assert largest_difference(index.transform(ASKED, "query"), tiny.encode_query([ASKED])[0]) <= 1e-5


def test_every_script_of_the_examples_is_listed():
    page = (ROOT / "examples" / "README.md").read_text()
    helpers = {"__init__.py", "contact_sheet.py", "make_media.py"}
    scripts = {path.name for path in (ROOT / "examples").glob("*.py")} - helpers
    assert {name for name in re.findall(r"\]\((\w+\.py)\)", page)} == scripts


def test_a_torchao_int8_model_is_sped_up_in_its_eight_bits_and_loads_again(monkeypatch, tmp_path):
    quantization = pytest.importorskip("torchao.quantization", reason="the extra `integrations` is not installed")
    said = []
    monkeypatch.setattr("plume.speed.packed.logger.warning", said.append)
    kept = ["model.visual", "lm_head", "latent_transition"]  # in their own dtype
    config = TorchAoConfig(quantization.Int8WeightOnlyConfig(), modules_to_not_convert=kept)
    model = AutoModel.from_pretrained(TINY, quantization_config=config).eval()
    processor = AutoProcessor.from_pretrained(TINY)
    assert all(type(weight) is torch.nn.Parameter for weight in model.model.visual.parameters())
    expected = embed(model, processor, [BUS, DOGS])
    found = embed(model.speed_up(), processor, [BUS, DOGS])
    assert (found * expected).sum(-1).min() >= 1 - 1e-6
    forward = model.model.language_model.layers[0].mlp.up_proj.forward
    if computes_exactly():
        assert said == []
        assert isinstance(forward.products[0], Int8Product)
    else:  # a CPU without eight-bit arithmetic: torchao's own product stays, and says so
        assert len(said) == 1
        assert "does not multiply eight bits exactly" in said[0]
        assert not isinstance(forward, PackedForward)
    model.speed_up(False).save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path).eval()
    assert torch.equal(embed(again, processor, [BUS, DOGS]), expected)

"""A checkpoint with another K for queries than for documents: every entry point gives each side its own."""

import json

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

import plume
from inputs import noise_image
from plume import PlumeConfig
from plume.hub.info import describe
from plume.hub.random_checkpoint import save_random_plume

ITEMS = ["a red bus at a stop", {"image": noise_image(3), "text": "two dogs"}]
STEPS = {"query": 3, "document": 0}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    own = {f"num_latent_steps_{side}": steps for side, steps in STEPS.items()}
    save_random_plume(folder, num_latent_steps=2, max_latent_steps=4, **own)
    return folder


@pytest.fixture(scope="module")
def loaded(checkpoint):
    return plume.load(checkpoint, device="cpu")


@pytest.fixture(scope="module")
def expected(loaded):
    """Vectors per side, from calls that name their K; those at another K differ."""
    model, processor = loaded
    process = {"query": processor.process_queries, "document": processor.process_documents}
    with torch.no_grad():
        found = {
            (side, steps): model(**process[side](ITEMS), num_latent_steps=steps).embeddings.numpy()
            for side in STEPS
            for steps in range(4)
        }
    assert all(np.abs(found[side, 3] - found[side, 0]).max() > 1e-2 for side in STEPS)
    return {**found, **{side: found[side, steps] for side, steps in STEPS.items()}}


def same(vectors, expected) -> bool:
    return bool(np.abs(np.asarray(vectors) - expected).max() <= 1e-5)


def test_forward_takes_the_k_of_its_task_and_an_explicit_one_wins(loaded, expected):
    model, processor = loaded
    features = processor.process_documents(ITEMS)
    with torch.no_grad():
        assert same(model(**features, task="document").embeddings, expected["document"])
        assert same(model(**features).embeddings, expected["document", 2])
        assert same(model(**features, task="document", num_latent_steps=3).embeddings, expected["document", 3])


def test_sentence_transformers_passes_the_task(checkpoint, expected, tmp_path):
    encoder = SentenceTransformer(str(checkpoint), device="cpu")
    assert same(encoder.encode_query(ITEMS), expected["query"])
    assert same(encoder.encode_document(ITEMS), expected["document"])
    assert same(encoder.encode_query(ITEMS, num_latent_steps=1), expected["query", 1])
    encoder.save_pretrained(str(tmp_path))
    again = SentenceTransformer(str(tmp_path), device="cpu", trust_remote_code=True)
    assert same(again.encode_query(ITEMS), expected["query"])


def test_mteb_embeds_each_prompt_type_at_its_k(checkpoint, loaded):
    mteb = pytest.importorskip("mteb", reason="the extra `eval` is not installed")
    from datasets import Dataset
    from mteb.models import SentenceTransformerEncoderWrapper
    from mteb.types import PromptType
    from torch.utils.data import DataLoader

    wrapper = SentenceTransformerEncoderWrapper(SentenceTransformer(str(checkpoint), device="cpu"))
    task = mteb.get_task("SciFact").metadata
    batches = DataLoader(Dataset.from_dict({"text": ITEMS[:1]}), batch_size=1)
    model, processor = loaded
    for kind, process in (
        (PromptType.query, processor.process_queries),
        (PromptType.document, processor.process_documents),
    ):
        found = wrapper.encode(batches, task_metadata=task, hf_split="test", hf_subset="default", prompt_type=kind)
        with torch.no_grad():
            own = model(**process(ITEMS[:1]), num_latent_steps=STEPS[kind.value]).embeddings.numpy()
        assert same(found, own)


def test_the_evaluation_embeds_each_role_at_its_k(loaded):
    pytest.importorskip("mteb", reason="the extra `eval` is not installed")
    from plume.evaluation.embedders import ModelEmbedder, prepare

    model, processor = loaded
    embedder, features = ModelEmbedder(model, processor), prepare(model, processor, [{"text": "a bus"}])
    for side, steps in STEPS.items():
        with torch.no_grad():
            own = model(**features, num_latent_steps=steps).embeddings.numpy()
        assert same(embedder.encode([{"text": "a bus"}], side), own)
    assert embedder.condition["latent_steps"] == "3 (documents 0)"
    assert ModelEmbedder(model, processor, 1).condition["latent_steps"] == 1


def test_embed_takes_the_k_of_its_task(loaded, expected):
    for side in STEPS:
        assert same(plume.embed(ITEMS, loaded, task=side, progress=False).vectors, expected[side])
    assert same(plume.embed(ITEMS, loaded, num_latent_steps=3, progress=False).vectors, expected["document", 3])


@pytest.fixture
def app(checkpoint):
    pytest.importorskip("pypdfium2", reason="the extra `search` is not installed")
    from plume.apps.shared.encoder import Encoder

    return Encoder(str(checkpoint), "cpu")


def test_the_encoder_of_the_apps_takes_the_k_of_the_role(app, expected):
    for side in STEPS:
        assert same(app.encode(ITEMS, side), expected[side])
        assert same(app.run(app.process(ITEMS, side), side).embeddings, expected[side])
    assert same(app.try_encode(ITEMS, num_latent_steps=1), expected["document", 1])


def test_the_server_takes_the_k_of_the_role(checkpoint, expected):
    for module in ("fastapi", "av"):
        pytest.importorskip(module, reason="the extra `serve` is not installed")
    import httpx

    from servers import serving

    with serving("plume.apps.serving", "--model", checkpoint, path="/health") as (address, _):
        for side in STEPS:
            body = {"model": "plume", "input": ITEMS[0], "role": side}
            answer = httpx.post(f"{address}/v1/embeddings", json=body, timeout=60).json()
            assert same(answer["data"][0]["embedding"], expected[side][0])


def test_a_corpus_job_embeds_documents_at_their_k(app, tmp_path):
    pytest.importorskip("lancedb", reason="the extra `search` is not installed")
    from plume.apps.corpus.chunks import embed_chunk, unfinished
    from plume.apps.corpus.plan import make_plan

    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "bus.txt").write_text("a red bus at a stop")
    make_plan(tmp_path / "corpus", tmp_path / "job", app, 4)
    assert json.loads((tmp_path / "job" / "job.json").read_text())["num_latent_steps"] == STEPS["document"]
    [chunk] = unfinished(tmp_path / "job")
    taken = []
    embed_chunk(tmp_path / "job", chunk, app, lambda contents: taken.extend(app.try_encode(contents)) or taken)
    assert same(taken, app.encode(["a red bus at a stop"], "document", STEPS["document"]))


@pytest.fixture
def folder(tmp_path):
    for module in ("lancedb", "av"):
        pytest.importorskip(module, reason="the extra `search` is not installed")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "bus.txt").write_text("a red bus at a stop")
    return tmp_path


@pytest.mark.parametrize("given", [None, 1])
def test_an_index_remembers_the_k_of_its_documents_and_queries_have_their_own(app, folder, given):
    from plume.apps.search.indexing import index_folders
    from plume.apps.search.searching import Search
    from plume.apps.search.store import open_index
    from plume.apps.shared.limits import Limits

    index_folders([folder / "texts"], open_index(folder / "index", app, given), app)
    index = open_index(folder / "index", app)
    assert index.num_latent_steps == (STEPS["document"] if given is None else given)
    document = app.encode(["a red bus at a stop"], "document", index.num_latent_steps)[0]
    assert same(list(index.vectors().values()), document)
    [hit] = Search(index, app, Limits()).run("a bus", None, None, 5).hits
    assert hit.score == pytest.approx(float(app.encode(["a bus"], "query", STEPS["query"])[0] @ document), abs=1e-5)


def test_an_index_is_refused_at_another_k_and_with_a_checkpoint_that_cannot_run_it(app, folder, tmp_path):
    from plume.apps.search.store import open_index
    from plume.apps.shared.encoder import Encoder

    open_index(folder / "index", app, 4)
    with pytest.raises(ValueError, match=r"holds vectors of .* with K = 4, which cannot be compared.* K = 1\."):
        open_index(folder / "index", app, 1)
    with pytest.raises(ValueError, match=r"num_latent_steps=5 is outside 0\.\.4"):
        open_index(folder / "other", app, 5)
    save_random_plume(tmp_path / "short", num_latent_steps=1, max_latent_steps=2)
    with pytest.raises(ValueError, match="with K = 4, which cannot be compared"):
        open_index(folder / "index", Encoder(str(tmp_path / "short"), "cpu"))


@pytest.mark.parametrize("side", STEPS)
@pytest.mark.parametrize("value", [-1, 33, "8", 1.0, True])
def test_a_k_of_a_side_that_cannot_be_run_is_refused_by_name(side, value):
    with pytest.raises(ValueError, match=f"num_latent_steps_{side}"):
        PlumeConfig(**{f"num_latent_steps_{side}": value})


def test_an_unknown_task_is_refused(loaded):
    model, processor = loaded
    with pytest.raises(ValueError, match="task must be 'query' or 'document', got 'passage'"):
        model(**processor.process_documents(["a bus"]), task="passage")


def test_info_tells_the_k_of_each_side(checkpoint):
    assert describe(str(checkpoint))["latent steps"] == "2, 3 for a query, 0 for a document, at most 4"

"""Four entry points, one vector: remote code, sentence-transformers, the installed package, the hub by name."""

import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import sentence_transformers
import torch
from packaging.version import Version
from remote import Remote
from sentence_transformers import SentenceTransformer

from inputs import MEDIA, embed, mixed_inputs, noise_image, noise_video

takes_processing_kwargs = pytest.mark.skipif(
    Version(sentence_transformers.__version__) < Version("6"),
    reason="encode(processing_kwargs=...) came with sentence-transformers 6",
)
ITEMS = [
    "a red bus at a stop",
    {"image": str(MEDIA / "bus.png")},
    {"image": [str(MEDIA / "boat.png"), str(MEDIA / "bus.png")]},
    {"image": str(MEDIA / "timetable_page.png"), "text": "the total"},
    {"video": str(MEDIA / "rolling_ball.mp4")},
    {"video": str(MEDIA / "rolling_ball.mp4"), "text": "two dogs"},
]


@pytest.fixture(scope="module")
def expected(checkpoint, processor) -> np.ndarray:
    from plume import PlumeForEmbedding

    return embed(PlumeForEmbedding.from_pretrained(checkpoint).eval(), processor, ITEMS).numpy()


@pytest.fixture(scope="module", params=["folder", "org/plume"])
def name(request, checkpoint, remote) -> str:
    """The checkpoint as a folder, and as a cached repository of the hub, offline."""
    return str(checkpoint) if request.param == "folder" else remote.publish("org/plume", checkpoint)


def test_remote_code_gives_the_same_vectors_and_saves_itself(name, remote, expected, tmp_path):
    resaved = tmp_path / "resaved"
    assert np.abs(remote("transformers", name, ITEMS, resaved) - expected).max() <= 1e-5
    assert (resaved / "modeling_plume.py").exists()
    assert (resaved / "modules.json").exists()
    assert np.abs(remote("transformers", resaved, ITEMS) - expected).max() <= 1e-5


@pytest.mark.slow
def test_five_processes_fill_one_cache_of_remote_code_at_once(checkpoint, expected, tmp_path):
    others = [Remote(tmp_path) for _ in range(5)]
    try:
        with ThreadPoolExecutor(len(others)) as pool:
            found = list(pool.map(lambda other: other("transformers", checkpoint, ITEMS[:2]), others))
    finally:
        for other in others:
            other.close()
    for vectors in found:
        assert np.abs(vectors - expected[:2]).max() <= 1e-5


def test_sentence_transformers_with_remote_code(name, remote, expected):
    assert np.abs(remote("sentence_transformers", name, ITEMS) - expected).max() <= 1e-5


@pytest.fixture(scope="module")
def encoder(checkpoint) -> SentenceTransformer:
    """Sentence-transformers after `import plume`: no trust_remote_code."""
    return SentenceTransformer(str(checkpoint))


def test_sentence_transformers_after_importing_plume(encoder, expected):
    assert type(encoder[0].model).__module__ == "plume.modeling_plume"
    assert np.abs(encoder.encode(ITEMS) - expected).max() <= 1e-5
    assert np.abs(encoder.encode(ITEMS, batch_size=2) - expected).max() <= 1e-5


def test_sentence_transformers_takes_every_kind_of_input(encoder, model, processor):
    image, video = noise_image(5), noise_video(6)
    array = np.stack([np.asarray(frame) for frame in video])
    messages = [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "a bus"}]}]
    given = [image, np.asarray(image), {"video": video}, array, messages, {"image": image, "text": "a bus"}]
    vectors = np.stack([encoder.encode([item])[0] for item in given])
    ours = embed(model, processor, [image, image, {"video": video}, {"video": video}, messages, messages]).numpy()
    assert np.abs(vectors - ours).max() <= 1e-5
    mixed = mixed_inputs()
    assert np.abs(encoder.encode(mixed) - embed(model, processor, mixed).numpy()).max() <= 1e-5


def test_queries_and_documents_get_their_prompts(encoder, model, processor):
    with torch.no_grad():
        queries = model(**processor.process_queries(ITEMS)).embeddings.numpy()
        own = model(**processor.process_queries(ITEMS, prompt="Find a page.")).embeddings.numpy()
    assert np.abs(encoder.encode_query(ITEMS) - queries).max() <= 1e-5
    assert np.abs(encoder.encode_document(ITEMS) - encoder.encode(ITEMS)).max() <= 1e-6
    assert np.abs(encoder.encode(ITEMS, prompt="Find a page.") - own).max() <= 1e-5
    assert np.abs(queries - own).max() > 1e-3


def test_latent_steps_and_dimensions_are_arguments_of_encode(encoder, model, processor):
    one = embed(model, processor, ITEMS, num_latent_steps=1).numpy()
    assert np.abs(encoder.encode(ITEMS, num_latent_steps=1) - one).max() <= 1e-5
    assert encoder.encode(ITEMS, truncate_dim=8).shape == (len(ITEMS), 8)


@takes_processing_kwargs
def test_pixel_limits_are_an_argument_of_encode(encoder, model, processor):
    small = encoder.encode([noise_image(0, 280, 280)], processing_kwargs={"image": {"max_pixels": 28 * 28 * 4}})
    with torch.no_grad():
        ours = model(**processor.process_documents([noise_image(0, 280, 280)], max_pixels=28 * 28 * 4)).embeddings
    assert np.abs(small - ours.numpy()).max() <= 1e-5


def test_long_text_with_an_image_keeps_the_end_of_the_prompt(encoder, model, processor):
    """sentence-transformers cuts from the right; the processor has shortened the text before that."""
    item = {"image": noise_image(7), "text": "a red bus at a stop " * 200}
    encoder.max_seq_length, before = 128, encoder.max_seq_length
    try:
        vector = encoder.encode([item])
    finally:
        encoder.max_seq_length = before
    with torch.no_grad():
        ours = model(**processor.process_documents([item], max_length=128)).embeddings.numpy()
    assert np.abs(vector - ours).max() <= 1e-5


def test_saving_through_sentence_transformers_keeps_the_vectors(encoder, expected, tmp_path):
    encoder.save_pretrained(str(tmp_path))
    assert np.abs(SentenceTransformer(str(tmp_path)).encode(ITEMS) - expected).max() <= 1e-6
    assert (tmp_path / "modeling_plume.py").exists()


def test_a_pair_is_refused(encoder):
    with pytest.raises(ValueError, match="embed its two sides separately"):
        encoder.encode([("a red bus", "two dogs")])


@takes_processing_kwargs
def test_right_padding_through_sentence_transformers_gives_the_same_vectors(encoder):
    texts = ["a red bus", "two dogs on a sofa and more"]
    padded = encoder.encode(texts, processing_kwargs={"text": {"padding_side": "right"}})
    assert np.abs(padded - encoder.encode(texts)).max() <= 1e-5


@pytest.mark.slow
def test_several_processes_give_the_same_vectors(encoder):
    texts = [f"a red bus {i}" for i in range(12)]
    pool = encoder.start_multi_process_pool(["cpu", "cpu"])
    try:
        together = encoder.encode(texts, pool=pool, chunk_size=3)
    finally:
        encoder.stop_multi_process_pool(pool)
    assert np.abs(together - encoder.encode(texts)).max() <= 1e-5


def test_an_encoder_reaches_another_process_whole(encoder, expected):
    assert np.abs(pickle.loads(pickle.dumps(encoder)).encode(ITEMS) - expected).max() <= 1e-5

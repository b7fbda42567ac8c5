"""The latent states as multi-vectors: K per input, of all modalities, compared by MaxSim, saved and loaded again."""

import numpy as np
import pytest
import torch
from sentence_transformers import MultiVectorEncoder

from inputs import noise_image, noise_video
from plume.multi_vector import load_multi_vector

ITEMS = ["a red bus", {"image": noise_image(1)}, {"image": noise_image(2), "text": "a bus"}, {"video": noise_video(3)}]


@pytest.fixture(scope="module")
def encoder(checkpoint) -> MultiVectorEncoder:
    return load_multi_vector(checkpoint, device="cpu")


def test_every_input_becomes_its_latent_states(encoder, model, processor):
    for encode, process in (
        (encoder.encode_query, processor.process_queries),
        (encoder.encode_document, processor.process_documents),
    ):
        found = encode(ITEMS, convert_to_numpy=True)
        with torch.no_grad():
            states = model(**process(ITEMS)).latent_states
        expected = torch.nn.functional.normalize(states, dim=-1).numpy()
        assert [vectors.shape for vectors in found] == [(3, 32)] * len(ITEMS)
        assert np.abs(np.stack(found) - expected).max() <= 1e-5


def test_fewer_vectors_are_the_first_ones(encoder):
    whole, short = (encoder.encode_query(ITEMS, num_latent_steps=k, convert_to_numpy=True) for k in (5, 2))
    assert all(np.abs(more[:2] - few).max() <= 1e-5 for more, few in zip(whole, short, strict=True))


def test_similarity_is_the_sum_of_the_best_matches(encoder):
    queries = encoder.encode_query(ITEMS[:2], num_latent_steps=2, convert_to_numpy=True)
    documents = encoder.encode_document(ITEMS, convert_to_numpy=True)
    expected = [[(query @ document.T).max(axis=1).sum() for document in documents] for query in queries]
    assert np.abs(encoder.similarity(queries, documents).numpy() - np.array(expected)).max() <= 1e-4


def test_a_saved_encoder_loads_again(encoder, tmp_path):
    encoder.save_pretrained(str(tmp_path))
    again = MultiVectorEncoder(str(tmp_path), device="cpu", trust_remote_code=True)
    ours, theirs = (one.encode_query(ITEMS, num_latent_steps=2, convert_to_numpy=True) for one in (encoder, again))
    assert all(np.abs(first - second).max() <= 1e-5 for first, second in zip(ours, theirs, strict=True))


def test_no_latent_steps_are_refused(encoder):
    with pytest.raises(ValueError, match="there would be no vector"):
        encoder.encode_document(["a bus"], num_latent_steps=0)

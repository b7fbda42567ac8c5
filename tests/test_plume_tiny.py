"""The committed small checkpoints: their vectors on every supported library version, and what their cards say of them."""

import json
import random

import pytest
import torch

from inputs import ROOT
from plume import PlumeForEmbedding, PlumeProcessor
from plume.playground.tasks import TASKS, draw_example

CHECKPOINTS = ROOT / "checkpoints"
REFERENCES = ROOT / "tests" / "references"
NAMES = ["image-chain", "image-crop", "video-track", "image-look", "text-chain", "image-name"]


def as_input(item) -> dict:
    media = {"image": item.image} if item.image else {"video": list(item.video)} if item.video else {}
    return {**media, **({"text": item.text} if item.text else {})}


def draw_inputs() -> list[dict]:
    """Twelve queries and targets of pictures, clips and texts; none of them has drawn letters."""
    inputs = []
    for name in NAMES:
        example = draw_example(TASKS[name], random.Random(name), "test")
        inputs += [as_input(example.query), as_input(example.target)]
    return inputs


def load(name):
    folder = CHECKPOINTS / f"plume-{name}"
    return PlumeForEmbedding.from_pretrained(folder).eval(), PlumeProcessor.from_pretrained(folder)


@pytest.fixture(scope="module")
def tiny():
    return load("tiny")


@pytest.fixture(scope="module")
def anytime():
    return load("anytime")


def embed(tiny, inputs, **options):
    model, processor = tiny
    with torch.no_grad():
        return model(**processor.process_documents(inputs), **options).embeddings


@pytest.mark.parametrize("name", ["tiny", "anytime"])
def test_vectors_equal_the_committed_ones(name, request):
    reference = torch.tensor(json.loads((REFERENCES / f"plume_{name}.json").read_text()))
    assert reference.shape == (12, 128)
    torch.testing.assert_close(embed(request.getfixturevalue(name), draw_inputs()), reference, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["tiny", "anytime"])
def test_it_is_small(name):
    assert sum(file.stat().st_size for file in (CHECKPOINTS / f"plume-{name}").iterdir()) < 20e6


def ask(tiny, name, hops=None):
    """Forty queries, their answers as documents, and which one is right."""
    examples = [draw_example(TASKS[name], random.Random(f"chain-{i}"), "test", hops) for i in range(40)]
    targets = {example.answer: as_input(example.target) for example in examples}
    right = torch.tensor([list(targets).index(example.answer) for example in examples])
    return [as_input(example.query) for example in examples], embed(tiny, list(targets.values())), right


@pytest.mark.parametrize("name", ["image-chain", "document-chain", "text-chain", "video-track"])
def test_three_look_ups_are_made_by_the_latent_steps(tiny, name):
    """Right with the steps, wrong without, or with too few."""
    queries, documents, right = ask(tiny, name)
    for steps, least, most in ((8, 0.75, 1.0), (2, 0.0, 0.4), (0, 0.0, 0.4)):
        found = (embed(tiny, queries, num_latent_steps=steps) @ documents.T).argmax(dim=1)
        assert least <= (found == right).float().mean() <= most, steps


@pytest.mark.parametrize("name", ["image-look", "image-name"])
def test_what_one_pass_can_see_needs_no_steps(tiny, name):
    queries, documents, right = ask(tiny, name)
    for steps in (8, 0):
        found = (embed(tiny, queries, num_latent_steps=steps) @ documents.T).argmax(dim=1)
        assert (found == right).float().mean() >= 0.9, steps


@pytest.mark.parametrize(("hops", "enough", "too_few"), [(1, 2, None), (2, 4, 0), (3, 6, 2), (4, 8, 4)])
@pytest.mark.parametrize("name", ["image-chain", "text-chain"])
def test_two_latent_steps_are_one_more_look_up(anytime, name, hops, enough, too_few):
    queries, documents, right = ask(anytime, name, hops)
    for steps in range(enough, 9, 2):
        found = (embed(anytime, queries, num_latent_steps=steps) @ documents.T).argmax(dim=1)
        assert (found == right).float().mean() >= 0.9, steps
    if too_few is not None:
        found = (embed(anytime, queries, num_latent_steps=too_few) @ documents.T).argmax(dim=1)
        assert (found == right).float().mean() <= 0.5

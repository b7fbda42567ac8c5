"""sentence-transformers as a trainer: its losses, which join columns of unequal width, see the same vectors."""

import re

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import losses

from inputs import ROOT, noise_image
from inputs import every_backbone as model_type  # noqa: F401 (the fixture of this module)

merged_forward = pytest.importorskip("sentence_transformers.base.losses.merged_forward")

TRIPLETS = [
    ["a red bus", "a bus at a stop", "two dogs on a sofa and more words to make it long"],
    ["the total", "the total of the second row of the page", "a sofa"],
]


@pytest.fixture
def encoder(checkpoint) -> SentenceTransformer:
    encoder = SentenceTransformer(str(checkpoint), device="cpu")
    encoder[0].model.latent_transition.experts.dropout.p = 0.0
    return encoder


def loss_and_gradient(loss, encoder, columns) -> tuple[torch.Tensor, torch.Tensor]:
    encoder.zero_grad()
    features = [encoder.preprocess(list(column)) for column in columns]
    value = loss(features, None)
    if isinstance(value, dict):
        value = sum(value.values())
    value.backward()
    return value.detach(), encoder[0].model.model.language_model.layers[0].mlp.up_proj.weight.grad.clone()


LOSSES = {
    "ranking": losses.MultipleNegativesRankingLoss,
    "cached ranking": lambda encoder: losses.CachedMultipleNegativesRankingLoss(encoder, mini_batch_size=2),
    "gist": lambda encoder: losses.GISTEmbedLoss(encoder, guide=encoder),
    "triplet": losses.TripletLoss,
    "matryoshka": lambda encoder: losses.MatryoshkaLoss(
        encoder, losses.MultipleNegativesRankingLoss(encoder), matryoshka_dims=[32, 16]
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_on_triplets_equal_those_without_joined_columns(encoder, name):
    columns = list(zip(*TRIPLETS, strict=True))
    loss = LOSSES[name](encoder)
    joined = loss_and_gradient(loss, encoder, columns)
    with merged_forward.column_merging_disabled():
        apart = loss_and_gradient(loss, encoder, columns)
    assert torch.allclose(joined[0], apart[0], atol=1e-5)
    assert torch.allclose(joined[1], apart[1], atol=1e-5)


def test_columns_of_pictures_and_texts_train_together(encoder):
    columns = [["a red bus", "two dogs"], [noise_image(0), noise_image(1)], [noise_image(2), "a sofa and more words"]]
    value, gradient = loss_and_gradient(losses.MultipleNegativesRankingLoss(encoder), encoder, columns)
    assert value.isfinite()
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize("output_value", ["token_embeddings"])
def test_token_embeddings_are_refused_with_what_exists(encoder, output_value):
    with pytest.raises((KeyError, ValueError), match="latent_states"):
        encoder.encode(["a red bus"], output_value=output_value)


@pytest.mark.slow
def test_the_page_runs_as_printed(tmp_path, monkeypatch, model_type):  # noqa: F811
    if model_type != "qwen2_vl":
        pytest.skip("the page trains the shipped checkpoint")
    page = (ROOT / "docs" / "sentence-transformers.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoints").symlink_to(ROOT / "checkpoints")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    scope: dict = {}
    for block in blocks:
        exec(compile(block, "docs/sentence-transformers.md", "exec"), scope)
    assert len(blocks) >= 5

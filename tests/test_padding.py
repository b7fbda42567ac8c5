"""A row's vector does not depend on where its padding stands; padding between its tokens is refused."""

import numpy as np
import pytest
import torch

from inputs import embed, mixed_inputs
from inputs import every_backbone as model_type  # noqa: F401 (the fixture of this module)


def padded(features, pad_id, left: int, right: int):
    """The same batch with more padding on both sides."""
    ids, mask = features["input_ids"], features["attention_mask"]
    pad = torch.nn.functional.pad
    return {
        **features,
        "input_ids": pad(ids, (left, right), value=pad_id),
        "attention_mask": pad(mask, (left, right), value=0),
    }


def on_the_right(features):
    """The same batch with every row's padding moved to its right."""
    ids, mask = features["input_ids"].clone(), features["attention_mask"].clone()
    for row, length in enumerate(mask.sum(-1).tolist()):
        ids[row], mask[row] = ids[row].roll(length), mask[row].roll(length)
    return {**features, "input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("move", [on_the_right, lambda features: padded(features, 0, 3, 5)], ids=["right", "both"])
def test_padding_on_any_side_changes_no_vector_and_no_gradient(model, processor, move):
    features = dict(processor.process_documents(mixed_inputs()[:12]))
    results = []
    for inputs in (features, move(features)):
        model.zero_grad()
        vectors = model(**inputs).embeddings
        vectors[:, 0].sum().backward()
        results.append((vectors.detach(), model.model.language_model.layers[0].mlp.up_proj.weight.grad.clone()))
    assert (results[0][0] - results[1][0]).abs().max() <= 1e-6
    assert torch.allclose(results[0][1], results[1][1], atol=1e-5)


def test_padding_inside_a_row_is_refused(model, processor):
    features = processor.process_documents(["a red bus", "two dogs"])
    features["attention_mask"][1, -3] = 0
    with pytest.raises(ValueError, match="padding between its tokens"):
        model(**features)


def test_a_row_of_padding_alone_is_refused(model, processor):
    features = processor.process_documents(["a red bus", "two dogs"])
    features["attention_mask"][1] = 0
    with pytest.raises(ValueError, match="no tokens at all"):
        model(**features)


def test_rows_of_any_width_may_be_joined(model, processor):
    """As sentence-transformers joins the columns of a triplet: each padded on the left, then together on the right."""
    columns = [["a red bus"], ["two dogs on a sofa and more words", "a bus"], ["a sofa in a park"]]
    batches = [processor.process_documents(texts) for texts in columns]
    width = max(batch["input_ids"].shape[1] for batch in batches)
    joined = {
        name: torch.cat([torch.nn.functional.pad(batch[name], (0, width - batch[name].shape[1])) for batch in batches])
        for name in ("input_ids", "attention_mask")
    }
    with torch.no_grad():
        together = model(**joined).embeddings
    expected = torch.cat([embed(model, processor, texts) for texts in columns])
    assert np.abs((together - expected).numpy()).max() <= 1e-6

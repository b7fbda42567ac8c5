"""Early exit: rows stop one by one, and every row's vector is the read-out where it stopped."""

import pytest
import torch

from inputs import every_backbone as model_type  # noqa: F401 (the fixture of this module)
from inputs import mixed_inputs
from plume import ExitHead, embed_early


def readouts(model, features, steps) -> torch.Tensor:
    with torch.no_grad():
        return model(**features, num_latent_steps=steps[-1], readout_steps=steps).readout_embeddings


def moved(model, features, steps) -> torch.Tensor:
    """1 - cosine of successive read-outs, ``(B, R - 1)``."""
    vectors = readouts(model, features, steps)
    return 1 - (vectors[:, 1:] * vectors[:, :-1]).sum(dim=-1)


@pytest.mark.parametrize("steps", [[0, 1, 2, 3, 4, 5, 6], [0, 2, 5], [1, 3, 6]], ids=str)
@pytest.mark.parametrize("fast", [False, True])
def test_a_row_s_vector_is_the_readout_where_it_stopped(model, processor, steps, fast):
    model.speed_up(fast)
    features = processor.process_documents(mixed_inputs()[:8])
    changes = moved(model, features, steps)
    threshold = changes[:, 0].quantile(0.5).item()  # half of the rows stop at the first chance
    found = embed_early(model, features, threshold, num_latent_steps=steps[-1], readout_steps=steps)
    still = torch.cat([changes < threshold, torch.ones(8, 1, dtype=torch.bool)], dim=1)
    places = torch.minimum(still.int().argmax(dim=1) + 1, torch.tensor(len(steps) - 1))
    assert found.steps.tolist() == [steps[place] for place in places.tolist()]
    assert len(set(found.steps.tolist())) > 1, "rows stop at different steps, or the test shows nothing"
    expected = readouts(model, features, steps)[torch.arange(8), places]
    assert (found.embeddings - expected).abs().max() <= 1e-5


def test_a_row_does_not_depend_on_its_batch(model, processor):
    inputs = mixed_inputs()[:6]
    together = processor.process_documents(inputs)
    threshold = moved(model, together, list(range(7)))[:, 0].quantile(0.5).item()
    found = embed_early(model, together, threshold, num_latent_steps=6)
    for row, item in enumerate(inputs):
        alone = embed_early(model, processor.process_documents([item]), threshold, num_latent_steps=6)
        assert alone.steps.item() == found.steps[row].item()
        assert (alone.embeddings[0] - found.embeddings[row]).abs().max() <= 1e-5


def test_rows_that_stopped_are_no_longer_computed(model, processor):
    sizes = []

    def watch(module, args, output) -> None:
        sizes.append(len(args[0]))

    features = processor.process_documents(mixed_inputs()[:8])
    threshold = moved(model, features, list(range(7)))[:, 0].quantile(0.5).item()
    handle = model.latent_transition.register_forward_hook(watch)
    found = embed_early(model, features, threshold, num_latent_steps=6)
    handle.remove()
    assert sum(sizes) == found.steps.sum().item()
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < sizes[0]


def test_a_tiny_threshold_takes_all_steps(model, processor):
    features = processor.process_queries(mixed_inputs()[:3])
    found = embed_early(model, features, 1e-12)
    with torch.no_grad():
        whole = model(**features)
    assert found.steps.tolist() == [3, 3, 3]
    assert (found.embeddings - whole.embeddings).abs().max() <= 1e-5


def test_k_follows_the_task(model, processor):
    model.config.num_latent_steps_document = 0
    try:
        features = processor.process_documents(["a bus"])
        assert embed_early(model, features, 1e-12, task="document").steps.tolist() == [0]
        assert embed_early(model, features, 1e-12, task="query").steps.tolist() == [3]
    finally:
        model.config.num_latent_steps_document = None


@pytest.mark.parametrize("threshold", [0, 1, -0.1, 1.5, float("nan")])
def test_a_threshold_outside_0_and_1_is_refused(model, processor, threshold):
    with pytest.raises(ValueError, match="must be between 0 and 1"):
        embed_early(model, processor.process_documents(["a bus"]), threshold)


def test_training_mode_is_refused(model, processor):
    with pytest.raises(ValueError, match="training mode"):
        embed_early(model.train(), processor.process_documents(["a bus"]), 0.1)


def test_a_head_decides_from_one_readout_and_rows_stop_where_it_says(model, processor):
    features, steps = processor.process_documents(mixed_inputs()[:12]), [0, 2, 4, 6]
    found = readouts(model, features, steps)
    head = ExitHead.fit(dict(zip(steps, found.unbind(dim=1), strict=True)), moved=moved_by_half(found))
    moving = torch.stack([head.moving(found[:, place], step) for place, step in enumerate(steps[:-1])], dim=1)
    threshold = moving[:, 0].quantile(0.5).item()
    settled = embed_early(model, features, threshold, num_latent_steps=6, readout_steps=steps, exit_head=head)
    still = torch.cat([moving < threshold, torch.ones(12, 1, dtype=torch.bool)], dim=1)
    places = still.int().argmax(dim=1)
    assert settled.steps.tolist() == [steps[place] for place in places.tolist()]
    assert len(set(settled.steps.tolist())) > 1
    assert (settled.embeddings - found[torch.arange(12), places]).abs().max() <= 1e-5


def moved_by_half(found) -> float:
    return (1 - (found[:, 0] * found[:, -1]).sum(dim=-1)).quantile(0.5).item()


def test_a_head_learns_what_tells_moving_readouts_from_settled_ones():
    """The first dimension says it; the others are noise."""
    generator = torch.Generator().manual_seed(0)
    last = torch.nn.functional.normalize(torch.randn(400, 8, generator=generator), dim=-1)
    moves = torch.arange(400) % 2 == 0
    early = torch.nn.functional.normalize(torch.randn(400, 8, generator=generator), dim=-1)
    early[moves, 0], early[~moves] = -2.0, last[~moves]
    early[~moves, 0] = 2.0
    early = torch.nn.functional.normalize(early, dim=-1)
    last[~moves] = early[~moves]
    head = ExitHead.fit({0: early, 4: last})
    assert ((head.moving(early, 0) > 0.5) == moves).float().mean() >= 0.99
    with pytest.raises(ValueError, match=r"fitted at the steps \[0\], not at 2"):
        head.moving(early, 2)

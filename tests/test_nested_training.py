"""Training for every K and width: one exact step, whatever is read out, and what the stages read."""

from pathlib import Path

import pytest
import torch
from corpus import make_trainer, write_corpus
from test_training import difference, gradients, prepare

from plume.hub.random_checkpoint import save_random_plume
from plume.training.config import PlumeTrainingConfig
from plume.training.curriculum import Curriculum

NESTED = {
    "readout_steps": [0, 1, 2, 4], "readout_weights": [1.0, 0.5, 2.0, 1.0], "latent_view_weight": 0.5,
    "matryoshka_dims": [8, 16], "matryoshka_weights": [1.0, 0.5], "temperature": 0.05, "balance_weight": 10.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder, rows=24, negatives=1)
    save_random_plume(folder / "model", num_latent_steps=4, max_latent_steps=8)
    return folder


@pytest.mark.parametrize("stage", [0, 2, 4])
@pytest.mark.parametrize("chunk_size", [2, 7])
def test_chunked_gradients_of_all_readouts_equal_the_whole_step_s(corpus, tmp_path, stage, chunk_size):
    """6 pairs with a hard negative each and a duplicated target, in 18 rows."""
    trainer = make_trainer(corpus, tmp_path, expert_dropout=0.0, **NESTED)
    batch = prepare(trainer, stage)
    whole_loss = trainer.training_step(trainer.model, batch)
    whole = gradients(trainer.model)
    trainer.args.chunk_size = chunk_size
    chunked_loss = trainer.training_step(trainer.model, batch)
    assert chunked_loss.item() == pytest.approx(whole_loss.item(), rel=1e-5)
    assert difference(whole, gradients(trainer.model)) <= 1e-5
    for name, (in_one, in_chunks) in trainer._metrics["train"].items():
        assert in_one == pytest.approx(in_chunks, rel=1e-4, abs=1e-6), name


def test_a_step_has_the_gradients_of_the_summed_objective(corpus, tmp_path):
    """Against one plain graph, in which every read-out is a call of its own."""
    trainer = make_trainer(corpus, tmp_path, expert_dropout=0.0, **NESTED)
    batch = prepare(trainer, 2)
    trainer.model.train()
    rows = trainer._rewrite(batch)
    assert rows.inputs["readout_steps"] == [0, 1, 2]
    plain = {name: value for name, value in rows.inputs.items() if name != "readout_steps"}
    output = trainer.model(**plain)
    bare = {name: value for name, value in plain.items() if not name.startswith("suffix")}
    readouts = [trainer.model(**{**bare, "num_latent_steps": k}).embeddings for k in (0, 1, 2)]
    output.readout_embeddings = torch.stack(readouts, dim=1)
    pool, _ = trainer._pool_loss(trainer.represent(output), batch)
    (pool + trainer._own_loss(output, rows, batch)[0]).backward()
    summed = gradients(trainer.model)
    trainer.training_step(trainer.model, batch)
    stepped = gradients(trainer.model)
    assert difference(summed, {name: stepped[name] for name in summed}) <= 1e-5


def config(tmp_path, **options) -> PlumeTrainingConfig:
    return PlumeTrainingConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none", **options)


def test_every_stage_reads_what_it_has_steps_for(tmp_path):
    args = config(tmp_path, readout_steps=[0, 4, 8], readout_weights=[1.0, 2.0, 3.0], latent_view_weight=0.5)
    assert [args.readouts(stage) for stage in Curriculum(8).stages] == [
        {0: 1.5},
        {0: 1.0, 2: 0.5},
        {0: 1.0, 4: 2.5},
        {0: 1.0, 4: 2.0, 6: 0.5},
        {0: 1.0, 4: 2.0, 8: 3.0},
    ]
    assert [config(tmp_path).readouts(stage) for stage in Curriculum(8).stages] == [{}] * 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"readout_weights": [1.0]}, "readout_weights has 1 entries, readout_steps has 0"),
        ({"matryoshka_dims": [8], "matryoshka_weights": []}, "matryoshka_weights has 0 entries, matryoshka_dims has 1"),
        ({"readout_steps": [1], "readout_weights": [-1.0]}, "must be at least 0"),
        ({"latent_view_weight": -0.5}, "must be at least 0"),
    ],
)
def test_coefficients_that_do_not_fit_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        config(tmp_path, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *[({"readout_steps": steps}, "from 0 to num_latent_steps=4") for steps in ([], [2, 1], [1, 1], [5], [-1])],
        *[({"matryoshka_dims": dims}, "from 1 to 32, the width") for dims in ([], [16, 8], [0], [64])],
    ],
)
def test_readouts_and_prefixes_that_the_model_cannot_give_are_refused(corpus, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(corpus, tmp_path, **options)

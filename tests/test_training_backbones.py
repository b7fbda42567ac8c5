"""Training over every backbone: exact gradients in chunks, and a short run that learns and ends in a usable checkpoint."""

import numpy as np
import pytest
import torch
from corpus import make_trainer, write_corpus
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoProcessor

from inputs import embed, noise_image
from inputs import every_backbone as model_type
from plume.hub.random_checkpoint import save_random_plume

pytest.importorskip("trl", reason="training needs the extra `train`")

from plume.training.collator import rewrite, split_rows

__all__ = ["model_type"]


@pytest.fixture(scope="module")
def corpus(model_type, tmp_path_factory):
    """Folder with 48 pairs, media, and a tiny model of the backbone."""
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder, rows=48, negatives=1)
    save_random_plume(folder / "model", model_type=model_type, num_latent_steps=2, max_latent_steps=4)
    return folder


def gradients(model) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def test_chunked_gradients_equal_the_whole_step_s(corpus, tmp_path):
    """Pictures, clips and texts in chunks of unequal mixture; in the middle of the curriculum."""
    trainer = make_trainer(corpus, tmp_path, expert_dropout=0.0)
    trainer.create_optimizer_and_scheduler(10)
    trainer.model_wrapped, trainer.current_gradient_accumulation_steps = trainer.model, 1
    trainer.stage = lambda: trainer.curriculum.stages[2]
    batch = trainer.data_collator([trainer.train_dataset[index] for index in range(6)])
    whole_loss = trainer.training_step(trainer.model, batch)
    whole = gradients(trainer.model)
    trainer.args.chunk_size = 4
    chunked_loss = trainer.training_step(trainer.model, batch)
    assert chunked_loss.item() == pytest.approx(whole_loss.item(), rel=1e-5)
    chunked = gradients(trainer.model)
    scale = max(gradient.abs().max().item() for gradient in whole.values())
    assert whole.keys() == chunked.keys()
    assert max((whole[name] - chunked[name]).abs().max().item() for name in whole) / scale <= 1e-5


def test_a_run_over_three_stages_learns_and_its_checkpoint_opens_everywhere(corpus, tmp_path):
    trainer = make_trainer(corpus, tmp_path, max_steps=24, stage_weights=[1, 1, 1], learning_rate=3e-3, num_negatives=0)
    trainer.train()
    for stage in range(3):
        losses = [
            entry["loss"] for entry in trainer.state.log_history if entry.get("stage") == stage and "loss" in entry
        ]
        assert len(losses) >= 6
        assert np.mean(losses[-3:]) < np.mean(losses[:3])
    trainer.save_model(str(tmp_path / "final"))
    items = ["a red bus", noise_image(0), {"image": noise_image(1), "text": "the total"}]
    processor = AutoProcessor.from_pretrained(tmp_path / "final")
    expected = embed(trainer.model.eval(), processor, items)
    again = AutoModel.from_pretrained(tmp_path / "final").eval()
    assert type(again) is type(trainer.model)
    assert (embed(again, processor, items) - expected).abs().max() <= 1e-6
    vectors = SentenceTransformer(str(tmp_path / "final"), device="cpu").encode(items, normalize_embeddings=True)
    assert np.abs(vectors - expected.numpy()).max() <= 1e-5


def test_chunks_keep_the_times_of_their_clips(corpus, tmp_path, model_type):
    """Qwen2.5-VL places frames by seconds: a chunk without them would fall back to one second, silently."""
    trainer = make_trainer(corpus, tmp_path)
    batch = trainer.data_collator([trainer.train_dataset[index] for index in range(6)])
    times = "second_per_grid_ts"
    assert (times in batch["prefix"]) == (model_type == "qwen2_5_vl")
    count = len(batch["prefix"]["video_grid_thw"])
    seconds = batch["prefix"][times] = torch.arange(1.0, count + 1)
    rows = rewrite(batch, trainer.curriculum.stages[0], trainer.model.config.suffix_token_ids)
    chunks = split_rows(rows, [4] * (len(rows.places) // 4) + [len(rows.places) % 4])
    assert torch.equal(torch.cat([chunk.inputs[times] for chunk in chunks if times in chunk.inputs]), seconds)
    assert all(
        len(chunk.inputs[times]) == len(chunk.inputs["video_grid_thw"]) for chunk in chunks if times in chunk.inputs
    )

"""One training step, whole and in chunks, under any launcher; rank 0 saves loss terms and gradients. Used by test_training.py."""

from pathlib import Path

import torch

from plume import PlumeForEmbedding, PlumeProcessor
from plume.training.config import PlumeTrainingConfig
from plume.training.data import load_rows
from plume.training.distributed import leave
from plume.training.trainer import PlumeTrainer

NESTED = {
    "readout_steps": [0, 1, 2], "readout_weights": [1.0, 0.5, 2.0], "latent_view_weight": 0.5,
    "matryoshka_dims": [8, 16], "temperature": 0.1,
}  # fmt: skip


def step(folder: Path, out: Path, world: int, chunk: int, name: str, options: dict) -> None:
    args = PlumeTrainingConfig(
        output_dir=str(out), media_root=str(folder / "media"), per_device_train_batch_size=8 // world,
        sub_batch_size=4, max_steps=1, stage_weights=[0, 1, 0], chunk_size=chunk or None, num_negatives=1, use_cpu=True, bf16=False,
        report_to="none", learning_rate=0.0, max_grad_norm=0.0, optim="sgd", save_strategy="no", disable_tqdm=True,
        **options,
    )  # fmt: skip
    assert args.world_size == world
    model = PlumeForEmbedding.from_pretrained(folder / "model", expert_dropout=0.0)
    trainer = PlumeTrainer(
        model=model,
        args=args,
        train_dataset=load_rows([str(folder / "pairs.jsonl")]),
        processing_class=PlumeProcessor.from_pretrained(folder / "model"),
    )
    gradients = {}

    class Keep(torch.optim.SGD):
        def step(self, closure=None):
            gradients.update({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})

    trainer.optimizer = Keep(model.parameters(), lr=0.0)
    trainer.predict(trainer.train_dataset.select(range(2)))  # what is evaluated first is trained in step all the same
    trainer.train()
    if trainer.is_world_process_zero():
        torch.save({"gradients": gradients, "log": trainer.state.log_history}, out / f"{name}-{world}-{chunk}.pt")


def main(folder: Path, out: Path, world: int) -> None:
    torch.set_num_threads(1)
    cases = {"step": {}, "nested": NESTED, "explicit": {"teacher": "explicit"}, "scores": {"teacher": "scores"}}
    for name, options in cases.items():
        for chunk in (0, 3):
            step(folder, out, world, chunk, name, options)
    leave()

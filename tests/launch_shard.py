"""One training step with parameters sharded by FSDP2, or whole; rank 0 saves the gradients. Used by test_training_ranks.py."""

from pathlib import Path

import torch
from corpus import make_trainer
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from plume.training.distributed import leave

CASES = [(0, None), (2, 3), (4, None), (4, 3)]  # stage and chunk size


def main(folder: Path, out: Path) -> None:
    torch.set_num_threads(1)
    options = {"expert_dropout": 0.0, "num_negatives": 1, "temperature": 0.2, "per_device_train_batch_size": 1}
    trainer = make_trainer(folder, out, **options)
    world, rank = trainer.args.world_size, trainer.args.process_index
    if world > 1:
        mesh = init_device_mesh("cpu", (world,))
        for module in (*trainer.model.model.visual.blocks, *trainer.model.model.language_model.layers, trainer.model):
            fully_shard(module, mesh=mesh)
    trainer.model_wrapped = trainer.model
    trainer.create_optimizer_and_scheduler(10)
    trainer.current_gradient_accumulation_steps = 1
    rows = list(trainer.train_dataset)
    share = len(rows) // world
    batch, gradients = trainer.data_collator(rows[rank * share : (rank + 1) * share]), []
    for stage, trainer.args.chunk_size in CASES:
        trainer.stage = lambda stage=stage: trainer.curriculum.stages[stage]
        trainer.training_step(trainer.model, batch)
        found = {name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None}
        gradients.append({name: g.full_tensor() if world > 1 else g for name, g in found.items()})
        trainer.model.zero_grad()
    if rank == 0:
        torch.save(gradients, out / f"shard-{world}.pt")
    leave()

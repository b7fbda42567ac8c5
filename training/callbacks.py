"""Callbacks of the trainer."""

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from plume.training.sampler import SubBatchSampler


class EpochCallback(TrainerCallback):
    """Tells the sampler the epoch, which a resumed and a distributed run would otherwise not reach."""

    def __init__(self, sampler: SubBatchSampler) -> None:
        self.sampler = sampler

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Choose the order of the epoch that begins."""
        self.sampler.set_epoch(int(state.epoch or 0))

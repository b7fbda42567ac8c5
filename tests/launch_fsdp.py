"""training/train.py with accelerate's FSDP2, on the CPU. Used by test_training_ranks.py.

accelerate 1.15 shards on GPUs only, and on a CPU takes DDP without a word. Here it is told that its ranks are GPUs';
what it and transformers then do to model, optimizer and checkpoints is what they do there.
"""

from typing import Any

import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

from plume.training.train import main

initialize = AcceleratorState.__init__


def as_on_gpus(self: AcceleratorState, *args: Any, **kwargs: Any) -> None:
    if PartialState._shared_state.get("distributed_type") == DistributedType.MULTI_CPU:
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    initialize(self, *args, **kwargs)


if __name__ == "__main__":
    torch.set_num_threads(1)
    AcceleratorState.__init__ = as_on_gpus
    main()

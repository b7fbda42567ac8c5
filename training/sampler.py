"""The order of training pairs: sub-batches of one dataset inside a mixed global batch."""

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler


class SubBatchSampler(Sampler[int]):
    """Indices such that consecutive runs of ``sub_batch_size`` come from one dataset.

    In-batch negatives of one dataset are hard, those of others keep a batch from collapsing onto one task. A
    ``sub_batch_size`` of the global batch makes homogeneous batches, 1 mixes fully. The tails that fill no run are
    dealt out together at the end, so every pair is seen once per epoch. The order depends on seed and epoch alone.

    Args:
        datasets: Dataset name of each pair.
        sub_batch_size: Pairs of one dataset in a row.
        seed: Seed of the order.
    """

    def __init__(self, datasets: Sequence[str], sub_batch_size: int, seed: int = 0) -> None:
        if sub_batch_size < 1:
            raise ValueError(f"sub_batch_size must be at least 1, got {sub_batch_size}.")
        self.sub_batch_size, self.seed, self.epoch = sub_batch_size, seed, 0
        self._length = len(datasets)
        self._groups: dict[str, list[int]] = defaultdict(list)
        for index, name in enumerate(datasets):
            self._groups[name].append(index)

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng((self.seed, self.epoch))
        runs, tail, size = [], [], self.sub_batch_size
        for name in sorted(self._groups):
            indices = rng.permutation(self._groups[name]).tolist()
            whole = len(indices) // size * size
            runs += [indices[start : start + size] for start in range(0, whole, size)]
            tail += indices[whole:]
        order = [index for run in rng.permutation(len(runs)) for index in runs[run]]
        return iter([*order, *(tail[place] for place in rng.permutation(len(tail)))])

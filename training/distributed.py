"""Gathering representations over ranks, with gradient."""

import torch
from torch import distributed
from torch.distributed.nn.functional import all_gather


def world_size() -> int:
    """Number of ranks, 1 outside distributed training."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def gather_rows(rows: torch.Tensor) -> torch.Tensor:
    """Rows of all ranks in rank order; every rank must hold the same number.

    The gradient that flows back is the sum over the ranks' losses. When every rank computes the same loss of the
    gathered rows, that is ``world_size`` times the gradient of one loss, and the averaging of DDP makes it exact.
    """
    return rows if world_size() == 1 else torch.cat(all_gather(rows.contiguous()))

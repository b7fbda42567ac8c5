"""What ranks share: representations, gathered with gradient, and the moment at which gradients are exchanged."""

import atexit
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch import distributed
from torch.distributed.fsdp import FSDPModule
from torch.distributed.nn.functional import all_gather
from torch.distributed.tensor import DTensor


def world_size() -> int:
    """Number of ranks, 1 outside distributed training."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def gather_rows(rows: torch.Tensor) -> torch.Tensor:
    """Rows of all ranks in rank order; every rank must hold the same number.

    The gradient that flows back is the sum over the ranks' losses. When every rank computes the same loss of the
    gathered rows, that is ``world_size`` times the gradient of one loss, and the averaging of DDP makes it exact.
    """
    return rows if world_size() == 1 else torch.cat(all_gather(rows.contiguous()))


def is_sharded(model: torch.nn.Module) -> bool:
    """Whether parameters are spread over the ranks, as by FSDP2: then all ranks must run the same modules."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def largest(number: int, device: torch.device) -> int:
    """The largest number of all ranks."""
    if world_size() == 1:
        return number
    shared = torch.tensor(number, device=device)
    distributed.all_reduce(shared, distributed.ReduceOp.MAX)
    return int(shared.item())


def leave() -> None:
    """End distributed training, and with it the process, on all ranks together; one rank alone goes on.

    A thread of gloo that frees a tensor while the interpreter is taken apart aborts the process (pytorch PR 179291;
    torch 2.13: 3 of 18 runs of two ranks that only reduced a tensor). Destroying the process group first is not enough
    where something else holds it, as the mesh of FSDP2 does. So the interpreter is not taken apart.
    """
    if world_size() > 1:
        distributed.barrier()
        distributed.destroy_process_group()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


@contextmanager
def own_class(model: torch.nn.Module) -> Iterator[None]:
    """A model under its own class: FSDP2 gives it another one, whose name and files must not get into a checkpoint."""
    sharded: Any = type(model)
    model.__class__ = next(kind for kind in sharded.__mro__ if not issubclass(kind, FSDPModule))
    try:
        yield
    finally:
        model.__class__ = sharded


def touch(model: torch.nn.Module) -> torch.Tensor:
    """Zero that depends on every trainable parameter: DDP waits for all of them, text-only batches included.

    Sharded parameters are waited for module by module, so there is nothing to touch.
    """
    if is_sharded(model):
        return torch.zeros(())
    return 0.0 * torch.stack([p.flatten()[:1].sum() for p in model.parameters() if p.requires_grad]).sum()


@contextmanager
def hold_sync(accelerator: Accelerator, model: torch.nn.Module) -> Iterator[None]:
    """Gradients stay on their rank, and DeepSpeed, which steps at every backward pass that syncs, takes no step."""
    state = accelerator.gradient_state
    synced = state.sync_gradients
    state._set_sync_gradients(False)
    try:
        with accelerator.no_sync(model):
            yield
    finally:
        state._set_sync_gradients(synced)

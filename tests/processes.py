"""Processes that start at once: forked from an interpreter that has imported the trainer and done nothing else."""

import multiprocessing
import os
from collections.abc import Callable, Mapping
from multiprocessing.process import BaseProcess

from inputs import free_port


def start(function: Callable, *arguments, **environment: str) -> BaseProcess:
    """Call a function that other processes can import by its name, such as the ``main`` of a command, or ``exec``.

    It has the environment variables of this process, and those that are given.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["plume.training.train"])
    process = context.Process(target=_call, args=({**os.environ, **environment}, function, arguments))
    process.start()
    return process


def _call(environment: Mapping[str, str], function: Callable, arguments: tuple) -> None:
    os.environ.update(environment)
    function(*arguments)


def run_on_two_ranks(function: Callable, *arguments) -> None:
    """Run a function on two ranks, as `accelerate` finds them after its launcher; a hang ends after minutes."""
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    ranks = [start(function, *arguments, **address, RANK=rank, LOCAL_RANK=rank) for rank in ("0", "1")]
    for rank in ranks:
        rank.join(180)
    codes = [rank.exitcode for rank in ranks]
    for rank in ranks:
        rank.kill()
    assert codes == [0, 0]

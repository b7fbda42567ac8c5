"""Start one of the apps as a person would, and wait until it answers."""

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil

from inputs import ROOT, free_port


def app_environment() -> dict[str, str]:
    return {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def run_app(*arguments, check=True, **options) -> subprocess.CompletedProcess:
    """``python -m plume.apps...`` in the checkout."""
    command = [sys.executable, "-m", *map(str, arguments)]
    done = subprocess.run(
        command, cwd=ROOT, env=app_environment(), capture_output=True, text=True, check=False, **options
    )
    assert not check or done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done


def kill_app_when(ready: Callable[[], bool], *arguments) -> None:
    """Start ``python -m plume.apps...`` and, as soon as ``ready`` says so, kill -9 it and its children at once.

    That is how a machine dies. The wait has no other bound than ten minutes: imports take their time on a busy machine.
    """
    command = [sys.executable, "-m", *map(str, arguments)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, cwd=ROOT, env=app_environment(), **quiet)
    deadline = time.monotonic() + 600
    while process.poll() is None and not ready() and time.monotonic() < deadline:
        time.sleep(0.005)
    assert process.poll() is None, f"it ended with {process.returncode} before it could be killed"
    was_ready = ready()
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    for child in children:
        try:
            child.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(children, timeout=60)  # a child in its last breath could still write
    assert process.wait() == -signal.SIGKILL, "it ended before it could be killed"
    assert was_ready, "it was not ready within ten minutes"


@contextmanager
def serving(*arguments, path: str) -> Iterator[tuple[str, int]]:
    """A server while the block runs: its address and its process id."""
    port = free_port()
    command = [sys.executable, "-m", *map(str, arguments), "--port", str(port)]
    process = subprocess.Popen(
        command, cwd=ROOT, env=app_environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(3000):
            assert process.poll() is None, process.stdout.read()[-3000:]
            try:
                urllib.request.urlopen(address + path, timeout=5).close()
                break
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.1)
        else:
            raise AssertionError("the server did not answer within five minutes")
        yield address, process.pid
    finally:
        process.kill()
        process.wait()
        process.stdout.close()

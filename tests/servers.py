"""Start a server of the examples as a person would, and wait until it answers."""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

from inputs import ROOT


def example_environment() -> dict[str, str]:
    return {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def run_example(*arguments, check=True, **options) -> subprocess.CompletedProcess:
    """``python -m examples...`` in the checkout."""
    command = [sys.executable, "-m", *map(str, arguments)]
    done = subprocess.run(
        command, cwd=ROOT, env=example_environment(), capture_output=True, text=True, check=False, **options
    )
    assert not check or done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done


@contextmanager
def serving(*arguments, path: str) -> Iterator[tuple[str, int]]:
    """A server while the block runs: its address and its process id."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", *map(str, arguments), "--port", str(port)]
    process = subprocess.Popen(
        command, cwd=ROOT, env=example_environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
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

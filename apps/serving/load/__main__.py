"""Put load on a server of its own and tell what it cost: python -m plume.apps.serving.load [--model CHECKPOINT].

1. **Start** a server, warm it up, note its memory.
2. **Load** it, one kind after the other, while another thread asks for its health ten times a second.
3. **Tell**, a row per kind: answers by status, memory (Linux), the worst health answer, and how long the next client
   that sends one text waits.
"""

import argparse
import base64
import io
import json
import random
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path

from PIL import Image

from plume.checkpoints import DEFAULT_MODEL

_MEGABYTE = 1024 * 1024
_HEAD = b'{"model": "plume", "input": ['
HOSTILE = {  # bodies that a parser would make many times larger
    "1,": _HEAD + b"1," * (2 * _MEGABYTE),
    '"a",': _HEAD + b'"a",' * _MEGABYTE,
    "{},": _HEAD + b"{}," * (4 * _MEGABYTE // 3),
    "[": _HEAD + b"[" * (4 * _MEGABYTE),
}


class Server:
    """A server while the script runs, and the answers that its health has given."""

    def __init__(self, model: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        command = [sys.executable, "-m", "plume.apps.serving", "--model", model, "--port", str(self.port)]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        self.waits: list[float] = []

    def ask(self, method: str, path: str, body: bytes | None = None) -> int:
        """The status of an answer."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=300)
        try:
            connection.request(method, path, body)
            answer = connection.getresponse()
            answer.read()
            return answer.status
        finally:
            connection.close()

    def embed(self, body: bytes) -> int:
        """The status of an embedding request; 0 if the connection was closed on it."""
        try:
            return self.ask("POST", "/v1/embeddings", body)
        except ConnectionError:
            return 0

    def wait_until_ready(self) -> None:
        """Wait for the model, and warm it up."""
        while self.process.poll() is None:
            try:
                self.ask("GET", "/health")
                break
            except ConnectionError:
                time.sleep(0.2)
        for _ in range(3):
            self.embed(mixed_request(random.Random(0)))

    @contextmanager
    def health_asked(self) -> Iterator[None]:
        """Ask for the health while the block runs, ten times a second."""
        done = threading.Event()
        self.waits = []

        def ask() -> None:
            while not done.wait(0.1):
                started = time.monotonic()
                self.ask("GET", "/health")
                self.waits.append(time.monotonic() - started)

        thread = threading.Thread(target=ask)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def megabytes(self, name: str) -> int:
        """Memory by its name in /proc: ``VmRSS`` now, ``VmHWM`` at most since :meth:`forget_peak`."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) // 1024
        raise ValueError(f"/proc tells no {name}, so memory cannot be measured. Run this on Linux.")

    def forget_peak(self) -> None:
        """Let the peak begin at what is used now."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")


def picture(rng: random.Random, width: int, height: int) -> str:
    """A picture of noise as a data URI."""
    file = io.BytesIO()
    Image.frombytes("RGB", (width, height), rng.randbytes(3 * width * height)).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def mixed_request(rng: random.Random) -> bytes:
    """One to four texts and pictures of all sizes."""
    inputs: list[object] = []
    for _ in range(rng.randint(1, 4)):
        text = "a red bus at a stop " * rng.randint(1, 40)
        sizes = [28, 140, 560]
        image = picture(rng, rng.choice(sizes), rng.choice(sizes))
        inputs.append(text if rng.random() < 0.5 else {"text": text, "image": image})
    return json.dumps({"model": "plume", "input": inputs}).encode()


def send_mixed(server: Server, count: int) -> Counter[int]:
    """Requests all at once; those that are sent away come again in a second or so."""
    answers: Counter[int] = Counter()

    def ask(body: bytes) -> None:
        while True:
            status = server.embed(body)
            answers[status] += 1
            if status != 429:
                return
            time.sleep(random.uniform(0.5, 1.5))

    bodies = [mixed_request(random.Random(seed)) for seed in range(count)]
    with ThreadPoolExecutor(count) as pool:
        list(pool.map(ask, bodies))
    return answers


def send_hostile(server: Server, times: int = 4) -> Counter[int]:
    """Bodies of 4 MiB that a parser would make many times larger, four at a time."""
    with ThreadPoolExecutor(4) as pool:
        return Counter(pool.map(server.embed, [body for body in HOSTILE.values() for _ in range(times)]))


def send_large(server: Server, count: int = 32) -> Counter[int]:
    """Bodies of 10 MiB that hold one picture each, all at once."""
    body = json.dumps({"model": "plume", "input": {"image": picture(random.Random(0), 1600, 1600)}}).encode()
    with ThreadPoolExecutor(count) as pool:
        return Counter(pool.map(server.embed, [body] * count))


def hang_up(server: Server, count: int = 100) -> Counter[int]:
    """Clients that send two pictures of a megapixel each and are gone."""
    image = picture(random.Random(0), 1000, 1000)
    body = json.dumps({"model": "plume", "input": [{"image": image}] * 2}).encode()
    head = f"POST /v1/embeddings HTTP/1.1\r\nHost: here\r\nContent-Length: {len(body)}\r\n\r\n".encode()

    def send_and_leave(_: int) -> None:
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(head + body)

    with ThreadPoolExecutor(20) as pool:
        list(pool.map(send_and_leave, range(count)))
    return Counter({499: count})


def tell(server: Server, name: str, load: Callable[[], Counter[int]]) -> str:
    """A row of the table."""
    server.forget_peak()
    started = time.monotonic()
    with server.health_asked():
        answers = load()
        ended = time.monotonic()
        status = server.embed(b'{"model": "plume", "input": "a bus"}')
        waited = time.monotonic() - ended
    shown = ", ".join(f"{count} x {code}" for code, count in sorted(answers.items()))
    memory = f"{server.megabytes('VmHWM')} / {server.megabytes('VmRSS')}"
    worst = max(server.waits, default=0.0)
    return f"| {name} | {shown} | {ended - started:.1f} | {memory} | {worst:.2f} | {waited:.1f} ({status}) |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m plume.apps.serving.load", description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=DEFAULT_MODEL, help="PLUME checkpoint: folder or Hub id")
    parser.add_argument("--requests", type=int, default=200, help="mixed requests at once")
    options = parser.parse_args()
    server = Server(options.model)
    try:
        server.wait_until_ready()
        print(f"idle: {server.megabytes('VmRSS')} MiB\n")
        print("| load | answers | seconds | MiB at the peak / after | worst health answer, s | next client, s |")
        print("|---|---|---|---|---|---|")
        print(tell(server, "mixed requests at once", lambda: send_mixed(server, options.requests)), flush=True)
        print(tell(server, "hostile bodies of 4 MiB", lambda: send_hostile(server)), flush=True)
        print(tell(server, "bodies of 10 MiB at once", lambda: send_large(server)), flush=True)
        print(tell(server, "clients that hang up", lambda: hang_up(server)), flush=True)
    finally:
        server.process.kill()
        server.process.wait()


if __name__ == "__main__":
    main()

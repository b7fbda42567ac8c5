"""The embedding server: OpenAI's client, the same vectors as `encode`, and everything that it must refuse."""

import asyncio
import base64
import errno
import io
import json
import os
import random
import socket
import struct
import sys
import threading
import time
import tracemalloc
import zlib
from contextlib import asynccontextmanager

import hypothesis
import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the extra `serving` is not installed: pip install '.[apps]'")
pytest.importorskip("prometheus_client", reason="the extra `serving` is not installed: pip install '.[apps]'")
httpx = pytest.importorskip("httpx", reason="the extra `apps` is not installed: pip install '.[apps]'")
openai = pytest.importorskip("openai", reason="the extra `apps` is not installed: pip install '.[apps]'")

from PIL import Image
from sentence_transformers import SentenceTransformer

from inputs import MEDIA, noise_image
from plume.apps.serving.app import Settings, build_app
from plume.apps.serving.batcher import Batcher, Job, QueueFullError, embed_batch
from plume.apps.shared.batches import pack
from plume.apps.shared.encoder import Encoder
from plume.apps.shared.limits import Limits
from servers import serving


def data_uri(image, kind="PNG") -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def png_that_claims(width: int, height: int) -> str:
    """A PNG of a hundred bytes whose header claims any size."""

    def block(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + block(b"IHDR", header) + block(b"IDAT", zlib.compress(b"0")) + block(b"IEND", b"")
    return "data:image/png;base64," + base64.b64encode(png).decode()


@pytest.fixture(scope="module")
def media_root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("allowed") / "media"
    folder.mkdir()
    noise_image(1).save(folder / "seen.png")
    noise_image(2).save(folder.parent / "secret.png")
    os.symlink(folder.parent / "secret.png", folder / "link.png")
    return folder


@pytest.fixture(scope="module")
def server(checkpoint, media_root):
    arguments = ["plume.apps.serving", "--model", checkpoint, "--media-root", media_root]
    with serving(*arguments, path="/health") as (address, pid):
        yield address, pid


@pytest.fixture
def client(server):
    return openai.OpenAI(base_url=server[0] + "/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def encoder(checkpoint) -> SentenceTransformer:
    return SentenceTransformer(str(checkpoint))


def post(server, body, **options):
    given = {"content": body} if isinstance(body, (bytes, str)) else {"json": body}
    return httpx.post(server[0] + "/v1/embeddings", **given, timeout=60, **options)


def vectors(response) -> np.ndarray:
    return np.array([row.embedding for row in response.data])


def test_the_official_client_gets_the_vectors_of_encode(client, encoder):
    texts = ["a red bus", "two dogs on a sofa", "bus.png"]
    pictures = [noise_image(1), noise_image(2, 112, 140)]
    items = [*texts, *({"image": data_uri(image)} for image in pictures)]
    items.append({"image": data_uri(pictures[0]), "text": "a bus"})
    response = client.embeddings.create(model="plume", input=items)  # base64 is what the client asks for
    direct = [*({"text": text} for text in texts), *pictures, {"image": pictures[0], "text": "a bus"}]
    assert np.abs(vectors(response) - encoder.encode(direct)).max() <= 1e-5
    numbers = client.embeddings.create(model="plume", input=items, encoding_format="float")
    assert np.abs(vectors(numbers) - vectors(response)).max() <= 1e-6
    assert [row.index for row in response.data] == list(range(len(items)))
    assert response.usage.prompt_tokens > len(items)
    assert client.models.list().data[0].id == "plume"


def test_a_chat_is_one_input(client, encoder):
    parts = [
        {"type": "image_url", "image_url": {"url": data_uri(noise_image(3))}},
        {"type": "text", "text": "at night"},
    ]
    body = {"model": "plume", "messages": [{"role": "user", "content": parts}]}
    response = client.post("/embeddings", body=body, cast_to=openai.types.CreateEmbeddingResponse)
    expected = encoder.encode([{"image": noise_image(3), "text": "at night"}])
    assert np.abs(np.array(response.data[0].embedding) - expected[0]).max() <= 1e-5


def test_role_steps_and_dimensions_are_honoured(client, encoder):
    def create(**more):
        dimensions = {"dimensions": more.pop("dimensions")} if "dimensions" in more else {}
        return vectors(
            client.embeddings.create(
                model="plume", input="a bus", encoding_format="float", extra_body=more, **dimensions
            )
        )

    assert np.abs(create(role="query") - encoder.encode_query(["a bus"])).max() <= 1e-5
    assert np.abs(create(num_latent_steps=1) - encoder.encode(["a bus"], num_latent_steps=1)).max() <= 1e-5
    short = encoder.encode(["a bus"])[:, :8]
    assert np.abs(create(dimensions=8) - short / np.linalg.norm(short)).max() <= 1e-5


@pytest.mark.parametrize("field", ["encoding_format", "dimensions", "user", "role", "num_latent_steps", "messages"])
def test_a_field_that_is_null_is_absent(server, field):
    """What clients send for options that nobody has set."""
    plain = post(server, {"model": "plume", "input": "a bus"}).json()
    answer = post(server, {"model": "plume", "input": "a bus", field: None})
    assert answer.status_code == 200, answer.text
    assert answer.json() == plain


@pytest.mark.parametrize("ids", [[1, 2, 3], [[1, 2], [3]], [[]] * 0 + [[17] * 9000]])
def test_token_ids_are_refused_with_the_setting_that_stops_them(server, ids):
    message = post(server, {"model": "plume", "input": ids}).json()["error"]["message"]
    assert "token ids" in message
    assert "check_embedding_ctx_length=False" in message


def clip_uri() -> str:
    return "data:video/mp4;base64," + base64.b64encode((MEDIA / "rolling_ball.mp4").read_bytes()).decode()


def test_a_clip_gets_the_vector_of_encode(server, encoder):
    part = {"type": "video_url", "video_url": {"url": clip_uri()}}
    item = post(server, {"model": "plume", "input": [{"video": clip_uri(), "text": "a ball"}, {"video": clip_uri()}]})
    chat = post(server, {"model": "plume", "messages": [{"role": "user", "content": [part]}]})
    expected = encoder.encode(
        [{"video": str(MEDIA / "rolling_ball.mp4"), "text": "a ball"}, {"video": str(MEDIA / "rolling_ball.mp4")}]
    )
    served = [row["embedding"] for row in item.json()["data"]] + [chat.json()["data"][0]["embedding"]]
    assert np.abs(np.array(served) - expected[[0, 1, 1]]).max() <= 1e-5


def test_the_limits_are_told(server):
    (model,) = httpx.get(server[0] + "/v1/models").json()["data"]
    assert (model["id"], model["dimensions"]) == ("plume", 32)
    limits = model["limits"]
    assert (limits["inputs"], limits["characters"], limits["picture_pixels"]) == (128, 8_000, 16_000_000)


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/models", "/health", "/metrics"])
def test_the_interface_is_as_its_document_says(server, path):
    """Requests drawn from the OpenAPI document, valid and not: answers of the documented kinds, and no fault of ours."""
    schemathesis = pytest.importorskip("schemathesis", reason="the extra `apps` is not installed")
    operations = schemathesis.openapi.from_url(server[0] + "/openapi.json")[path]
    # A valid request may still hold nothing to embed, such as a blank text.
    excluded = [schemathesis.checks.CHECKS.get_one("positive_data_acceptance")]
    statuses = set()

    def check(operation, mode) -> None:
        @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
        @hypothesis.settings(
            max_examples=30 if operation.method == "post" else 2,
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        def call(case):
            statuses.add(case.call_and_validate(excluded_checks=excluded).status_code)

        call()

    for operation in operations.values():
        check(operation, schemathesis.GenerationMode.POSITIVE)
        if operation.method == "post":
            check(operation, schemathesis.GenerationMode.NEGATIVE)
            body = {"model": "plume", "input": ["a bus", {"text": "a boat"}], "encoding_format": "base64"}
            served = operation.Case(body=body, media_type="application/json").call_and_validate(
                excluded_checks=excluded
            )
            statuses.add(served.status_code)
    assert statuses >= ({200, 400} if path == "/v1/embeddings" else {200})


def test_a_key_is_asked_for_before_the_body_is_read(small_encoder):
    async def scenario():
        async with in_process(small_encoder, api_key="secret") as client:
            body = {"model": "plume", "input": "a"}
            heads = [None, "secret", "Bearer wrong", "Bearer secr\u00e9t", "Bearer secret"]
            answers = [
                await client.post("/v1/embeddings", json=body, headers={"Authorization": head.encode()} if head else {})
                for head in heads
            ]
            unread = await client.post("/v1/embeddings", content=never())
            return answers, unread, (await client.get("/v1/models")), (await client.get("/health"))

    async def never():
        raise AssertionError("the body was read")
        yield

    answers, unread, models, health = asyncio.run(scenario())
    assert [answer.status_code for answer in answers] == [401, 401, 401, 401, 200]
    assert answers[0].json()["error"]["type"] == "authentication_error"
    assert (unread.status_code, models.status_code, health.status_code) == (401, 401, 200)


def test_a_file_below_the_allowed_folder_may_be_named(server, encoder):
    answer = post(server, {"model": "plume", "input": {"image": "file:seen.png"}})
    assert answer.status_code == 200
    assert np.abs(np.array(answer.json()["data"][0]["embedding"]) - encoder.encode([noise_image(1)])).max() <= 1e-5


def image(url: str) -> dict:
    return {"model": "plume", "input": {"image": url}}


def chat(urls: list[str]) -> dict:
    """A message per picture."""
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return {"model": "plume", "messages": [{"role": "user", "content": [part]} for part in parts]}


PLAYLIST = base64.b64encode(b"#EXTM3U\n#EXTINF:1,\nfile:///etc/hostname\n").decode()

REFUSED = {
    "malformed JSON": ('{"model": "plume", "input": "a', 400),
    "nesting without end": ("[" * 200_000, 400),
    "half a surrogate": (b'{"model": "plume", "input": "\\ud800"}', 400),
    "no object": ("[]", 400),
    "a number": ({"model": "plume", "input": 3}, 400),
    "token ids": ({"model": "plume", "input": [1, 2, 3]}, 400),
    "a boolean for a number": ({"model": "plume", "input": "a", "dimensions": True}, 400),
    "an unknown field": ({"model": "plume", "input": "a", "truncate": True}, 400),
    "an unknown model": ({"model": "other", "input": "a"}, 404),
    "no input": ({"model": "plume"}, 400),
    "two inputs": ({"model": "plume", "input": "a", "messages": []}, 400),
    "an empty list": ({"model": "plume", "input": []}, 400),
    "a blank text": ({"model": "plume", "input": ["a", " "]}, 400),
    "an empty chat": ({"model": "plume", "messages": []}, 400),
    "an empty message": ({"model": "plume", "messages": [{"role": "user", "content": []}]}, 400),
    "a bomb in many pictures": (chat([png_that_claims(4000, 4000)] * 20), 400),
    "too many messages": (chat([png_that_claims(64, 64)] * 33), 400),
    "an assistant": ({"model": "plume", "messages": [{"role": "assistant", "content": "a"}]}, 400),
    "too many inputs": ({"model": "plume", "input": ["a"] * 129}, 400),
    "too long a text": ({"model": "plume", "input": "a" * 8_001}, 400),
    "more tokens than fit": ({"model": "plume", "input": "\u0e01" * 8_000}, 400),
    "too many dimensions": ({"model": "plume", "input": "a", "dimensions": 4096}, 400),
    "too many steps": ({"model": "plume", "input": "a", "num_latent_steps": 9}, 400),
    "an oversized image": (image(png_that_claims(5000, 5000)), 400),
    "a decompression bomb": (image(png_that_claims(60_000, 60_000)), 400),
    "a picture cut off": (image(png_that_claims(64, 64)), 400),
    "a strip": (image(png_that_claims(64 * 300, 1)), 400),
    "no picture": (image("data:image/png;base64," + base64.b64encode(b"hello").decode()), 400),
    "a vector drawing": (image("data:image/svg+xml;base64," + base64.b64encode(b"<svg/>").decode()), 400),
    "no base64": (image("data:image/png;base64,%%%"), 400),
    "an empty picture": (image("data:image/png;base64,"), 400),
    "a picture as a clip": ({"model": "plume", "input": {"video": png_that_claims(64, 64)}}, 400),
    "no clip": ({"model": "plume", "input": {"video": "data:video/mp4;base64,aGVsbG8="}}, 400),
    "a playlist": ({"model": "plume", "input": {"video": "data:video/mp4;base64," + PLAYLIST}}, 400),
    "a clip's address": ({"model": "plume", "input": {"video": "http://127.0.0.1/a.mp4"}}, 400),
    "a million numbers": (b'{"model": "plume", "input": [' + b"1," * 500_000 + b"1]}", 400),
    "a million texts": (b'{"model": "plume", "input": [' + b'"a",' * 1_000_000 + b'"a"]}', 400),
    "a million messages": (b'{"model": "plume", "messages": [' + b"{}," * 1_000_000 + b"{}]}", 400),
    "a million fields": (b'{"model": "plume", ' + b'"a":1,' * 1_000_000 + b'"input": "a"}', 400),
    "a path": (image("/etc/passwd"), 400),
    "a path as a URL": (image("file:///etc/passwd"), 400),
    "a path that climbs out": (image("file:../secret.png"), 400),
    "a path that climbs out in code": (image("file:%2e%2e/secret.png"), 400),
    "a link that leads out": (image("file:link.png"), 400),
    "a path with a NUL": (image("file:seen.png\x00"), 400),
    "the folder itself": (image("file:"), 400),
    "a private address": (image("http://169.254.169.254/latest/meta-data"), 400),
    "too large a body": (b'{"model": "plume", "input": "' + b"a" * 17 * 1024 * 1024, 413),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(server, name):
    body, status = REFUSED[name]
    answer = post(server, body)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["message"]
    assert "Traceback" not in answer.text
    assert ("together" in error["message"]) == (name == "a bomb in many pictures")


def test_after_all_of_that_the_server_is_well(server):
    assert httpx.get(server[0] + "/health").json() == {"status": "ok", "waiting": 0}
    assert post(server, {"model": "plume", "input": "a bus"}).status_code == 200
    assert httpx.get(server[0] + "/nowhere").status_code == 404
    assert httpx.get(server[0] + "/v1/embeddings").status_code == 405
    shown = httpx.get(server[0] + "/metrics").text
    assert all(f'plume_requests_total{{status="{status}"}}' in shown for status in (200, 400, 413))


def test_no_address_is_ever_fetched(server):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.settimeout(1)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/picture.png"
        assert post(server, image(url)).status_code == 400
        message = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}
        assert post(server, {"model": "plume", "messages": [message]}).status_code == 400
        with pytest.raises(TimeoutError):
            listener.accept()


def mixed_request(seed: int) -> tuple[dict, list]:
    """A request of one to four inputs, texts and pictures of all sizes, and what to encode for it."""
    choice = random.Random(seed)
    inputs, direct = [], []
    for place in range(choice.randint(1, 4)):
        text = "a red bus at a stop " * choice.randint(1, 40) + str(place)
        picture = noise_image(1000 * seed + place, choice.choice([28, 84, 280]), choice.choice([28, 140, 560]))
        if choice.random() < 0.5:
            inputs.append(text)
            direct.append({"text": text})
        else:
            inputs.append({"image": data_uri(picture), "text": text})
            direct.append({"image": picture, "text": text})
    return {"model": "plume", "input": inputs}, direct


def peak_megabytes(pid: int) -> float:
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024


@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory of the server from /proc")
def test_two_hundred_at_once(server, encoder):
    """No error but 429, the vectors of `encode`, bounded memory, and fewer batches than requests."""
    requests = [mixed_request(seed) for seed in range(200)]
    before = peak_megabytes(server[1])
    statuses: list[int] = []

    async def ask(client, body):
        for _ in range(60):
            answer = await client.post("/v1/embeddings", json=body)
            statuses.append(answer.status_code)
            if answer.status_code != 429:
                return answer
            await asyncio.sleep(float(answer.headers["retry-after"]) * random.uniform(0.5, 1.5))
        raise AssertionError("refused for a minute")

    async def ask_all():
        limits = httpx.Limits(max_connections=200)
        async with httpx.AsyncClient(base_url=server[0], timeout=120, limits=limits) as client:
            return await asyncio.gather(*(ask(client, body) for body, _ in requests))

    answers = asyncio.run(ask_all())
    assert set(statuses) <= {200, 429}
    assert statuses.count(200) == 200
    served = np.array([row["embedding"] for answer in answers for row in answer.json()["data"]])
    direct = [item for _, items in requests for item in items]
    assert np.abs(served - encoder.encode(direct)).max() <= 1e-5
    assert peak_megabytes(server[1]) - before < 400
    metrics = httpx.get(server[0] + "/metrics").text
    batches = float(
        next(line for line in metrics.splitlines() if line.startswith("plume_batch_inputs_count")).split()[1]
    )
    assert batches < len(direct) / 2


@pytest.fixture(scope="module")
def small_encoder(checkpoint) -> Encoder:
    return Encoder(str(checkpoint), "cpu")


@asynccontextmanager
async def in_process(encoder, **settings):
    app = build_app(encoder, Settings(**settings))
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://here") as client,
    ):
        yield client


def test_a_full_queue_is_429_and_recovers(small_encoder, monkeypatch):
    gate, run = threading.Event(), small_encoder.run
    monkeypatch.setattr(small_encoder, "run", lambda *args: gate.wait(60) and run(*args))

    async def scenario():
        async with in_process(small_encoder, max_waiting=2, max_batch=1, linger=0) as client:

            def ask():
                return client.post("/v1/embeddings", json={"model": "plume", "input": "a"}, timeout=60)

            tasks = [asyncio.create_task(ask())]
            await asyncio.sleep(0.2)  # the first is being embedded and waits at the gate
            tasks += [asyncio.create_task(ask()) for _ in range(2)]  # these fill the queue
            await asyncio.sleep(0.2)
            refused = await ask()
            gate.set()
            return refused, [(await task).status_code for task in tasks], (await ask()).status_code

    refused, served, after = asyncio.run(scenario())
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    assert refused.json()["error"]["type"] == "rate_limit_error"
    assert served == [200, 200, 200]
    assert after == 200


def test_a_fault_of_ours_is_500_and_the_server_goes_on(small_encoder, monkeypatch):
    run, faults = small_encoder.run, [RuntimeError("out of memory")]
    monkeypatch.setattr(
        small_encoder, "run", lambda *args: run(*args) if not faults else (_ for _ in ()).throw(faults.pop())
    )

    async def scenario():
        async with in_process(small_encoder) as client:
            body = {"model": "plume", "input": "a"}
            answers = [await client.post("/v1/embeddings", json=body) for _ in range(2)]
            return answers, await client.get("/health"), await client.get("/metrics")

    (failed, served), health, metrics = asyncio.run(scenario())
    assert failed.status_code == 500
    assert "out of memory" not in failed.text
    assert 'plume_requests_total{status="500"} 1.0' in metrics.text
    assert served.status_code == 200
    assert health.json()["status"] == "ok"


def test_one_bad_input_spoils_only_its_own_request(small_encoder):
    async def scenario():
        async with in_process(small_encoder, linger=0.2) as client:
            bodies = [
                {"model": "plume", "input": "a"},
                image(png_that_claims(64, 64)),
                {"model": "plume", "input": "b"},
            ]
            return await asyncio.gather(*(client.post("/v1/embeddings", json=body) for body in bodies))

    assert [answer.status_code for answer in asyncio.run(scenario())] == [200, 400, 200]


def test_bodies_are_bounded_together_and_in_time(small_encoder, monkeypatch):
    async def slow():
        yield b"{"
        await asyncio.sleep(0.5)
        yield b"}"

    async def scenario():
        async with in_process(small_encoder, max_bodies=1000) as client:
            first = asyncio.create_task(client.post("/v1/embeddings", content=slow()))
            await asyncio.sleep(0.1)
            full = await client.post("/v1/embeddings", content=b"x" * 1000)
            await first
            free = await client.post("/v1/embeddings", content=json.dumps({"model": "plume", "input": "a"}))
            return full.status_code, free.status_code

    assert asyncio.run(scenario()) == (429, 200)

    async def too_slow():
        monkeypatch.setattr("plume.apps.serving.guard.BodyGuard.__init__.__defaults__", (0.1,))
        async with in_process(small_encoder) as client:
            return (await client.post("/v1/embeddings", content=slow())).status_code

    assert asyncio.run(too_slow()) == 408


AMPLIFIED = {
    "numbers": b'{"input": [' + b"1," * 2_000_000,
    "texts": b'{"input": [' + b'"a",' * 1_000_000,
    "whole numbers": b'{"model": "plume", "input": [' + b"1," * 500_000 + b"1]}",
    "whole texts": b'{"model": "plume", "input": [' + b'"a",' * 1_000_000 + b'"a"]}',
    "objects": b'{"input": [' + b"{}," * 1_300_000,
    "lists": b'{"input": ' + b"[" * 4_000_000,
    "quotes": b'{"input": "' + rb"\"" * 2_000_000,
    "backslashes": b'{"input": "' + rb"\\" * 2_000_000,
    "spaces": b'{"input": [' + b" " * 4_000_000,
    "names": b'"input":[' * 400_000,
    "one text": b'{"model": "plume", "input": "' + b"a," * 2_000_000 + b'"}',
    "faults": b'{"model": "plume", "input": [' + b"{}," * 4000 + b"{}]}",
    "fields": b'{"model": "plume", "input": "a"' + b"".join(b',"%d":1' % n for n in range(3000)) + b"}",
}


@pytest.mark.parametrize("name", AMPLIFIED)
def test_a_refused_body_costs_little(small_encoder, name):
    body = AMPLIFIED[name]

    async def scenario():
        async with in_process(small_encoder) as client:
            tracemalloc.start()
            started = time.process_time()
            answer = await client.post("/v1/embeddings", content=body)
            seconds, peak = time.process_time() - started, tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            return answer.status_code, seconds, peak

    status, seconds, peak = asyncio.run(scenario())
    assert status == 400
    assert peak < 5 * len(body) + 8_000_000
    assert seconds < 1


def test_large_bodies_leave_the_event_loop_free(small_encoder):
    """Sixteen bodies of 8 MiB at once: some are served, some sent away, and the health answers all the while."""
    body = json.dumps({"model": "plume", "input": [{"text": "a", "image": "data:image/png;base64," + "A" * 8_000_000}]})

    async def scenario():
        async with in_process(small_encoder, max_bodies=64 * 1024 * 1024) as client:
            tasks = [asyncio.create_task(client.post("/v1/embeddings", content=body.encode())) for _ in range(16)]
            waits = []
            while not all(task.done() for task in tasks):
                started = time.monotonic()
                assert (await client.get("/health")).status_code == 200
                waits.append(time.monotonic() - started)
                await asyncio.sleep(0.01)
            return {(await task).status_code for task in tasks}, max(waits)

    statuses, worst = asyncio.run(scenario())
    assert statuses == {400, 429}
    assert worst < 1


def test_a_body_that_is_sent_away_makes_room_for_others(small_encoder):
    """Three bodies arrive side by side and only one fits: were none let go of at once, all would be sent away."""

    async def arriving():
        for _ in range(10):
            yield b" " * 100
            await asyncio.sleep(0.01)
        yield b'{"model": "plume", "input": "a"}'

    async def scenario():
        async with in_process(small_encoder, max_bodies=1500) as client:
            return await asyncio.gather(*(client.post("/v1/embeddings", content=arriving()) for _ in range(3)))

    assert sorted(answer.status_code for answer in asyncio.run(scenario())) == [200, 429, 429]


async def hang_up(app, body: bytes, gone: asyncio.Event) -> list:
    """A request as the network gives it; returns what was sent before the client had gone."""
    scope = {"type": "http", "method": "POST", "path": "/v1/embeddings", "headers": [], "query_string": b""}
    messages, sent = [{"type": "http.request", "body": body, "more_body": False}], []

    async def receive():
        if messages:
            return messages.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    await app(scope, receive, send)
    return sent


def test_the_work_of_clients_that_are_gone_leaves_the_queue(small_encoder, monkeypatch):
    gate, run, embedded = threading.Event(), small_encoder.run, []
    monkeypatch.setattr(small_encoder, "run", lambda *args: gate.wait(60) and embedded.append(1) is None and run(*args))

    async def scenario():
        app = build_app(small_encoder, Settings(max_batch=1, linger=0))
        body = json.dumps({"model": "plume", "input": ["a bus", "a boat"]}).encode()
        async with app.router.lifespan_context(app):
            gone, stays = asyncio.Event(), asyncio.Event()
            leaving = [asyncio.create_task(hang_up(app, body, gone)) for _ in range(20)]
            await asyncio.sleep(0.5)
            staying = asyncio.create_task(hang_up(app, body, stays))
            await asyncio.sleep(0.2)
            gone.set()
            await asyncio.gather(*leaving)
            gate.set()
            return await staying

    sent = asyncio.run(scenario())
    assert sent[0]["status"] == 200
    assert len(embedded) == 3, "the one that was being embedded, and the two of the client that stayed"


def test_a_client_that_leaves_while_it_sends_is_not_worked_on(small_encoder, monkeypatch):
    monkeypatch.setattr("plume.apps.serving.app.check_values", lambda body: pytest.fail("half a body was read"))

    async def scenario():
        app = build_app(small_encoder)
        scope = {"type": "http", "method": "POST", "path": "/v1/embeddings", "headers": [], "query_string": b""}
        messages = [{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}]
        sent: list = []

        async def receive():
            return messages.pop(0)

        async def send(message):
            sent.append(message)

        await app(scope, receive, send)
        return sent

    assert asyncio.run(scenario()) == []


def test_a_full_disk_is_not_the_fault_of_the_client(small_encoder, monkeypatch):
    """A clip is written to the disk before it is decoded. The server says so, and goes on with what needs no disk."""

    def full(*args, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)

    async def scenario():
        async with in_process(small_encoder, linger=0.1) as client:
            bodies = [{"model": "plume", "input": {"video": clip_uri()}}, {"model": "plume", "input": "a bus"}]
            return await asyncio.gather(*(client.post("/v1/embeddings", json=body) for body in bodies))

    failed, served = asyncio.run(scenario())
    assert (failed.status_code, served.status_code) == (507, 200)
    assert "No space left on device" in failed.json()["error"]["message"]


@pytest.mark.parametrize(
    ("limit", "reason"),
    [({"max_frames": 3}, "frames"), ({"max_seconds": 0}, "to decode"), ({"max_pixels": 100}, "pixels")],
)
def test_a_clip_keeps_to_its_limits(small_encoder, limit, reason):
    async def scenario():
        async with in_process(small_encoder, clip_limits=Limits(**limit)) as client:
            return await client.post("/v1/embeddings", json={"model": "plume", "input": {"video": clip_uri()}})

    answer = asyncio.run(scenario())
    assert answer.status_code == 400
    assert reason in answer.json()["error"]["message"]


def test_requests_of_different_steps_are_not_mixed(small_encoder):
    """One batch has one K; what waits for another K keeps its place."""
    sizes: list[int] = []

    async def scenario():
        batcher = Batcher(small_encoder, linger=0.05, observe=sizes.append)
        batcher.start()
        ks = [1, 2, 1, 2, 1]
        embedded = await asyncio.gather(*(batcher.embed([{"text": "a bus"}], "document", k) for k in ks))
        await batcher.stop()
        return ks, embedded

    ks, embedded = asyncio.run(scenario())
    for k, (one,) in zip(ks, embedded, strict=True):
        assert np.abs(one.vector - small_encoder.encode([{"text": "a bus"}], "document", k)[0]).max() <= 1e-5
    assert sizes == [3, 2]


def test_more_than_the_queue_holds_is_refused_whole(small_encoder):
    async def scenario():
        batcher = Batcher(small_encoder, max_waiting=2)
        with pytest.raises(QueueFullError):
            await batcher.embed([{"text": "a"}] * 3, "document", 1)
        return len(batcher.waiting)

    assert asyncio.run(scenario()) == 0


def test_large_pictures_are_not_decoded_all_at_once(small_encoder):
    """Sixteen megapixels each shrink to one, but are decoded before: a batch of 32 would take 1.5 GB."""
    batcher = Batcher(small_encoder)
    assert batcher._weigh({"image": Image.new("1", (4000, 4000))}) == 4_000_000
    assert batcher._weigh({"image": Image.new("1", (56, 56))}) < 100_000


def test_pictures_do_not_stay_decoded(small_encoder):
    """A request with many pictures waits for its last batch; those of its first are closed by then."""
    file = io.BytesIO()
    noise_image(1).save(file, format="PNG")
    jobs = [Job({"image": Image.open(io.BytesIO(file.getvalue()))}, "document", 1, 1, None) for _ in range(2)]
    answers = embed_batch(small_encoder, jobs, Limits())
    assert np.abs(answers[0].vector - answers[1].vector).max() <= 1e-6
    for job in jobs:
        with pytest.raises(ValueError, match="closed"):
            job.content["image"].load()


def test_batches_keep_to_the_budget_and_lose_nothing():
    choice = random.Random(0)
    for _ in range(50):
        weights = [choice.randint(1, 100) for _ in range(choice.randint(1, 30))]
        batches = pack(weights, 120)
        assert sorted(index for batch in batches for index in batch) == list(range(len(weights)))
        assert all(len(batch) * max(weights[index] for index in batch) <= 120 for batch in batches)
    assert pack([500, 1], 120) == [[0], [1]]
    assert MEDIA.is_dir()

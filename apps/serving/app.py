"""The routes: ``POST /v1/embeddings``, ``GET /v1/models``, ``/health``, ``/metrics`` and ``/openapi.json``.

Refusals, all in OpenAI's shape: 400 for what cannot be embedded, 401 without the key, 404 for an unknown model or
route, 408 and 413 for bodies that are too slow or too large, 429 with ``Retry-After`` when too much is waiting, 507
when the server's disk has no room.

Bodies are parsed on threads of their own (the event loop answers meanwhile), and the work of a client that hangs up
leaves the queue.
"""

import asyncio
import base64
import time
from collections.abc import AsyncIterator, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import FastAPI, Request
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, PlainTextResponse, Response

from plume.apps.serving.batcher import Batcher, Embedded, QueueFullError, StorageError
from plume.apps.serving.guard import BodyGuard, KeyGuard, busy, error_response
from plume.apps.serving.interface import ANSWERS, REQUEST_BODY, describe_limits, openapi_document
from plume.apps.serving.schema import Bounds, EmbeddingRequest, check_values, read_inputs
from plume.apps.shared.batches import BatchEncoder
from plume.apps.shared.limits import Limits

_MEGABYTE = 1024 * 1024
_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)


@dataclass(frozen=True)
class Settings:
    """Bounds of the server.

    Attributes:
        name: Name of the model for clients.
        limits: Of one picture and one text.
        clip_limits: Of one clip; decoding it keeps all others waiting.
        max_waiting: Inputs that may wait.
        max_batch: Inputs per batch.
        linger: Seconds that an input waits for company.
        max_body: Bytes of one body.
        max_bodies: Bytes of all bodies at a time.
        media_root: Folder from which clients may name files, as ``file:NAME``. Defaults to none.
        api_key: What clients must send as ``Authorization: Bearer KEY``. Defaults to no key.
    """

    name: str = "plume"
    limits: Limits = Limits(max_bytes=8 * _MEGABYTE, max_pixels=16_000_000)
    clip_limits: Limits = Limits(max_bytes=8 * _MEGABYTE, max_pixels=2_100_000, max_frames=1_000, max_seconds=3)
    max_waiting: int = 256
    max_batch: int = 32
    linger: float = 0.005
    max_body: int = 16 * _MEGABYTE
    max_bodies: int = 64 * _MEGABYTE
    media_root: Path | None = None
    api_key: str | None = None


class RefusalError(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.response = error_response(status, message, code)


class Metrics:
    """What ``/metrics`` shows."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("plume_requests", "Answered requests", ["status"], registry=self.registry)
        self.inputs = Counter("plume_inputs", "Embedded inputs", registry=self.registry)
        self.seconds = Histogram("plume_request_seconds", "Time to the answer", registry=self.registry)
        self.batches = Histogram("plume_batch_inputs", "Inputs per batch", registry=self.registry, buckets=_BATCHES)
        self.waiting = Gauge("plume_waiting_inputs", "Inputs in the queue", registry=self.registry)

    def count(self, status: int) -> None:
        """One more answered request."""
        self.requests.labels(status).inc()


def build_app(encoder: BatchEncoder, settings: Settings | None = None) -> FastAPI:
    """The server.

    Args:
        encoder: What embeds.
        settings: Bounds.
    """
    settings = settings or Settings()
    metrics = Metrics()
    batcher = Batcher(
        encoder,
        settings.max_waiting,
        settings.max_batch,
        settings.linger,
        settings.clip_limits,
        metrics.batches.observe,
    )
    metrics.waiting.set_function(lambda: len(batcher.waiting))
    service = _Service(batcher, settings, metrics)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        batcher.start()
        yield
        await batcher.stop()
        service.reader.shutdown(wait=False)

    app = FastAPI(title="PLUME embeddings", lifespan=lifespan, openapi_url=None)
    app.add_middleware(BodyGuard, max_body=settings.max_body, max_bodies=settings.max_bodies, on_refusal=metrics.count)
    if settings.api_key is not None:  # added last, so it comes first
        app.add_middleware(KeyGuard, api_key=settings.api_key, on_refusal=metrics.count)

    _add_refusals(app, metrics)
    _add_routes(app, service, settings, metrics)
    return app


def _add_refusals(app: FastAPI, metrics: Metrics) -> None:
    """Errors of the framework in OpenAI's shape."""

    @app.exception_handler(HTTPException)
    async def refuse_route(request: Request, error: HTTPException) -> JSONResponse:
        headers = dict(error.headers or {})
        return error_response(
            error.status_code, f"{request.method} {request.url.path}: {error.detail}.", headers=headers
        )

    @app.exception_handler(Exception)
    async def confess(request: Request, error: Exception) -> JSONResponse:
        metrics.count(500)
        return error_response(500, "The server failed on this request; its log says why.")


def _add_routes(app: FastAPI, service: "_Service", settings: Settings, metrics: Metrics) -> None:
    batcher = service.batcher

    @app.post("/v1/embeddings", responses=ANSWERS, openapi_extra=REQUEST_BODY)
    async def embeddings(request: Request) -> Response:
        started = time.monotonic()
        response = await service.respond(request)
        metrics.count(response.status_code)
        metrics.seconds.observe(time.monotonic() - started)
        return response

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        model = {"id": settings.name, "object": "model", "created": 0, "owned_by": "plume"}
        limits = describe_limits(settings.limits, settings.clip_limits, settings.max_body)
        return {"object": "list", "data": [{**model, "dimensions": batcher.encoder.dimension, "limits": limits}]}

    @app.get("/health")
    async def health() -> Response:
        state = {"status": "ok" if batcher.alive else "dead", "waiting": len(batcher.waiting)}
        return JSONResponse(state, 200 if batcher.alive else 503)

    @app.get("/metrics", response_class=PlainTextResponse)
    async def show_metrics() -> Response:
        return PlainTextResponse(generate_latest(metrics.registry), media_type="text/plain; version=0.0.4")

    document = openapi_document(app, settings.name, settings.api_key is not None)

    @app.get("/openapi.json", include_in_schema=False)
    async def show_document() -> dict[str, Any]:
        return document


class _Service:
    """One request from its body to its answer."""

    def __init__(self, batcher: Batcher, settings: Settings, metrics: Metrics) -> None:
        self.batcher, self.settings, self.metrics = batcher, settings, metrics
        self.bounds = Bounds(settings.limits, settings.clip_limits, settings.media_root)
        # One at a time: parsing takes some times the memory of the body, for some milliseconds per megabyte.
        self.reader = ThreadPoolExecutor(1, thread_name_prefix="reader")

    async def respond(self, request: Request) -> Response:
        """The answer, or a refusal."""
        try:
            return await _while_connected(request, self._answer([chunk async for chunk in request.stream()]))
        except RefusalError as refusal:
            return refusal.response
        except QueueFullError:
            return busy()
        except StorageError as error:
            return error_response(507, str(error))

    async def _answer(self, body: list[bytes]) -> Response:
        config = self.batcher.encoder.config
        request, contents = await asyncio.get_running_loop().run_in_executor(self.reader, self._read, body)
        role = request.role or "document"
        try:
            steps = config.check_num_latent_steps(request.num_latent_steps, role)
            width = _check_dimensions(request.dimensions, self.batcher.encoder.dimension)
            if len(contents) > self.settings.max_waiting:
                raise ValueError(
                    f"The request has {len(contents)} inputs, more than the {self.settings.max_waiting} that may wait. "
                    "Split it."
                )
            embedded = await self.batcher.embed(contents, role, steps)
        except StorageError:
            raise
        except ValueError as error:
            raise RefusalError(400, str(error), "invalid_input") from error
        self.metrics.inputs.inc(len(embedded))
        return JSONResponse(_render(embedded, request, self.settings.name, width))

    def _read(self, body: list[bytes]) -> tuple[EmbeddingRequest, list[Any]]:
        """The request without its inputs, and its inputs for the processor; the body is released meanwhile."""
        whole = b"".join(body)
        body.clear()
        try:
            check_values(whole)
            request = EmbeddingRequest.model_validate_json(whole)
            del whole
            if request.model != self.settings.name:
                message = f"There is no model {request.model[:100]!r} here. Use {self.settings.name!r}."
                raise RefusalError(404, message, "model_not_found")
            contents = read_inputs(request, self.bounds)
        except ValidationError as error:
            raise RefusalError(400, _describe(error), "invalid_request") from error
        except ValueError as error:
            raise RefusalError(400, str(error), "invalid_input") from error
        return request.model_copy(update={"input": None, "messages": None}), contents


async def _while_connected(request: Request, work: Coroutine[Any, Any, Response]) -> Response:
    """The result of ``work``, which ends with its client: nobody would read the answer."""
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise RefusalError(499, "The client has hung up.")
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.wait((working, leaving))


def _check_dimensions(dimensions: int | None, width: int) -> int:
    if dimensions is not None and dimensions > width:
        raise ValueError(f"dimensions is {dimensions}, but this model's vectors have {width}. Ask for at most as many.")
    return dimensions or width


def _render(embedded: list[Embedded], request: EmbeddingRequest, name: str, width: int) -> dict[str, Any]:
    data = []
    for place, one in enumerate(embedded):
        vector = one.vector[:width]
        vector = (vector / np.linalg.norm(vector) if request.dimensions else vector).astype("<f4")
        encoded = (
            base64.b64encode(vector.tobytes()).decode() if request.encoding_format == "base64" else vector.tolist()
        )
        data.append({"object": "embedding", "index": place, "embedding": encoded})
    tokens = sum(one.tokens for one in embedded)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data, "model": name, "usage": usage}


def _describe(error: ValidationError) -> str:
    """The first few faults, without repeating what the client sent."""
    faults = [
        f"{'.'.join(map(str, fault['loc'])) or 'body'}: {fault['msg']}"
        for fault in error.errors(include_url=False, include_context=False, include_input=False)[:3]
    ]
    return "; ".join(faults)[:500]

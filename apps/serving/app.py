"""The routes: ``POST /v1/embeddings``, ``GET /v1/models``, ``GET /health``, ``GET /metrics``.

Refusals, all in OpenAI's shape: 400 for what cannot be embedded, 404 for an unknown model or route, 408 and 413 for
bodies that are too slow or too large, 429 with ``Retry-After`` when too much is waiting.
"""

import base64
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import FastAPI, Request
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from plume import PlumeConfig
from plume.apps.serving.batcher import Batcher, Embedded, QueueFullError
from plume.apps.serving.guard import BodyGuard, busy, error_response
from plume.apps.serving.schema import EmbeddingRequest, read_inputs
from plume.apps.shared.encoder import Encoder
from plume.apps.shared.limits import Limits

_MEGABYTE = 1024 * 1024
_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)


@dataclass(frozen=True)
class Settings:
    """Bounds of the server.

    Attributes:
        name: Name of the model for clients.
        limits: Of one picture and one text.
        max_inputs: Inputs per request.
        max_waiting: Inputs that may wait.
        max_batch: Inputs per batch.
        linger: Seconds that an input waits for company.
        max_body: Bytes of one body.
        max_bodies: Bytes of all bodies at a time.
        media_root: Folder from which clients may name files, as ``file:NAME``; none where omitted.
    """

    name: str = "plume"
    limits: Limits = Limits(max_bytes=8 * _MEGABYTE, max_pixels=16_000_000)
    max_inputs: int = 128
    max_waiting: int = 256
    max_batch: int = 32
    linger: float = 0.005
    max_body: int = 16 * _MEGABYTE
    max_bodies: int = 256 * _MEGABYTE
    media_root: Path | None = None


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


def build_app(encoder: Encoder, settings: Settings | None = None) -> FastAPI:
    """The server.

    Args:
        encoder: What embeds.
        settings: Bounds.
    """
    settings = settings or Settings()
    metrics = Metrics()
    batcher = Batcher(encoder, settings.max_waiting, settings.max_batch, settings.linger, metrics.batches.observe)
    metrics.waiting.set_function(lambda: len(batcher.waiting))

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        batcher.start()
        yield
        await batcher.stop()

    app = FastAPI(title="PLUME embeddings", lifespan=lifespan, openapi_url=None)
    app.add_middleware(BodyGuard, max_body=settings.max_body, max_bodies=settings.max_bodies, on_refusal=metrics.count)

    @app.exception_handler(HTTPException)
    async def refuse_route(request: Request, error: HTTPException) -> JSONResponse:
        return error_response(error.status_code, f"{request.method} {request.url.path}: {error.detail}.")

    @app.exception_handler(Exception)
    async def confess(request: Request, error: Exception) -> JSONResponse:
        metrics.count(500)
        return error_response(500, "The server failed on this request; its log says why.")

    @app.post("/v1/embeddings")
    async def embeddings(request: Request) -> Response:
        started = time.monotonic()
        try:
            response = await _answer(await request.body(), encoder.model.config, batcher, settings, metrics)
        except RefusalError as refusal:
            response = refusal.response
        except QueueFullError:
            response = busy()
        metrics.count(response.status_code)
        metrics.seconds.observe(time.monotonic() - started)
        return response

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [{"id": settings.name, "object": "model", "owned_by": "plume"}]}

    @app.get("/health")
    async def health() -> Response:
        state = {"status": "ok" if batcher.alive else "dead", "waiting": len(batcher.waiting)}
        return JSONResponse(state, 200 if batcher.alive else 503)

    @app.get("/metrics")
    async def show_metrics() -> Response:
        return Response(generate_latest(metrics.registry), media_type="text/plain; version=0.0.4")

    return app


async def _answer(
    body: bytes, config: PlumeConfig, batcher: Batcher, settings: Settings, metrics: Metrics
) -> JSONResponse:
    try:
        request = EmbeddingRequest.model_validate_json(body)
    except ValidationError as error:
        raise RefusalError(400, _describe(error), "invalid_request") from error
    if request.model != settings.name:
        raise RefusalError(
            404, f"There is no model {request.model[:100]!r} here. Use {settings.name!r}.", "model_not_found"
        )
    steps = config.num_latent_steps if request.num_latent_steps is None else request.num_latent_steps
    try:
        config.check_num_latent_steps(steps)
        width = _check_dimensions(request.dimensions, batcher.encoder.dimension)
        contents = await run_in_threadpool(read_inputs, request, settings.limits, settings.media_root)
        if len(contents) > min(settings.max_inputs, settings.max_waiting):
            raise ValueError(
                f"The request has {len(contents)} inputs, more than the {settings.max_inputs} allowed. Split it."
            )
        embedded = await batcher.embed(contents, request.role, steps)
    except ValueError as error:
        raise RefusalError(400, str(error), "invalid_input") from error
    metrics.inputs.inc(len(embedded))
    return JSONResponse(_render(embedded, request, settings.name, width))


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
    faults = [f"{'.'.join(map(str, fault['loc'])) or 'body'}: {fault['msg']}" for fault in error.errors()[:3]]
    return "; ".join(faults)[:500]

"""Bodies within bounds, before anything parses them: per request, and of all requests together."""

import asyncio
from collections.abc import Callable
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_DRAIN = 4  # so many times the limit is read and thrown away, so that the client hears the refusal


def error_response(
    status: int, message: str, code: str | None = None, headers: dict[str, str] | None = None
) -> JSONResponse:
    """An error in OpenAI's shape."""
    kind = {429: "rate_limit_error"}.get(status, "invalid_request_error" if status < 500 else "server_error")
    content = {"error": {"message": message, "type": kind, "param": None, "code": code}}
    return JSONResponse(content, status, headers=headers)


class BodyGuard:
    """Middleware that reads a body whole, or refuses it.

    Args:
        app: What comes next.
        max_body: Bytes of one body.
        max_bodies: Bytes of all bodies that are being read or worked on.
        on_refusal: Called with the status of every refusal.
        max_seconds: Time to send a body in.
    """

    def __init__(
        self,
        app: ASGIApp,
        max_body: int,
        max_bodies: int,
        on_refusal: Callable[[int], None],
        max_seconds: float = 30.0,
    ) -> None:
        self.app, self.max_body, self.max_bodies, self.max_seconds = app, max_body, max_bodies, max_seconds
        self.on_refusal = on_refusal
        self.held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http" or scope["method"] not in ("POST", "PUT", "PATCH"):
            await self.app(scope, receive, send)
            return
        body = bytearray()
        try:
            refusal = await self._read_in_time(receive, body)
            if refusal:
                self.on_refusal(refusal.status_code)
            await (refusal or self.app)(scope, _replay(bytes(body), receive), send)
        finally:
            self.held -= len(body)

    async def _read_in_time(self, receive: Receive, body: bytearray) -> JSONResponse | None:
        try:
            return await asyncio.wait_for(self._read(receive, body), self.max_seconds)
        except asyncio.TimeoutError:  # another class than TimeoutError in Python 3.10
            return error_response(408, "The body did not arrive in time.")

    async def _read(self, receive: Receive, body: bytearray) -> JSONResponse | None:
        refusal, dropped, more = None, 0, True
        while more and dropped <= _DRAIN * self.max_body:
            message = await receive()
            if message["type"] == "http.disconnect":
                break
            chunk, more = message.get("body", b""), message.get("more_body", False)
            if refusal is None:
                refusal = self._check(len(body), len(chunk))
            if refusal is None:
                body += chunk
                self.held += len(chunk)
            else:
                dropped += len(chunk)
        return refusal

    def _check(self, size: int, more: int) -> JSONResponse | None:
        if size + more > self.max_body:
            return error_response(413, f"The body has more than the {self.max_body} bytes allowed.", "body_too_large")
        if self.held + more > self.max_bodies:
            return busy()
        return None


def busy() -> JSONResponse:
    """The documented refusal of a server that has enough to do."""
    return error_response(429, "The server is busy. Try again in a second.", "server_busy", {"Retry-After": "1"})


def _replay(body: bytes, receive: Receive) -> Receive:
    given: list[dict[str, Any]] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return given.pop() if given else await receive()

    return replay

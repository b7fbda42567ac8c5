"""Who may ask, and bodies within bounds before anything parses them: per request, and of all requests together."""

import asyncio
import hmac
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_DRAIN = 4  # so many times the limit is read and thrown away, so that the client hears the refusal
_OPEN = ("/health",)  # routes that need no key


def error_response(
    status: int, message: str, code: str | None = None, headers: dict[str, str] | None = None
) -> JSONResponse:
    """An error in OpenAI's shape."""
    kinds = {401: "authentication_error", 429: "rate_limit_error"}
    kind = kinds.get(status, "invalid_request_error" if status < 500 else "server_error")
    content = {"error": {"message": message, "type": kind, "param": None, "code": code}}
    return JSONResponse(content, status, headers=headers)


def busy() -> JSONResponse:
    """The documented refusal of a server that has enough to do."""
    return error_response(429, "The server is busy. Try again in a second.", "server_busy", {"Retry-After": "1"})


class KeyGuard:
    """Middleware that refuses requests without the key, before their bodies are read.

    Args:
        app: What comes next.
        api_key: What clients send as ``Authorization: Bearer KEY``.
        on_refusal: Called with the status of every refusal.
    """

    def __init__(self, app: ASGIApp, api_key: str, on_refusal: Callable[[int], None]) -> None:
        self.app, self.expected, self.on_refusal = app, f"Bearer {api_key}".encode(), on_refusal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] == "http" and scope["path"] not in _OPEN:
            given = Headers(scope=scope).get("authorization", "").encode()
            if not hmac.compare_digest(given, self.expected):
                self.on_refusal(401)
                message = "The API key is missing or wrong. Send it as Authorization: Bearer KEY."
                refusal = error_response(401, message, "invalid_api_key", {"WWW-Authenticate": "Bearer"})
                await refusal(scope, receive, send)
                return
        await self.app(scope, receive, send)


class Body:
    """What has arrived of a body; it is handed on once and not kept."""

    def __init__(self) -> None:
        self.chunks: list[bytes] = []
        self.size = 0
        self.gone = False

    def take(self) -> bytes:
        """The whole of it."""
        whole = b"".join(self.chunks)
        self.chunks.clear()
        return whole


class BodyGuard:
    """Middleware that reads a body whole, or refuses it; of a client that hangs up meanwhile nothing is worked on.

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
        body = Body()
        try:
            refusal = await self._read_in_time(receive, body)
            if body.gone:
                return
            if refusal:
                self.on_refusal(refusal.status_code)
            await (refusal or self.app)(scope, _replay(body, receive), send)
        finally:
            self._release(body)

    def _release(self, body: Body) -> None:
        self.held -= body.size
        body.size = 0
        body.chunks.clear()

    async def _read_in_time(self, receive: Receive, body: Body) -> JSONResponse | None:
        try:
            return await asyncio.wait_for(self._read(receive, body), self.max_seconds)
        except asyncio.TimeoutError:  # another class than TimeoutError in Python 3.10
            return error_response(408, "The body did not arrive in time.")

    async def _read(self, receive: Receive, body: Body) -> JSONResponse | None:
        refusal, dropped, more = None, 0, True
        while more and dropped <= _DRAIN * self.max_body:
            message = await receive()
            if message["type"] == "http.disconnect":
                body.gone = True
                break
            chunk, more = message.get("body", b""), message.get("more_body", False)
            refusal = refusal or self._check(body.size, len(chunk))
            if refusal is None:
                body.chunks.append(chunk)
                body.size += len(chunk)
                self.held += len(chunk)
            else:
                self._release(body)  # at once, so that others that arrive now find room
                dropped += len(chunk)
        return refusal

    def _check(self, size: int, more: int) -> JSONResponse | None:
        if size + more > self.max_body:
            return error_response(413, f"The body has more than the {self.max_body} bytes allowed.", "body_too_large")
        if self.held + more > self.max_bodies:
            return busy()
        return None


def _replay(body: Body, receive: Receive) -> Receive:
    """The body at once, then what the connection says."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body.take(), "more_body": False}

    return replay

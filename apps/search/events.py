"""What the page's events may name: files that were uploaded to it, and nothing else.

Gradio checks this for apps that it launches itself, but not for an app that is mounted in another (6.31): there an
event that says `{"path": "/some/picture.png"}` is believed. So it is checked here, for every component at once,
before Gradio sees the event. Addresses are refused with the paths. Uploads leave room on the disk.
"""

import json
import shutil
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from gradio.utils import get_upload_folder

_UPLOAD = "/gradio_api/upload"  # a form, whose size Gradio bounds
_MAX_EVENT = 1024 * 1024  # bytes
_ROOM = 256 * 1024 * 1024  # bytes that stay free on the disk of the uploads
_ABANDONED = 600  # seconds after which what a client did not send to its end is removed


def guard_events(app: FastAPI, offered: Sequence[Path] = ()) -> None:
    """Refuse events that name files other than uploads.

    Args:
        app: The outer application.
        offered: Files that the page itself offers.
    """
    allowed = {path.resolve() for path in offered}

    @app.middleware("http")
    async def check(request: Request, go_on: Callable[[Request], Awaitable[Response]]) -> Response:
        if request.method in ("GET", "HEAD"):
            return await go_on(request)
        if request.url.path == _UPLOAD:
            if not make_room(Path(get_upload_folder())):
                return _refuse(507, "The disk of the server has no room for an upload. Try again later.")
            return await go_on(request)
        length = request.headers.get("content-length", "")
        if not length.isdecimal() or int(length) > _MAX_EVENT:
            return _refuse(413, f"An event has more than {_MAX_EVENT} bytes, or does not say how many.")
        try:
            named = list(_paths(json.loads(await request.body() or b"null")))
            uploads = Path(get_upload_folder()).resolve()
            known = all(_is_known(Path(name).resolve(), uploads, allowed) for name in named)
        except (ValueError, TypeError, OSError, RecursionError):
            return _refuse(400, "The event is malformed.")
        return await go_on(request) if known else _refuse(403, "The event names a file that was not uploaded.")


def make_room(uploads: Path) -> bool:
    """Remove what lies half sent in the folder of the uploads; whether there is room for another one.

    Gradio (6.31) leaves such files behind when a client hangs up, and when the disk is full.
    """
    uploads.mkdir(parents=True, exist_ok=True)
    for path in uploads.glob("tmp*"):
        with suppress(FileNotFoundError):  # it was sent to its end
            if path.is_file() and time.time() - path.stat().st_mtime > _ABANDONED:
                path.unlink()
    return shutil.disk_usage(uploads).free >= _ROOM


def _is_known(path: Path, uploads: Path, allowed: set[Path]) -> bool:
    return path in allowed or path.is_relative_to(uploads)


def _paths(value: Any) -> Iterator[Any]:
    """What is under ``path`` at any depth."""
    if isinstance(value, dict):
        if value.get("path") is not None:
            yield value["path"]
        value = list(value.values())
    if isinstance(value, list):
        for one in value:
            yield from _paths(one)


def _refuse(status: int, message: str) -> JSONResponse:
    return JSONResponse({"detail": message}, status)

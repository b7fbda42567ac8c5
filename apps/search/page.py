"""The page: one line to type or drop a query, ranked cards, and how the model thought about it.

Trust ends at the browser:

1. A dropped file is bounded in bytes by the server while it is uploaded, then in pixels, frames and seconds.
2. An event may name what was uploaded, no other path and no address (:mod:`plume.apps.search.events`).
3. Files are asked for by the id of an indexed document, never by a path; a file that has changed since is not served.
4. Whatever comes from outside is escaped: results in :mod:`plume.apps.search.drawing`, errors in ``answer``.
"""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI, HTTPException
from fastapi.responses import FileResponse, Response

from plume.apps.search.drawing import draw_hits, draw_thinking
from plume.apps.search.events import guard_events
from plume.apps.search.searching import MAX_RESULTS, Search
from plume.apps.search.store import Index
from plume.apps.shared.documents import File
from plume.arguments import KINDS

_MAX_WAITING = 32
_MAX_ID = 1000  # characters; ids of tables can be anything
_CLEAN_UP = (600, 3600)  # every ten minutes, uploads that are older than an hour are removed
_STYLE = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
# What a browser may do with an original: show it, run nothing.
_HEADERS = {"X-Content-Type-Options": "nosniff", "Content-Security-Policy": "default-src 'none'"}


def build_app(search: Search, questions: Sequence[tuple[str, Path]] = ()) -> FastAPI:
    """The page and the two routes that it takes pictures and files from.

    Args:
        search: What answers.
        questions: Texts and pictures that are offered for a click.
    """
    app = FastAPI(openapi_url=None)
    guard_events(app, [picture for _, picture in questions])

    @app.get("/preview/{id:path}")
    def show_preview(id: str) -> Response:
        return Response(_row(search.index, id)["preview"], media_type="image/webp", headers=_HEADERS)

    @app.get("/original/{id:path}")
    def show_original(id: str) -> Response:
        row = _row(search.index, id)
        if not row["stamp"]:
            raise HTTPException(404, "This document came from a table, so there is no file to show.")
        file = File(row["root"], row["path"], row["kind"], row["stamp"])
        location = file.location
        if not location.is_file() or not location.resolve().is_relative_to(row["root"]):
            raise HTTPException(404, "The file is gone. Index its folder again.")
        if file.current_stamp() != file.stamp:
            raise HTTPException(404, "The file has changed since it was indexed. Index its folder again.")
        kind = "text/plain; charset=utf-8" if row["kind"] == "text" else None
        # The sandbox would keep browsers from showing PDFs.
        return FileResponse(location, media_type=kind, headers=_HEADERS if row["kind"] != "page" else None)

    return gr.mount_gradio_app(
        app,
        _build_blocks(search, questions),
        path="/",
        max_file_size=search.limits.max_bytes,
        theme=gr.themes.Base(font=["ui-sans-serif", "system-ui", "sans-serif"], font_mono=["monospace"]),
        css=_STYLE,
        footer_links=[],
        show_error=True,
        enable_monitoring=False,
        ssr_mode=False,
    )


def _row(index: Index, id: str) -> dict[str, Any]:
    try:
        row = index.get(id) if len(id) <= _MAX_ID else None
    except ValueError as error:
        raise HTTPException(503, "The index cannot be read.") from error
    if row is None:
        raise HTTPException(404, "No such document in the index.")
    return row


def _build_blocks(search: Search, questions: Sequence[tuple[str, Path]]) -> gr.Blocks:
    config = search.encoder.config

    def answer(query: dict[str, Any], k: float, limit: float, kinds: list[str]) -> tuple[str, str]:
        files = [Path(file) for file in query.get("files") or []]
        try:
            found = search.run(query.get("text") or "", files[0] if files else None, int(k), int(limit), kinds)
        except ValueError as error:
            raise gr.Error(escape(str(error)), duration=8) from error  # Gradio shows it as HTML
        states, probs = found.output.latent_states, found.output.router_probs
        assert states is not None
        assert probs is not None
        return draw_hits(found.hits), draw_thinking(states[0], probs[0], config.num_active_experts)

    def head() -> str:
        """Counted whenever the page is opened: another process may have indexed more."""
        return (
            f"<header><h1>PLUME search</h1><p>{len(search.index)} pictures, clips, pages and passages, in one space. "
            f"The documents were embedded with K = {search.index.num_latent_steps}.</p></header>"
        )

    with gr.Blocks(title="PLUME search", analytics_enabled=False, fill_width=True, delete_cache=_CLEAN_UP) as blocks:
        gr.HTML(head)
        query = gr.MultimodalTextbox(
            placeholder="Describe what you look for, or drop a picture or clip",
            file_types=["image", "video"],
            file_count="single",
            sources=["upload"],
            show_label=False,
            autofocus=True,
            elem_id="query",
            max_plain_text_length=search.limits.max_characters,
        )
        if questions:
            offered = [[{"text": text, "files": [str(picture)]}] for text, picture in questions]
            gr.Examples(
                offered, [query], label="Questions to try, then Enter", cache_examples=False, elem_id="questions"
            )
        with gr.Row(elem_id="controls"):
            steps = config.check_num_latent_steps(task="query")
            k = gr.Slider(0, config.max_latent_steps, steps, step=1, label="K, latent steps of the query")
            limit = gr.Slider(1, MAX_RESULTS, 10, step=1, label="Results")
            kinds = gr.CheckboxGroup(list(KINDS), label="Only", elem_id="kinds")
        results = gr.HTML(elem_id="results")
        thinking = gr.HTML(elem_id="thinking")
        for event in (query.submit, k.release, limit.release, kinds.change):
            event(answer, [query, k, limit, kinds], [results, thinking], api_visibility="private", concurrency_limit=1)
    return blocks.queue(max_size=_MAX_WAITING)

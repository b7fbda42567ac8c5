"""The search page: it serves what is indexed and nothing else, and a browser finds with it what plume-tiny has learned."""

import base64
import os
import shutil
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest

for module in ("lancedb", "gradio", "pypdfium2", "av"):
    pytest.importorskip(module, reason="the extra `search` is not installed: pip install '.[apps]'")
httpx = pytest.importorskip("httpx", reason="the extra `apps` is not installed: pip install '.[apps]'")

from fastapi import FastAPI
from fastapi.testclient import TestClient

from inputs import MEDIA, ROOT, claim_pixels
from plume.apps.search.events import guard_events, make_room
from plume.apps.search.indexing import index_folders
from plume.apps.search.searching import Search
from plume.apps.search.store import Index
from plume.apps.search.world import Question, write_world
from plume.apps.shared.encoder import Encoder
from plume.apps.shared.limits import Limits
from plume.apps.shared.rows import build_row
from servers import serving

DROPPED = "#query .thumbnail-item, #query .thumbnail-image"
WAIT = 300_000  # milliseconds; a busy machine takes its time


@pytest.fixture(scope="module")
def tiny() -> Encoder:
    return Encoder(str(ROOT / "checkpoints" / "plume-tiny"), "cpu")


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> tuple[Path, list[Question]]:
    folder = tmp_path_factory.mktemp("page")
    return folder, write_world(folder)


@pytest.fixture(scope="module")
def index(world, tiny) -> Index:
    """The shipped media, a note, and the answers of the playground, as ``make search-puzzles`` indexes them."""
    folder, _ = world
    shutil.copytree(MEDIA, folder / "media")
    (folder / "media" / "note.txt").write_text("tickets are sold on board of the red bus")
    index = Index(folder / "index", tiny.identity, tiny.dimension, tiny.model.config.num_latent_steps)
    index_folders([folder / "media", folder / "documents"], index, tiny)
    return index


@pytest.fixture(scope="module")
def address(world, index, tiny):
    arguments = ["page", "--index", index.folder, "--model", tiny.model_id, "--world", world[0]]
    with serving("plume.apps.search", *arguments, path="/") as (address, _):
        yield address


def test_only_files_of_the_index_are_served(world, index, address):
    folder, _ = world
    rows = index.table.search().select(["id", "path"]).limit(len(index)).to_list()
    ids = {row["path"]: row["id"] for row in rows}
    with httpx.Client(base_url=address) as client:
        served = client.get(f"/original/{ids['bus.png']}")
        assert served.content == (MEDIA / "bus.png").read_bytes()
        assert served.headers["x-content-type-options"] == "nosniff"
        assert client.get(f"/preview/{ids['bus.png']}").headers["content-type"] == "image/webp"
        assert client.get(f"/original/{ids['note.txt']}").headers["content-type"].startswith("text/plain")
        secret, setup = folder / "secret.txt", ROOT / "setup.py"
        secret.write_text("secret")
        for path in (
            "/original/nothing",
            "/original/..%2f..%2fsecret.txt",
            f"/original/{secret}",
            f"/original//{secret}",
            "/original/'%20OR%20'1'='1",
            f"/original/{ids['bus.png']}/../secret.txt",
            f"/gradio_api/file={secret}",
            f"/gradio_api/file={setup}",
            "/gradio_api/file=/etc/passwd",
            "/gradio_api/file=setup.py",
            "/file=setup.py",
            "/setup.py",
            "/gradio_api/proxy=http://127.0.0.1:1/",
        ):
            assert client.get(path).status_code in (400, 403, 404), path
        (folder / "media" / "boat.png").write_bytes((MEDIA / "bus.png").read_bytes())
        assert client.get(f"/original/{ids['boat.png']}").status_code == 404
        (folder / "media" / "boat.png").write_bytes((MEDIA / "boat.png").read_bytes())


def test_an_upload_has_a_limit(address):
    too_large = b"\x89PNG" + b"0" * (Limits().max_bytes + 1)
    answer = httpx.post(f"{address}/gradio_api/upload", files={"files": ("big.png", too_large)}, timeout=60)
    assert answer.status_code == 413


def test_uploads_leave_room_on_the_disk(tmp_path, monkeypatch):
    """What was half sent goes after a while, what was sent whole stays, and a disk that is nearly full takes nothing."""
    half, fresh, whole = tmp_path / "tmpabc", tmp_path / "tmpdef", tmp_path / "0123" / "bus.png"
    whole.parent.mkdir()
    for path in (half, fresh, whole):
        path.write_bytes(b"0")
    os.utime(half, (1, 1))
    os.utime(whole, (1, 1))
    assert make_room(tmp_path)
    assert [path.exists() for path in (half, fresh, whole)] == [False, True, True]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1024 * 1024))
    app = FastAPI()
    guard_events(app)
    app.post("/gradio_api/upload")(lambda: pytest.fail("the upload went on"))
    answer = TestClient(app).post("/gradio_api/upload", content=b"0")
    assert (answer.status_code, "no room" in answer.json()["detail"]) == (507, True)


def ask_about(client, file: dict, place: int = 0) -> tuple[int, str]:
    """Send the event of a dropped file as a program would: the status, and what the server tells about it."""
    given = {**file, "meta": {"_type": "gradio.FileData"}}
    data = [{"text": "", "files": [given]}, 8, 1, []]
    if place:
        data[place] = given
    event = next(one["id"] for one in client.get("/config").json()["dependencies"] if len(one["inputs"]) == 4)
    asked = {"data": data, "fn_index": event, "session_hash": "stranger"}
    answer = client.post("/gradio_api/queue/join", json=asked)
    if answer.status_code != 200:
        return answer.status_code, answer.text
    return 200, client.get("/gradio_api/queue/data", params={"session_hash": "stranger"}).text


def test_a_client_names_no_path_and_no_address(address):
    """What an event says about dropped files is not believed: only what was uploaded is opened."""
    with socket.socket() as listener, httpx.Client(base_url=address, timeout=300) as client:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/picture.png"
        picture = (MEDIA / "bus.png").read_bytes()
        uploaded = client.post("/gradio_api/upload", files={"files": ("bus.png", picture)}).json()[0]
        status, told = ask_about(client, {"path": uploaded})
        assert status == 200
        assert "data-path=" in told
        climbing = f"{Path(uploaded).parent}/../../..{MEDIA}/bus.png"
        for path in ("/etc/hostname", str(MEDIA / "bus.png"), "examples/media/bus.png", climbing, url):
            for place in (0, 1, 3):  # any component would open it
                for more in ({}, {"is_stream": True}):
                    assert ask_about(client, {"path": path, **more}, place)[0] == 403, (path, place)
        nested = b'{"data": ' + b"[" * 100_000
        assert client.post("/gradio_api/queue/join", content=nested).status_code == 400
        assert client.post("/gradio_api/queue/join", content=iter([b"{}"])).status_code == 413
        listener.settimeout(1)
        with pytest.raises(TimeoutError):
            listener.accept()


def find_chromium() -> str | None:
    """A Chromium that Playwright can drive: the system's, or Playwright's own."""
    found = [shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome")]
    if any(found):
        return next(filter(None, found))
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        own = driver.chromium.executable_path
    return own if Path(own).exists() else None


@pytest.fixture
def browser_page():
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: the extra `apps`")
    chromium = find_chromium()
    if chromium is None:
        pytest.skip("no Chromium is installed: apt-get install chromium, or playwright install chromium")
    with playwright.sync_playwright() as driver:
        # Chromium refuses its sandbox to root; it loads nothing but our own page.
        quiet = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]
        browser = driver.chromium.launch(executable_path=chromium, args=quiet)
        yield browser.new_page(viewport={"width": 1280, "height": 960})
        browser.close()


def drop(page, path: Path) -> None:
    """Drop a file on the query, as a mouse would."""
    content = base64.b64encode(path.read_bytes()).decode()
    transfer = page.evaluate_handle(
        """([content, name]) => {
            const bytes = Uint8Array.from(atob(content), letter => letter.charCodeAt(0));
            const transfer = new DataTransfer();
            transfer.items.add(new File([bytes], name, {type: "image/png"}));
            return transfer;
        }""",
        [content, path.name],
    )
    for event in ("dragenter", "dragover", "drop"):
        page.locator("#query textarea").dispatch_event(event, {"dataTransfer": transfer})


def test_a_browser_finds_what_was_learned(world, index, tiny, address, browser_page):
    """plume-tiny has learned to follow chains in pictures that it never saw: chance would be right once in 36."""
    _, questions = world
    search = Search(index, tiny, Limits())
    right = [one for one in questions if search.run(one.text, one.picture, None, 1).hits[0].path == one.answer]
    assert len(right) >= 0.8 * len(questions)
    requests: list[str] = []
    browser_page.on("request", lambda request: requests.append(request.url))
    browser_page.goto(address)
    browser_page.locator("#query textarea").fill(right[0].text)
    drop(browser_page, right[0].picture)
    browser_page.locator(DROPPED).first.wait_for(timeout=WAIT)
    browser_page.locator("#query textarea").press("Enter")
    browser_page.locator(f"#results .hit[data-path='{right[0].answer}']:first-child").wait_for(timeout=WAIT)
    assert browser_page.locator("#thinking .step").count() == tiny.model.config.num_latent_steps
    loaded = browser_page.locator("#query img").first
    loaded.evaluate("image => image.decode()")
    assert all(url.startswith((address, "data:", "blob:")) for url in requests), "the page loads nothing from elsewhere"
    (ROOT / "outputs").mkdir(exist_ok=True)  # docs/search.png is a copy of it
    browser_page.screenshot(path=ROOT / "outputs" / "search.png", full_page=True)


def test_a_picture_is_found_by_a_picture(address, browser_page, tmp_path):
    """By what it shows, under another name; the preview of the first result is there to be seen."""
    shutil.copy(MEDIA / "timetable_page.png", tmp_path / "query.png")
    browser_page.goto(address)
    browser_page.get_by_text("picture", exact=True).click()
    drop(browser_page, tmp_path / "query.png")
    browser_page.locator(DROPPED).first.wait_for(timeout=WAIT)
    browser_page.locator("#query textarea").press("Enter")
    first = browser_page.locator("#results .hit[data-path='timetable_page.png']:first-child")
    first.wait_for(timeout=WAIT)
    assert first.locator(".score").inner_text() == "1.000"
    first.locator("img").evaluate("image => image.decode()")
    assert first.locator("img").evaluate("image => image.naturalWidth") > 50


def test_an_offered_question_is_asked_by_a_click(world, address, browser_page):
    _, questions = world
    browser_page.goto(address)
    browser_page.get_by_text(questions[0].text, exact=True).first.click()
    browser_page.locator(DROPPED).first.wait_for(timeout=WAIT)
    browser_page.locator("#query textarea").press("Enter")
    browser_page.locator("#results .hit").first.wait_for(timeout=WAIT)
    assert browser_page.locator("#query textarea").input_value() == questions[0].text


def test_a_browser_runs_nothing_that_comes_from_outside(index, tiny, address, browser_page):
    """Names, texts, ids and kinds as a table may have them; the open page sees them at once."""
    nasty = '"><img src=x onerror="window.hacked=1"><script>window.hacked=1</script>'
    row = {"root": "/r", "part": 1, "parts": 2, "stamp": "", "digest": ""}
    vector = tiny.encode(["a bus"], "query")[0]
    index.put([build_row({**row, "id": nasty, "path": nasty, "kind": "text"}, {"text": nasty}, vector)])
    index.put([build_row({**row, "id": "b", "path": "b", "kind": nasty}, {"text": nasty}, vector)])
    try:
        browser_page.goto(address)
        browser_page.locator("#query textarea").fill("a bus")
        browser_page.locator("#query textarea").press("Enter")
        browser_page.locator("#results .hit:nth-child(2)").wait_for(timeout=WAIT)
        names = browser_page.locator("#results .hit .name").all_inner_texts()
        assert {"b", "script>"} <= set(names[:2])
        assert browser_page.locator("#results script").count() == 0
        assert browser_page.locator("#results img[src=x]").count() == 0
        assert browser_page.evaluate("window.hacked") is None
    finally:
        index.forget([nasty, "b"])


def test_the_page_says_what_is_wrong(address, browser_page, tmp_path):
    browser_page.goto(address)
    drop(browser_page, claim_pixels(tmp_path))
    browser_page.locator(DROPPED).first.wait_for(timeout=WAIT)
    browser_page.locator("#query textarea").press("Enter")
    browser_page.get_by_text("7000x7000 pixels").first.wait_for(timeout=WAIT)

"""The search app: exactly once, only what changed, only what is indexed, and a page that a browser can use."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

for module in ("lancedb", "gradio", "pypdfium2", "av"):
    pytest.importorskip(module, reason="the extra `search` is not installed: pip install '.[apps]'")
httpx = pytest.importorskip("httpx", reason="the extra `apps` is not installed: pip install '.[apps]'")

import av

from inputs import MEDIA, ROOT, claim_pixels, noise_image
from plume import PlumeProcessor
from plume.apps.search.__main__ import parse_arguments, run
from plume.apps.search.drawing import draw_hits, draw_thinking, project
from plume.apps.search.indexing import index_folders
from plume.apps.search.searching import Search
from plume.apps.search.store import Hit, Index
from plume.apps.shared.documents import list_files, passages
from plume.apps.shared.encoder import Encoder
from plume.apps.shared.limits import Limits, MediaError, check_clip, decode_picture
from plume.apps.shared.lock import locked
from plume.hub.random_checkpoint import save_random_plume
from servers import kill_app_when

LONG = "\n\n".join(f"Paragraph {number} tells of a harbour, a museum and a station." * 8 for number in range(4))


@pytest.fixture(scope="module")
def even(tmp_path_factory) -> Path:
    """A random checkpoint that puts no instruction in front of queries: query and document of one content are equal."""
    folder = tmp_path_factory.mktemp("even") / "checkpoint"
    save_random_plume(folder, num_latent_steps=3, max_latent_steps=8)
    processor = PlumeProcessor.from_pretrained(folder)
    processor.query_prompt = ""
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def encoder(even) -> Encoder:
    return Encoder(str(even), "cpu")


def fill(folder: Path) -> Path:
    """Nine documents of all kinds in six files, and six files that are no documents."""
    (folder / "deep").mkdir(parents=True)
    noise_image(1).save(folder / "one.png")
    noise_image(2, 140, 56).save(folder / "deep" / "two.jpg")
    shutil.copy(MEDIA / "rolling_ball.mp4", folder / "ball.mp4")
    noise_image(3, 168, 224).save(folder / "pages.pdf", save_all=True, append_images=[noise_image(4, 224, 168)])
    (folder / "short.txt").write_text("the bus to the harbour leaves at ten past eight")
    (folder / "long.md").write_text(LONG)
    (folder / "table.csv").write_text("a,b")
    (folder / "cut.png").write_bytes((MEDIA / "bus.png").read_bytes()[:300])
    (folder / "empty.txt").write_text("")
    (folder / "latin.txt").write_bytes(b"\xe9t\xe9")
    (folder / "no.pdf").write_bytes(b"%PDF-1.4 nothing")
    (folder / "no.mp4").write_bytes(b"#EXTM3U\n#EXTINF:1,\nfile:///etc/hostname\n")
    return folder


def open_index(folder: Path, encoder: Encoder) -> Index:
    return Index(folder, encoder.identity, encoder.dimension, encoder.model.config.num_latent_steps)


@pytest.fixture
def corpus(tmp_path) -> Path:
    return fill(tmp_path / "corpus")


@pytest.fixture
def index(tmp_path, encoder) -> Index:
    return open_index(tmp_path / "index", encoder)


def places(index: Index) -> set[tuple[str, int]]:
    rows = index.table.search().select(["path", "part"]).limit(len(index)).to_list()
    assert len({(row["path"], row["part"]) for row in rows}) == len(rows)
    return {(row["path"], row["part"]) for row in rows}


def test_a_folder_becomes_documents_and_reasons(corpus, index, encoder):
    os.symlink(ROOT / "LICENSE", corpus / "outside.txt")
    (corpus / os.fsdecode(b"\xdcbung.txt")).write_text("a bus")
    report = index_folders([corpus], index, encoder)
    count = len(passages(LONG))
    assert count > 1
    expected = {
        ("one.png", 1),
        ("deep/two.jpg", 1),
        ("ball.mp4", 1),
        ("pages.pdf", 1),
        ("pages.pdf", 2),
        ("short.txt", 1),
    }
    assert places(index) == expected | {("long.md", part) for part in range(1, count + 1)}
    assert report.embedded == len(index)
    reasons = {skipped.path: skipped.reason for skipped in report.skipped}
    named = {"table.csv", "cut.png", "empty.txt", "latin.txt", "no.pdf", "no.mp4", "outside.txt"}
    assert reasons.keys() == named | {"\\udcdcbung.txt"}
    assert "not UTF-8" in reasons["\\udcdcbung.txt"]
    assert "unknown ending" in reasons["table.csv"]
    assert "cut off" in reasons["cut.png"]
    assert "leads out" in reasons["outside.txt"]
    written = json.loads((index.folder / "skipped.json").read_text())
    assert {row["path"]: row["reason"] for row in written} == reasons


def test_only_what_has_changed_is_embedded_again(corpus, index, encoder, monkeypatch):
    index_folders([corpus], index, encoder)
    before = index.vectors()
    embedded: list = []
    encode = encoder.try_encode
    monkeypatch.setattr(encoder, "try_encode", lambda items: embedded.extend(items) or encode(items))

    def run() -> tuple[int, int, int]:
        embedded.clear()
        report = index_folders([corpus], index, encoder)
        assert len(embedded) == report.embedded
        return report.embedded, report.unchanged, report.removed

    assert run() == (0, len(before), 0)
    os.utime(corpus / "one.png", (1, 1))  # touched, not changed
    assert run() == (0, len(before), 0)
    assert run() == (0, len(before), 0)
    noise_image(9).save(corpus / "one.png")
    assert run() == (1, len(before) - 1, 0)
    noise_image(3, 168, 224).save(corpus / "pages.pdf")  # a page fewer
    (corpus / "short.txt").unlink()
    (corpus / "ball.mp4").write_bytes(b"damaged")
    assert run() == (1, len(before) - 4, 3)
    after = index.vectors()
    assert ("short.txt", 1) not in places(index)
    assert ("ball.mp4", 1) not in places(index)
    changed = {id for id in after if np.abs(after[id] - before[id]).max() > 1e-6}
    assert len(changed) <= 2


def test_documents_of_other_folders_stay(corpus, index, encoder, tmp_path):
    index_folders([corpus], index, encoder)
    (tmp_path / "other").mkdir()
    noise_image(5).save(tmp_path / "other" / "one.png")
    before = len(index)
    assert index_folders([tmp_path / "other"], index, encoder).removed == 0
    assert len(index) == before + 1


def make_pictures(folder: Path, count: int) -> Path:
    folder.mkdir()
    for number in range(count):
        if number % 3:
            noise_image(number, 56 + 28 * (number % 4)).save(folder / f"{number:03d}.png")
        else:
            (folder / f"{number:03d}.txt").write_text(f"bus number {number} " * (1 + number % 7))
    return folder


def test_killed_in_the_middle_every_item_is_there_once(even, encoder, tmp_path):
    folder, killed = make_pictures(tmp_path / "many", 150), tmp_path / "killed"
    arguments = ["plume.apps.search", "index", folder, "--index", killed, "--model", even, "--batch", "2"]
    commits = killed / "documents.lance" / "_versions"
    kill_app_when(lambda: len(list(commits.glob("*.manifest"))) > 8, *arguments)
    before = len(open_index(killed, encoder))
    assert 0 < before < 150
    resumed = open_index(killed, encoder)
    assert index_folders([folder], resumed, encoder).embedded == 150 - before
    whole = open_index(tmp_path / "whole", encoder)
    index_folders([folder], whole, encoder)
    assert len(places(resumed)) == len(resumed) == 150
    ours, theirs = resumed.vectors(), whole.vectors()
    assert ours.keys() == theirs.keys()
    assert max(np.abs(ours[id] - theirs[id]).max() for id in ours) <= 1e-5


def test_vectors_of_another_checkpoint_are_refused(index, encoder):
    with pytest.raises(ValueError, match="cannot be compared"):
        Index(index.folder, "another", encoder.dimension, encoder.model.config.num_latent_steps)
    with pytest.raises(ValueError, match="cannot be compared"):
        Index(index.folder, encoder.identity, encoder.dimension, 1)


def test_two_runs_at_a_time_are_refused(corpus, index, encoder):
    with locked(index.folder), pytest.raises(ValueError, match="Another run"):
        index_folders([corpus], index, encoder)
    assert index_folders([corpus], index, encoder).embedded > 0


def test_a_copy_is_found_first(corpus, index, encoder):
    index_folders([corpus], index, encoder)
    search = Search(index, encoder, Limits())
    queries = {
        "one.png": ("", corpus / "one.png"),
        "ball.mp4": ("", corpus / "ball.mp4"),
        "short.txt": ("the bus to the harbour leaves at ten past eight", None),
    }
    for path, (text, media) in queries.items():
        best = search.run(text, media, None, 3).hits[0]
        assert best.path == path
        assert best.score == pytest.approx(1, abs=1e-5)
    assert {hit.kind for hit in search.run("a bus", None, None, 48, ["page", "clip"]).hits} == {"page", "clip"}
    both = search.run("a bus", corpus / "one.png", None, 1)
    assert both.hits[0].score < 1 - 1e-4
    assert search.run("a bus", None, 0, 1).output.latent_states.shape[1] == 0
    assert len(search.run("a bus", None, None, 2).hits) == 2
    scores = [hit.score for hit in search.run("a bus", None, None, 48).hits]
    assert scores == sorted(scores, reverse=True)
    with pytest.raises(ValueError, match="no kind"):
        search.run("a bus", None, None, 1, ["page') OR (1=1"])
    with pytest.raises(MediaError, match="Type a query"):
        search.run("  ", None, None, 1)


def command(*words) -> None:
    run(parse_arguments([str(word) for word in words]))


def test_the_command_line_searches(corpus, even, tmp_path, capsys):
    common = ["--index", tmp_path / "index", "--model", even]
    command("index", corpus, *common)
    assert "skipped  cut.png: " in capsys.readouterr().out
    command("query", "--media", corpus / "deep" / "two.jpg", "--top", 1, *common)
    assert re.match(r"\s+1\s+1\.000\s+picture\s+\S+/deep/two\.jpg$", capsys.readouterr().out.rstrip())


def test_weights_are_read_in_the_dtype_asked_for(even):
    full, half = (Encoder(str(even), "cpu", dtype=dtype) for dtype in ("auto", "bfloat16"))
    assert (full.model.dtype, half.model.dtype) == (torch.float32, torch.bfloat16)
    assert full.identity != half.identity  # an index does not mix the two


def test_media_from_strangers_are_bounded(tmp_path, encoder, index):
    search = Search(index, encoder, Limits())
    with pytest.raises(MediaError, match="7000x7000 pixels"):
        search.run("", claim_pixels(tmp_path), None, 1)
    with pytest.raises(MediaError, match="MiB"):
        decode_picture(MEDIA / "bus.png", Limits(max_bytes=100))
    with pytest.raises(MediaError, match="more than the 10 frames"):
        check_clip(MEDIA / "rolling_ball.mp4", Limits(max_frames=10))
    with pytest.raises(MediaError, match="to decode"):
        check_clip(MEDIA / "rolling_ball.mp4", Limits(max_seconds=0))
    with pytest.raises(MediaError, match="pixels"):
        check_clip(MEDIA / "rolling_ball.mp4", Limits(max_pixels=1000))
    with pytest.raises(MediaError, match="characters"):
        search.run("a" * 8001, None, None, 1)


def test_a_playlist_is_no_clip(tmp_path):
    """FFmpeg would open what a playlist or a concat script names: other files, and addresses."""
    target = tmp_path / "target.mp4"
    shutil.copy(MEDIA / "rolling_ball.mp4", target)
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{target}\n#EXT-X-ENDLIST\n"
    script = f"ffconcat version 1.0\nfile {target.name}\n"
    for text in (playlist, script):
        path = tmp_path / "clip.mp4"
        path.write_text(text)
        with pytest.raises(MediaError, match="could not be decoded"):
            check_clip(path, Limits())
    path = tmp_path / "list.ffconcat"
    path.write_text(script)
    with av.open(str(path)) as container:  # without the list of formats it is opened: the refusal above is ours
        assert container.format.name == "concat"


def test_what_comes_from_files_is_escaped():
    nasty = "<img src=x onerror=alert(1)>"
    hit = Hit("0", "/r", f'a"><script>{nasty}.txt', 1, 1, "text", nasty, 0.5)
    drawn = draw_hits([hit])
    assert "<script" not in drawn
    assert "<img" not in drawn
    assert "onerror=alert(1)&gt;" in drawn


def test_the_plots_show_what_happened(encoder):
    output = encoder.think([{"text": "a bus"}], "query", 5)
    drawn = draw_thinking(output.latent_states[0], output.router_probs[0], 2)
    assert drawn.count("<circle") == 5
    assert drawn.count("<rect") == 5 * output.router_probs.shape[-1]
    assert drawn.count('class="on"') == 5 * 2
    states = output.latent_states[0].double().numpy()
    flat = project(states)
    # A projection: distances never grow, and two points lie exactly as far apart as they are.
    assert np.linalg.norm(flat[0] - flat[4]) <= np.linalg.norm(states[0] - states[4]) + 1e-9
    two = project(states[:2])
    assert np.linalg.norm(two[0] - two[1]) == pytest.approx(np.linalg.norm(states[0] - states[1]))
    assert "without latent thinking" in draw_thinking(output.latent_states[0][:0], output.router_probs[0][:0], 2)


def test_passages_lose_nothing_but_spaces():
    text = "".join(f"{number} words. " if number % 5 else f"\n\n{'x' * number * 7}" for number in range(300))
    for size in (40, 100, 1000):
        cut = passages(text, size)
        assert max(map(len, cut)) <= size
        assert "".join("".join(cut).split()) == "".join(text.split())


def test_importing_plume_stays_light():
    code = (
        "import sys, plume; heavy = {'lancedb', 'gradio', 'ray', 'fastapi', 'uvicorn', 'openai', 'pyarrow', "
        "'pypdfium2', 'playwright', 'pandas', 'prometheus_client', 'plume.apps'}; print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_shipped_picture_is_listed():
    assert {file.path for file in list_files(MEDIA)} == {path.name for path in MEDIA.iterdir()}

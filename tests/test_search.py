"""The search app: exactly once, only what changed, only what is indexed, and a page that a browser can use."""

import dataclasses
import errno
import json
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
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
from plume.apps.search.drawing import draw_hits, draw_thinking, project, spread
from plume.apps.search.indexing import index_folders
from plume.apps.search.searching import Search
from plume.apps.search.store import Hit, Index
from plume.apps.shared.documents import list_files, load, split
from plume.apps.shared.encoder import Encoder
from plume.apps.shared.limits import Limits, MediaError, check_clip, decode_picture
from plume.apps.shared.lock import locked
from plume.apps.shared.rows import build_row
from plume.apps.shared.texts import passages, passages_of, read_text
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
    (folder / "archive.zip").write_text("a,b")
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
    named = {"archive.zip", "cut.png", "empty.txt", "latin.txt", "no.pdf", "no.mp4", "outside.txt"}
    assert reasons.keys() == named | {"\\udcdcbung.txt"}
    assert "not UTF-8" in reasons["\\udcdcbung.txt"]
    assert "unknown ending" in reasons["archive.zip"]
    assert "cut off" in reasons["cut.png"]
    assert "leads out" in reasons["outside.txt"]
    written = json.loads((index.folder / "skipped.json").read_text())
    assert {row["path"]: row["reason"] for row in written} == reasons


def test_only_what_has_changed_is_embedded_again(corpus, index, encoder, monkeypatch):
    index_folders([corpus], index, encoder)
    before = index.vectors()
    embedded: list = []
    encode = encoder.try_encode
    monkeypatch.setattr(encoder, "try_encode", lambda items, *rest: embedded.extend(items) or encode(items, *rest))

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


def test_vectors_of_another_checkpoint_are_refused_by_name(index, encoder):
    with pytest.raises(ValueError, match=r"of checkpoint \w{24} with K = 3, .*This checkpoint is other 12 with K = 3"):
        Index(index.folder, "other 12", encoder.dimension, encoder.model.config.num_latent_steps)
    with pytest.raises(ValueError, match="cannot be compared"):
        Index(index.folder, encoder.identity, encoder.dimension, 1)


def test_a_renamed_checkpoint_is_the_same_one(index, encoder):
    renamed = encoder.identity.replace("checkpoint", "moved")
    assert renamed != encoder.identity
    assert len(Index(index.folder, renamed, encoder.dimension, encoder.model.config.num_latent_steps)) == len(index)


def test_a_query_whose_file_is_missing_names_it(index, even):
    for name in ("missing.png", "missing.mp4"):
        options = parse_arguments(["query", "--media", name, "--index", str(index.folder), "--model", str(even)])
        with pytest.raises(ValueError, match=rf"--media {name}"):
            run(options)


def test_a_folder_without_an_index_is_refused_and_stays_as_it_is(tmp_path, even):
    for command in (["query", "a bus"], ["page"]):
        options = parse_arguments([*command, "--index", str(tmp_path / "indx"), "--model", str(even)])
        with pytest.raises(ValueError, match=r"There is no index in .*indx, so nothing can be found"):
            run(options)
    assert not (tmp_path / "indx").exists()


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


NASTY = '"><img src=x onerror=alert(1)><script>alert(2)</script>'


class Tags(HTMLParser):
    """The tags and attributes of a page, as a browser reads them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.names, self.attributes = set(), set()
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.names.add(tag)
        self.attributes |= {name for name, _ in attrs}


@pytest.mark.parametrize("field", ["id", "path", "kind", "text"])
@pytest.mark.parametrize("kind", ["text", "picture"])
def test_what_comes_from_outside_is_escaped(field, kind):
    hit = Hit("0", "/r", "a.txt", 1, 2, kind, "a", 0.5)
    plain, drawn = Tags(draw_hits([hit])), Tags(draw_hits([dataclasses.replace(hit, **{field: NASTY})]))
    assert drawn.names - {"img"} <= plain.names
    assert drawn.attributes - {"loading", "src", "alt"} <= plain.attributes


def test_names_cannot_steer_the_terminal(even, tmp_path, capsys):
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a\x1b[2Jb.txt").write_text("a bus")
    common = ["--index", tmp_path / "index", "--model", even]
    command("index", tmp_path / "corpus", *common)
    command("query", "a bus", *common)
    said = capsys.readouterr().out
    assert "\x1b" not in said
    assert "[2Jb.txt" in said


def test_the_plots_show_what_happened(encoder):
    output = encoder.think([{"text": "a bus"}], "query", 5)
    drawn = draw_thinking(output.latent_states[0], output.router_probs[0], 2)
    assert drawn.count('class="step"') == 5
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


def test_labels_of_equal_states_do_not_cover_each_other():
    places = [(150.0, 100.0)] * 6 + [(0.0, 0.0), (152.0, 101.0)]
    labels = spread(places, 19, (300, 210))
    assert labels[0] == places[0]
    for number, one in enumerate(labels):
        assert 0 < one[0] < 300
        assert 0 < one[1] < 210
        assert all(np.hypot(*np.subtract(one, other)) >= 19 for other in labels[:number])


def test_an_open_index_sees_what_others_write(corpus, index, encoder):
    search = Search(open_index(index.folder, encoder), encoder, Limits())
    assert search.run("a bus", None, None, 5).hits == []
    index_folders([corpus], index, encoder)
    assert len(search.run("a bus", None, None, 5).hits) == 5
    index.forget([hit.id for hit in search.run("a bus", None, None, 48).hits])
    assert search.run("a bus", None, None, 5).hits == []


def test_a_long_text_is_read_and_cut_once(tmp_path, encoder, monkeypatch):
    (tmp_path / "long.txt").write_text(LONG * 200)
    reads: list = []
    monkeypatch.setattr("plume.apps.shared.texts.read_text", lambda path: reads.append(path) or read_text(path))
    passages_of.cache_clear()
    (file,) = list_files(tmp_path)
    documents = split(file, Limits())
    loaded = [load(document, encoder, Limits())["text"] for document in documents]
    assert len(reads) == 1
    assert "".join("".join(loaded).split()) == "".join((LONG * 200).split())
    (tmp_path / "long.txt").write_text("short now")
    (file,) = list_files(tmp_path)
    assert len(split(file, Limits())) == 1


HOSTILE = {
    "words": "a word and another. " * 400_000,
    "one word": "a" * 8_000_000,
    "comments": "<!--" * 2_000_000,
    "tags": "<a " * 2_000_000,
    "ends": "</" * 4_000_000,
    "quotes": "<a b='" * 1_000_000,
    "scripts": "<script>" + "</scrip" * 1_000_000,
    "entities": "&#" * 4_000_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_no_text_takes_more_than_linear_time(tmp_path, name):
    """Some 0.1 to 1 s for 8 MB; an hour if every passage or tag looked at the rest of the file."""
    (tmp_path / "page.html").write_text(HOSTILE[name])
    started = time.process_time()
    passages(read_text(tmp_path / "page.html"))
    assert time.process_time() - started < 10


def test_pages_tables_and_word_files_are_texts(tmp_path, encoder):
    word = "<w:p><w:r><w:t>A bus</w:t></w:r><w:r><w:t> leaves</w:t></w:r></w:p><w:p><w:r><w:t>at 8</w:t></w:r></w:p>"
    space = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
    with zipfile.ZipFile(tmp_path / "a.docx", "w") as file:
        file.writestr("word/document.xml", f'<w:document xmlns:w="{space}"><w:body>{word}</w:body></w:document>')
    (tmp_path / "b.csv").write_text("line,time\n8,10:15\n")
    (tmp_path / "c.html").write_text(
        "<!DOCTYPE html><title>Bus &amp; boat</title><style>p {color: red}</style><script>if (a<b) c('</p>')</script>"
        "<!-- <b>no</b> --><h1>Time<em>table</em></h1><p>leaves at 8,\nif 3 < 4</p><br>End"
    )
    noise_image(1).save(tmp_path / "d.avif")
    found = [load(split(file, Limits())[0], encoder, Limits()) for file in list_files(tmp_path)]
    assert [one.get("text") for one in found] == [
        "A bus leaves\nat 8",
        "line,time\n8,10:15",
        "Bus & boat\nTimetable\nleaves at 8, if 3 < 4\nEnd",
        None,
    ]
    assert found[3]["image"].size == (84, 56)


DAMAGED = {
    "no.docx": (b"no zip", "damaged or locked"),
    "latin.html": ("<p>\xe9t\xe9".encode("latin-1"), "not UTF-8"),
    "locked.pdf": (
        b"%PDF-1.4\n1 0 obj\n<</Type/Catalog/Pages 2 0 R>>\nendobj\n2 0 obj\n<</Type/Pages/Kids[]/Count 0>>\nendobj\n"
        b"3 0 obj\n<</Filter/Standard/V 1/R 2/P -4/O(" + b"o" * 32 + b")/U(" + b"u" * 32 + b")>>\nendobj\n"
        b"trailer\n<</Root 1 0 R/Encrypt 3 0 R/ID[(0123456789abcdef)(0123456789abcdef)]/Size 4>>\n%%EOF\n",
        "encrypted and needs a password",
    ),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_or_locked_file_is_skipped_with_its_reason(name, index, encoder, tmp_path):
    content, reason = DAMAGED[name]
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / name).write_bytes(content)
    (skipped,) = index_folders([tmp_path / "corpus"], index, encoder).skipped
    assert reason in skipped.reason


def refuse(monkeypatch, owner, name: str, place: Path, error: OSError) -> None:
    """Let one call fail for one place, as a disk would; the tests may run as root, whom no permission stops."""
    real = getattr(owner, name)

    def call(path, *rest, **more):
        if Path(path) == place:
            raise error
        return real(path, *rest, **more)

    monkeypatch.setattr(owner, name, call)


FAULTS = {
    "a folder that cannot be listed": (os, "scandir", "deep"),
    "the whole folder": (os, "scandir", ""),
    "a file whose size cannot be asked": (os, "stat", "deep/two.jpg"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_cannot_be_looked_at_is_not_gone(name, corpus, index, encoder, monkeypatch):
    owner, call, path = FAULTS[name]
    index_folders([corpus], index, encoder)
    before = places(index)
    error = PermissionError(errno.EACCES, "Permission denied", str(corpus / path))
    with monkeypatch.context() as patch:
        refuse(patch, owner, call, corpus / path, error)
        report = index_folders([corpus], index, encoder)
    assert places(index) == before
    assert report.removed == 0
    reasons = {skipped.path: skipped.reason for skipped in report.skipped}
    assert "Permission denied" in reasons[path or "."]


def test_a_changed_file_that_cannot_be_read_keeps_its_rows(corpus, index, encoder, monkeypatch):
    index_folders([corpus], index, encoder)
    before = places(index)
    noise_image(9).save(corpus / "one.png")
    error = OSError(errno.EIO, "Input/output error", str(corpus / "one.png"))
    refuse(monkeypatch, Path, "open", corpus / "one.png", error)
    report = index_folders([corpus], index, encoder)
    assert places(index) == before
    assert "Input/output error; its 1 documents stay" in {s.path: s.reason for s in report.skipped}["one.png"].replace(
        ")", ""
    )


@pytest.mark.parametrize("emptied", ["deep", ""])
def test_an_empty_folder_may_be_an_unmounted_disk(emptied, corpus, index, encoder, tmp_path):
    index_folders([corpus], index, encoder)
    before = places(index)
    (corpus / emptied).rename(tmp_path / "elsewhere")
    (corpus / emptied).mkdir()
    report = index_folders([corpus], index, encoder)
    assert places(index) == before
    assert "unmounted" in {skipped.path: skipped.reason for skipped in report.skipped}[emptied or "."]
    report = index_folders([corpus], index, encoder, forget_empty=True)
    assert report.removed == (1 if emptied else len(before))


def test_a_folder_that_is_missing_changes_nothing(corpus, index, encoder, tmp_path):
    index_folders([corpus], index, encoder)
    before = places(index)
    corpus.rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="its disk is mounted"):
        index_folders([corpus], index, encoder)
    assert places(index) == before


def test_a_file_that_vanishes_while_the_folder_is_listed_is_skipped(corpus, index, encoder, monkeypatch):
    refuse(monkeypatch, os, "stat", corpus / "one.png", FileNotFoundError(errno.ENOENT, "No such file", "one.png"))
    report = index_folders([corpus], index, encoder)
    assert ("short.txt", 1) in places(index)
    assert "vanished" in {skipped.path: skipped.reason for skipped in report.skipped}["one.png"]


def test_the_progress_bar_names_what_is_being_read(corpus, index, encoder, capsys):
    index_folders([corpus], index, encoder)
    said = capsys.readouterr().err
    assert "reading deep/two.jpg" in said
    assert "reading pages.pdf, part 2" in said
    assert "embedding" in said


def test_of_three_indexers_at_once_one_works_and_the_others_are_told(corpus, encoder, tmp_path):
    """The index does not exist yet: all three create it."""

    def run() -> str:
        try:
            index_folders([corpus], open_index(tmp_path / "index", encoder), encoder)
        except ValueError as error:
            return str(error)
        return "done"

    with ThreadPoolExecutor(3) as pool:
        said = [future.result() for future in [pool.submit(run) for _ in range(3)]]
    assert "done" in said
    assert all(one == "done" or "Another run is writing" in one for one in said)
    index = open_index(tmp_path / "index", encoder)
    assert len(places(index)) == len(index) == 6 + len(passages(LONG))
    assert index_folders([corpus], index, encoder).embedded == 0


def test_a_moved_index_goes_on_at_its_new_place(corpus, index, encoder, tmp_path):
    index_folders([corpus], index, encoder)
    count = len(index)
    index.folder.rename(tmp_path / "moved")
    with pytest.raises(ValueError, match="If the folder was moved, name its new place"):
        index.vectors()
    moved = open_index(tmp_path / "moved", encoder)
    report = index_folders([corpus], moved, encoder)
    assert (report.embedded, report.unchanged, len(moved)) == (0, count, count)


@pytest.mark.parametrize("files", ["data/*.lance", "_versions/*.manifest"])
@pytest.mark.parametrize("share", [0, 0.5])
def test_a_cut_index_is_refused_by_name(files, share, corpus, index, encoder):
    index_folders([corpus], index, encoder)
    for file in index.folder.glob(f"documents.lance/{files}"):
        file.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)])
    with pytest.raises(ValueError, match="cannot be used .* remove the folder and index again"):
        index_folders([corpus], open_index(index.folder, encoder), encoder)


def test_a_full_disk_ends_a_run_and_the_next_one_goes_on(corpus, index, encoder, monkeypatch):
    """No file may grow beyond a kilobyte while rows are written: a full disk, but for the number of the error."""
    resource = pytest.importorskip("resource", reason="limits of processes are not known here")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    index_folders([corpus / "deep"], index, encoder)
    put = index.put

    def put_on_a_full_disk(rows):
        resource.setrlimit(resource.RLIMIT_FSIZE, (1024, hard))
        try:
            put(rows)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    with monkeypatch.context() as patch:
        patch.setattr(index, "put", put_on_a_full_disk)
        with pytest.raises(ValueError, match="cannot be used .*File too large.* If the disk is full, make room"):
            index_folders([corpus], index, encoder)
    assert len(index) == 1
    assert index_folders([corpus], index, encoder).embedded == len(index) - 1 > 0


def test_any_id_of_a_table_can_be_asked_for(index, encoder):
    vector = np.ones(encoder.dimension, np.float32)
    for id in ("a'b", "..", "ü/ /%2e", NASTY, "' OR '1'='1"):
        facts = {"id": id, "root": "/r", "path": id, "part": 1, "parts": 1, "kind": "text", "stamp": "", "digest": ""}
        index.put([build_row(facts, {"text": id}, vector)])
        assert index.get(id)["text"] == id
    assert index.get("\0") is None
    assert index.get("'") is None


def test_importing_plume_stays_light():
    code = (
        "import sys, plume; heavy = {'lancedb', 'gradio', 'ray', 'fastapi', 'uvicorn', 'openai', 'pyarrow', "
        "'pypdfium2', 'playwright', 'pandas', 'prometheus_client', 'plume.apps'}; print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_shipped_picture_is_listed():
    assert {file.path for file in list_files(MEDIA)} == {path.name for path in MEDIA.iterdir()}

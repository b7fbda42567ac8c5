"""Commands and Python of the pages run as printed, in the order of their page.

They run in this process, in a folder with what a reader has by then: the clone, and stand-ins for what a page calls by a
name. :data:`RUN` lists what each page needs. The stand-ins are small: random checkpoints called ``org/plume``, ``MODEL``
and ``Qwen/Qwen2-VL-2B-Instruct``, a few pairs and documents, three rows of a task of each group of MMEB-v2; and a
training whose length nobody gave takes two steps. A command whose comment says that it needs a GPU, a cluster, a server, an upload or
many minutes is not run; :data:`NOT_RUN` lists all of them.
"""

import csv
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest
from test_pages import PAGES, fences, start

from inputs import MEDIA, ROOT, noise_image
from plume.evaluation.table import MMEB_V2, read_table, select
from plume.hub.random_checkpoint import save_random_backbone, save_random_plume

OURS = re.compile(r"(plume|python -m plume|accelerate launch|python examples)\b")
NEEDS = re.compile(r"#.*\b(needs (a|an|two) [\w' -]+|takes (many|some|\d+) minutes)\b")
SERVES = {"plume serve": "http://127.0.0.1:8000/health", "plume search page": "http://127.0.0.1:7860"}
EXTRAS = re.compile(
    r"(`plume [\w ]+` needs \w+, which is not installed|No module named '(ray|lancedb|gradio|fastapi)')"
)


def write_pairs(folder: Path) -> None:
    (folder / "media").mkdir()
    rows = [(f"a picture, number {number}", f"{number}.png") for number in range(8)]
    for number, (_, name) in enumerate(rows):
        for place in (folder, folder / "media"):  # with and without --media_root
            noise_image(number).save(place / name)
    with (folder / "pairs.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("query", "positive"), *rows])


def write_documents(folder: Path) -> None:
    for place in ("CORPUS", "home/Documents"):
        (folder / place).mkdir(parents=True)
        (folder / place / "note.txt").write_text("the bus to the harbour leaves at ten past eight")
        for name in ("bus.png", "rolling_ball.mp4"):
            shutil.copy(MEDIA / name, folder / place / name)
    shutil.copy(MEDIA / "bus.png", folder / "bus.jpg")


def write_tasks(folder: Path) -> None:
    """A task of each group of MMEB-v2 with three rows, and the table of these tasks."""
    table = json.loads(MMEB_V2.read_text(encoding="utf-8"))
    del table["meta"]["groups"]  # how many tasks the whole table has
    # The three rows of MVBench have an answer missing.
    whole = [row for row in table["tasks"] if row["parser"] != "video_qa_mvbench"]
    table["tasks"] = list({row["group"]: row for row in reversed(whole)}.values())
    for row in table["tasks"]:
        row["num_queries"] = None
        if row["pool"] == "global" and row["parser"] != "video_cls":  # its candidates are the names of the classes
            row["pool_size"] = 3
    (folder / "tasks.json").write_text(json.dumps(table))
    if find_spec("mteb"):
        from evaluation_world import write_world

        write_world(folder / "data", select(read_table(folder / "tasks.json"), []))
        shutil.copytree(folder / "data", folder / "media", dirs_exist_ok=True)


def write_backbone(folder: Path) -> None:
    save_random_backbone(folder / "Qwen" / "Qwen2-VL-2B-Instruct")


def use_plume_tiny(folder: Path) -> None:
    """A checkpoint whose vectors can be cut to 64 numbers."""
    shutil.rmtree(folder / "org" / "plume")
    (folder / "org" / "plume").symlink_to(ROOT / "checkpoints" / "plume-tiny")


class Page(NamedTuple):
    """What a page needs before its first command.

    Attributes:
        prepare: Write what it calls by a name.
        python: Whether its Python blocks run here, in their places; those of other pages have tests of their own.
        quick: Whether it takes a few seconds.
    """

    prepare: tuple[Callable[[Path], None], ...] = ()
    python: bool = False
    quick: bool = False


RUN = {
    "README.md": Page((write_pairs, write_documents, write_tasks)),
    "anytime.md": Page((write_pairs,)),
    "audit.md": Page((write_tasks,)),
    "commands.md": Page(python=True, quick=True),
    "corpus.md": Page((write_documents,)),
    "evaluation.md": Page((write_tasks,)),
    "performance.md": Page(),
    "playground.md": Page(),
    "runtime.md": Page(python=True),
    "search.md": Page((write_documents,)),
    "serving.md": Page((use_plume_tiny,), python=True),
    "training.md": Page((write_pairs,)),
    "weights.md": Page((write_backbone,)),
}
ELSEWHERE = {"pictures.md": "its pictures are drawn from packages of npm, which a test does not fetch"}
NOT_RUN = [
    "plume corpus CORPUS --output /shared/job --model org/plume --actors 16 --gpus 1 --address auto",
    "plume corpus CORPUS --output job --model org/plume --processes cuda:0 cuda:1",
    "plume bench training --size small --only latent_steps",
    "plume bench compare --output benchmark.json",
    "plume bench compare --quick --output quick.json",
    "plume bench compare --backbone qwen3_vl --quick --output qwen3.json",
    "plume bench parts --size 2b --dtype bf16 --batch 1 8",
    "plume bench compare --minutes 12 --threads 2 --output docs/results/benchmark-cpu.json",
    "plume bench compare --device cuda --output docs/results/benchmark-gpu.json",
    "python -m plume.playground.ablate --output sweep --results sweep/report --seeds 0 --variants full no_latent",
    "accelerate launch training/train.py --config training/recipes/lora_24gb.yaml --model_name_or_path MODEL --train_files pairs.jsonl --media_root media --output_dir my-plume",
    "python -m plume.training.rationales pairs.csv --output with_rationales.jsonl --writer Qwen/Qwen2.5-VL-7B-Instruct",
    "python -m plume.training.rationales pairs.csv --output with_rationales.jsonl --endpoint https://HOST/v1 --model NAME --sample 5",
]


def commands_of(text: str) -> list[str]:
    """A block as a shell reads it: one command a line, with variables filled in."""
    values = dict(re.findall(r'^(\w+)="(.*)"$', text, re.MULTILINE))
    lines = [re.sub(r"\$(\w+)", lambda name: values[name[1]], line) for line in text.replace("\\\n", " ").splitlines()]
    return [line for line in lines if OURS.match(line)]


COMMANDS = {page: [line for kind, text in fences(page) if kind == "sh" for line in commands_of(text)] for page in PAGES}
COMMANDS = {page: lines for page, lines in COMMANDS.items() if lines}


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """The clone as a user sees it; MMEB-v2 is the table of :func:`write_tasks`."""
    for name in ("checkpoints", "examples", "training"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "docs" / "results", tmp_path / "docs" / "results")
    for name in ("org/plume", "MODEL"):
        save_random_plume(tmp_path / name)
    monkeypatch.setattr("plume.evaluation.__main__.MMEB_V2", tmp_path / "tasks.json")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path


@pytest.fixture
def two_steps(monkeypatch):
    """Trainings whose length follows from the data take two steps."""
    if find_spec("trl"):
        monkeypatch.setattr("plume.training.plan.SHORTEST_RUN", 2)
        monkeypatch.setattr("plume.training.plan.PASSES", 0)


def answers(process: subprocess.Popen, address: str) -> bool:
    """Whether a server answers before it ends."""
    while process.poll() is None:
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return True
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.2)
    return False


def serve(words: list[str], address: str, clients: list[str]) -> None:
    """Start a server and, when it answers, run the Python of its page."""
    process = subprocess.Popen(
        [sys.executable, "-m", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        if answers(process, address):
            for client in clients:
                exec(client, {})
            return
        said = process.communicate()[0]
    finally:
        process.kill()
        process.wait()
    if missing := EXTRAS.search(said):
        raise ImportError(missing[0])
    pytest.fail(said[-3000:])


def run(line: str, clients: list[str], monkeypatch) -> None:
    """Run one command of a page.

    Raises:
        ImportError: If this environment lacks its extra.
    """
    words = [os.path.expanduser(word) for word in shlex.split(line, comments=True)]
    address = next((address for name, address in SERVES.items() if line.startswith(name)), None)
    if address:
        serve(words, address, clients)
    elif words[1].endswith(".py"):
        monkeypatch.setattr(sys, "argv", words[1:])
        runpy.run_path(words[1], run_name="__main__")
    else:
        try:
            status = start(words)
        except SystemExit as ended:
            status = ended.code
        assert not status, f"{line}: {status}"


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, id=page.name, marks=() if RUN[page.name].quick else pytest.mark.slow)
     for page in COMMANDS if page.name in RUN],
)  # fmt: skip
def test_a_page_runs_as_printed(page, workplace, monkeypatch, two_steps):
    for write in RUN[page.name].prepare:
        write(workplace)
    parts = [part for part in fences(page) if part[0] == "sh" or (part[0] == "python" and RUN[page.name].python)]
    skipped, ran, names = [], 0, {}
    for kind, text in parts:
        if kind == "python":
            if page.name != "serving.md":
                exec(compile(text, page.name, "exec"), names)
            continue
        for line in commands_of(text):
            if NEEDS.search(line):
                continue
            try:
                run(line, [text for kind, text in parts if kind == "python"], monkeypatch)
                ran += 1
            except ImportError as error:
                if not EXTRAS.search(str(error)):
                    raise
                skipped.append(str(error))
    if not ran:
        pytest.skip(skipped[0])


def test_every_page_with_commands_is_run_or_says_why_not():
    assert {page.name for page in COMMANDS} - {"anytime.md"} == {*RUN, *ELSEWHERE} - {"anytime.md"}


def test_what_is_not_run_says_what_it_needs():
    """The whole list: a command must not leave the test by a comment that nobody looks at."""
    found = [
        " ".join(line.split("#")[0].split())
        for page, lines in COMMANDS.items()
        for line in lines
        if page.name in RUN and NEEDS.search(line)
    ]
    assert found == NOT_RUN

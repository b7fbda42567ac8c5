"""Commands of the pages run as printed, in the order of their page, in a folder with stand-ins for what they name.

The stand-ins are small: random checkpoints called ``org/plume``, ``MODEL`` and ``Qwen/Qwen2-VL-2B-Instruct``, three rows
of every task of MMEB-v2, a few pairs and documents. A command whose comment says that it needs a GPU, a cluster, a
server, an upload or many minutes is not run; :data:`NOT_RUN` lists all of them. Pages that are not in :data:`RUN` have
not been tried here yet: ``test_pages.py`` parses their commands.
"""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from test_pages import PAGES, fences

from inputs import MEDIA, ROOT, noise_image
from plume.hub.random_checkpoint import save_random_backbone, save_random_plume

pytestmark = pytest.mark.slow
OURS = re.compile(r"(plume|python -m plume|accelerate launch|python examples)\b")
NEEDS = re.compile(r"#.*\b(needs (a|an|two) [\w' -]+|takes (many|\d+) minutes)\b")
SERVES = {"plume serve": "http://127.0.0.1:8000/health", "plume search page": "http://127.0.0.1:7860"}
MISSING = re.compile(r"needs [\w.]+, which is not installed|No module named '(mteb|trl|ray|lancedb|gradio|fastapi)")


def lines_of(page: Path) -> list[str]:
    """The commands of a page as a shell reads them: one a line, assignments among them."""
    text = "".join(text for language, text in fences(page) if language == "sh")
    return [line for line in text.replace("\\\n", " ").splitlines() if OURS.match(line) or re.match(r"\w+=", line)]


COMMANDS = {page: lines_of(page) for page in PAGES}
COMMANDS = {page: lines for page, lines in COMMANDS.items() if any(OURS.match(line) for line in lines)}

RUN = ("commands.md",)
NOT_RUN = [
    "plume corpus CORPUS --output /shared/job --model org/plume --actors 16 --gpus 1 --address auto",
    "plume corpus CORPUS --output job --model org/plume --processes cuda:0 cuda:1",
    "plume bench compare --output benchmark.json",
    "plume bench compare --quick --output quick.json",
    "plume bench compare --backbone qwen3_vl --quick --output qwen3.json",
    "plume bench parts --size 2b --dtype bf16 --batch 1 8",
    "plume bench compare --minutes 45 --threads 2 --output docs/results/benchmark-cpu.json",
    "plume bench compare --device cuda --output docs/results/benchmark-gpu.json",
    "python -m plume.playground.ablate --output sweep --results sweep/report --seeds 0 --variants full no_latent",
    "accelerate launch training/train.py --config training/recipes/lora_24gb.yaml --model_name_or_path MODEL --train_files pairs.jsonl --media_root media --output_dir my-plume",
    "python -m plume.training.rationales pairs.csv --output with_rationales.jsonl --writer Qwen/Qwen2.5-VL-7B-Instruct",
    "python -m plume.training.rationales pairs.csv --output with_rationales.jsonl --endpoint https://HOST/v1 --model NAME --sample 5",
]


def write_pairs(folder: Path) -> None:
    (folder / "media").mkdir(exist_ok=True)
    rows = [(f"a picture, number {number}", f"{number}.png") for number in range(8)]
    for number, (_, name) in enumerate(rows):
        for place in (folder, folder / "media"):  # with and without --media_root
            noise_image(number).save(place / name)
    with (folder / "pairs.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("query", "positive"), *rows])
    pairs = [json.dumps({"query": query, "positive": {"image": name}}) for query, name in rows]
    (folder / "pairs.jsonl").write_text("\n".join(pairs) + "\n")


def write_tasks(folder: Path) -> None:
    """Three rows of every task of MMEB-v2, and a table of two of them."""
    pytest.importorskip("mteb", reason="evaluation needs the extra `eval`")
    from evaluation_world import write_world

    from plume.evaluation.table import MMEB_V2, read_table, select

    write_world(folder / "data", select(read_table(MMEB_V2), []))
    for place in (folder / "data").iterdir():
        if not (folder / "media" / place.name).exists():
            (folder / "media" / place.name).symlink_to(place)
    table = json.loads(MMEB_V2.read_text(encoding="utf-8"))
    table["tasks"] = table["tasks"][:2]
    del table["meta"]["groups"]  # how many tasks a whole table has
    (folder / "tasks.json").write_text(json.dumps(table))


@pytest.fixture
def workplace(tmp_path):
    """The clone as a user sees it, and next to it what the pages call by a name."""
    for name in ("checkpoints", "examples", "training"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "docs" / "results", tmp_path / "docs" / "results")
    save_random_plume(tmp_path / "org" / "plume")
    save_random_plume(tmp_path / "MODEL")
    save_random_backbone(tmp_path / "Qwen" / "Qwen2-VL-2B-Instruct")
    write_pairs(tmp_path)
    for folder in ("CORPUS", "home/Documents"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "note.txt").write_text("the bus to the harbour leaves at ten past eight")
        for name in ("bus.png", "rolling_ball.mp4"):
            shutil.copy(MEDIA / name, tmp_path / folder / name)
    shutil.copy(MEDIA / "bus.png", tmp_path / "bus.jpg")
    programs = tmp_path / "programs"
    programs.mkdir()
    for name, module in (
        ("plume", " -m plume"),
        ("python", ""),
        ("accelerate", " -m accelerate.commands.accelerate_cli"),
    ):
        (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}"{module} "$@"\n')
        (programs / name).chmod(0o755)
    return tmp_path


def answers(process: subprocess.Popen, address: str) -> bool:
    """Whether a server answers before it ends."""
    while process.poll() is None:
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return True
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.2)
    return False


def run(line: str, folder: Path, after: list[str]) -> str:
    """Run one line as a shell does; a server until it answers and ``after``, the python blocks of its page, have run.

    Returns:
        Why it was not run; empty if it was.
    """
    environment = {**os.environ, "HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2"}
    environment["PATH"] = f"{folder / 'programs'}:{environment['PATH']}"
    options = {"cwd": folder, "env": environment, "text": True, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    address = next((address for name, address in SERVES.items() if line.startswith(name)), None)
    if address is None:
        done = subprocess.run(["bash", "-c", line], check=False, **options)
        said, status = done.stdout, done.returncode
    else:
        process = subprocess.Popen(["bash", "-c", f"exec {line}"], **options)
        try:
            status = 0 if answers(process, address) else process.wait()
            if not status:
                for block in after:
                    subprocess.run([sys.executable, "-c", block], cwd=folder, env=environment, check=True)
        finally:
            process.kill()
            said = process.communicate()[0]
    missing = MISSING.search(said)
    assert missing or status == 0, f"{line}\n{said[-3000:]}"
    return missing[0] if missing else ""


@pytest.mark.parametrize("page", [page for page in COMMANDS if page.name in RUN], ids=lambda page: page.name)
def test_the_commands_of_a_page_run_as_printed(page, workplace):
    lines = [line for line in COMMANDS[page] if not NEEDS.search(line)]
    if any("--data-root data" in line for line in lines):
        write_tasks(workplace)
    variables, skipped, ran = "", [], 0
    blocks = [text for language, text in fences(page) if language == "python"] if page.name == "serving.md" else []
    for line in lines:
        if OURS.match(line):
            reason = run(variables + line, workplace, blocks)
            ran += not reason
            skipped += [reason] * bool(reason)
        else:
            variables += f"{line}\n"
    if not ran:
        pytest.skip(skipped[0] if skipped else "every command of this page says what it needs")


def test_what_is_not_run_says_what_it_needs():
    """The whole list: a command must not leave the test by a comment that nobody looks at."""
    found = [
        " ".join(line.split("#")[0].split()) for lines in COMMANDS.values() for line in lines if NEEDS.search(line)
    ]
    assert found == NOT_RUN

"""Training on one's own pairs, by the commands of docs/training.md and with no flag beyond input and output."""

import os
import resource
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from corpus import write_own_pairs

from inputs import ROOT

pytest.importorskip("trl", reason="training needs the extra `train`")

PAGE = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
LONGEST = 300  # seconds of processor time, of one command


def command(start: str) -> list[str]:
    """The command of the page that begins so, as words."""
    (line,) = {line for line in PAGE.splitlines() if line.startswith(start)}
    return shlex.split(line)


@pytest.fixture
def here(tmp_path) -> Path:
    """A folder in which the paths of the page exist."""
    for name in ("checkpoints", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


def run(words: list[str], folder: Path) -> float:
    """Run a command of the page; seconds of processor time."""
    program = {"plume": [sys.executable, "-m", "plume"], "python": [sys.executable]}[words[0]]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [*program, *words[1:]], cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1", "CI": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def hits(output: Path) -> dict[str, tuple[int, float]]:
    """Pairs and Hit@1 after the run, by dataset, of its report."""
    table = [line.split("|")[1:-1] for line in (output / "report.md").read_text().splitlines() if line.count("|") == 6]
    return {name.strip(): (int(pairs), float(after.split("/")[0])) for name, pairs, _, after, _ in table[2:]}


def mean(found: dict[str, tuple[int, float]]) -> float:
    return sum(pairs * hit for pairs, hit in found.values()) / sum(pairs for pairs, _ in found.values())


@pytest.mark.slow
def test_50_own_pairs_fine_tune_a_checkpoint(here):
    write_own_pairs(here)
    assert run(command("plume train checkpoints/plume-tiny pairs.csv"), here) < LONGEST
    assert mean(hits(here / "outputs" / "mine")) >= 0.9


@pytest.mark.slow
def test_pairs_of_longer_chains_are_learned_with_and_without_rationales(here):
    """2,000 pairs of chains one look-up longer than the model knows. Which of the two is better at one seed depends on
    how the CPU rounds (docs/training.md has the means of three seeds), so both have a floor instead.
    """
    run(command("python -m plume.playground --output world"), here)
    run(command("python examples/rationales.py world"), here)
    for name in ("plain", "with_rationales"):
        assert run(command(f"python -m plume.training.train checkpoints/plume-tiny world/{name}.jsonl"), here) < LONGEST
    without, found = (hits(here / "outputs" / name) for name in ("plain", "with"))
    assert found.keys() == without.keys() == {"image-chain", "document-chain", "text-chain"}
    assert mean(found) >= 0.8
    assert mean(without) >= 0.6

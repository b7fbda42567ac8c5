"""The pages lead somewhere and do as they say: links, commands, snippets, notebooks, the site.

Every command is parsed by the command line that it names, so a flag or a choice that does not exist is a fault;
``test_page_commands.py`` runs them.
"""

import argparse
import ast
import importlib
import json
import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from inputs import ROOT
from plume import load
from plume.__main__ import run

PAGES = [
    ROOT / name for name in ("README.md", "CONTRIBUTING.md", "examples/README.md", "checkpoints/plume-tiny/README.md")
]
PAGES += sorted((ROOT / "docs").rglob("*.md"))
NOTEBOOKS = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))
PACKAGING = "".join((ROOT / name).read_text(encoding="utf-8") for name in ("setup.py", "pyproject.toml"))


def fences(page: Path) -> Iterator[tuple[str, str]]:
    """The fenced blocks of a page: language and text."""
    yield from re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def blocks(page: Path, language: str) -> list[str]:
    return [text for found, text in fences(page) if found == language]


def commands() -> Iterator[str]:
    """Every command of the shell blocks, without comments and with variables filled in."""
    for page in PAGES:
        for block in blocks(page, "sh"):
            values = dict(re.findall(r'^(\w+)="(.*)"$', block, re.MULTILINE))
            for line in block.replace("\\\n", " ").splitlines():
                filled = re.sub(r"\$(\w+)", lambda name: values.get(name[1], name[0]), line)  # noqa: B023 - used at once
                words = shlex.split(filled, comments=True)
                if words and not re.match(r"\w+=", words[0]):
                    yield shlex.join(words)


class Parsed(Exception):  # noqa: N818 - no error
    """The command line is understood."""


@pytest.fixture
def only_parsing(monkeypatch):
    """Command lines end where their arguments are understood."""

    def stop_after(method):
        def stop(*args, **kwargs):
            method(*args, **kwargs)
            raise Parsed

        return stop

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop_after(argparse.ArgumentParser.parse_args))
    trl = pytest.importorskip("trl")
    monkeypatch.setattr(trl.TrlParser, "parse_args_and_config", stop_after(trl.TrlParser.parse_args_and_config))


def start(words: list[str]) -> int | None:
    """Hand a command to its command line, in this process; returns its exit status."""
    if words[0] == "plume":
        return run(words[1], words[2:])
    if words[:2] == ["python", "-m"]:
        name = words[2]
        package = ROOT.joinpath(*name.split(".")[1:]).is_dir()
        return importlib.import_module(f"{name}.__main__" if package else name).main(words[3:])
    script = words.index("training/train.py")  # also after `accelerate launch ...`
    return importlib.import_module("plume.training.train").main(words[script + 1 :])


OURS = [text for text in dict.fromkeys(commands()) if re.match(r"plume |python -m plume|.*training/train\.py", text)]
OTHERS = [text for text in dict.fromkeys(commands()) if text not in OURS]


@pytest.mark.parametrize("command", OURS)
def test_a_command_of_the_pages_is_understood_by_its_command_line(command, only_parsing):
    try:
        start(shlex.split(command))
    except Parsed:
        return
    except ImportError as error:
        pytest.skip(str(error))
    pytest.fail("the command line was not asked")


@pytest.mark.parametrize("command", OTHERS)
def test_other_commands_name_what_exists(command):
    words = shlex.split(command)
    if words[0] == "pip":
        extras = re.findall(r"\[([\w,]+)\]", command)
        assert all(
            re.search(rf'^ *"?{extra}"? *[:=]|"{extra}"', PACKAGING, re.MULTILINE)
            for names in extras
            for extra in names.split(",")
        )
    elif words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    else:
        assert words[0] in ("git", "bash", "python", ".venv/bin/python")
        files = [word for word in words[1:] if re.search(r"\.(py|sh|yaml)$", word)]
        assert all((ROOT / name).is_file() for name in files)
        assert files or words[0] == "git"


def test_commands_stand_in_blocks_that_are_checked():
    for page in PAGES:
        unnamed = "\n".join(blocks(page, ""))
        assert not re.search(r"^(plume|pip|make|python|bash|accelerate) ", unnamed, re.MULTILINE), page.name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_to_files_and_headings(page):
    for target, anchor in re.findall(r"\]\(((?!https?:)[^)#\s]*)(?:#([^)\s]*))?\)", page.read_text(encoding="utf-8")):
        place = page.parent / target if target else page
        assert place.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.+)$", place.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.name)
def test_python_blocks_are_python(page):
    for block in blocks(page, "python"):
        compile(block, page.name, "exec")


def test_the_block_of_the_performance_page_runs():
    exec(blocks(ROOT / "docs" / "performance.md", "python")[0], {"model": load("tiny")[0]})


@pytest.mark.parametrize("app", ["search", "corpus", "serving"])
def test_every_app_has_a_page_that_fits_on_two_screens(app):
    assert len((ROOT / "docs" / f"{app}.md").read_text(encoding="utf-8").splitlines()) <= 90


@pytest.fixture
def run_notebook(tmp_path, monkeypatch):
    """Runs the cells of a notebook in its folder; returns their variables."""
    folder = tmp_path / "examples" / "notebooks"
    folder.mkdir(parents=True)
    (tmp_path / "examples" / "media").symlink_to(ROOT / "examples" / "media")
    monkeypatch.chdir(folder)

    def run_cells(name: str) -> dict:
        scope: dict = {}
        for cell in json.loads((ROOT / "examples" / "notebooks" / name).read_text(encoding="utf-8"))["cells"]:
            if cell["cell_type"] == "code":
                tree = ast.parse("".join(cell["source"]))
                shown = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
                exec(compile(tree, name, "exec"), scope)
                scope["shown"] = shown and eval(compile(ast.Expression(shown.value), name, "eval"), scope)
        return scope

    return run_cells


def test_the_quickstart_notebook_finds_the_answer(run_notebook):
    scope = run_notebook("quickstart.ipynb")
    assert scope["search"](scope["query"])[0][1] == "box yellow cross"
    assert scope["search"](scope["query"], num_latent_steps=0)[0][1] != "box yellow cross"


@pytest.mark.slow
def test_the_fine_tuning_notebook_learns_its_pairs(run_notebook):
    scope = run_notebook("finetune.ipynb")
    assert scope["before"] < 0.5 < 0.9 <= scope["after"]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.name)
def test_notebooks_are_stored_without_outputs(notebook):
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells if cell["cell_type"] == "code")


def test_the_site_lists_every_page_and_every_public_name():
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    missing = [page.name for page in (ROOT / "docs").glob("*.md") if f": {page.name}" not in nav]
    assert missing == []
    reference = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert [name for name in importlib.import_module("plume.public").__all__ if name not in reference] == []


def test_the_site_builds_without_a_warning():
    mkdocs = ROOT / ".venv-docs" / "bin" / "mkdocs"
    if not mkdocs.exists():
        pytest.skip("make docs installs mkdocs")
    done = subprocess.run(
        [mkdocs, "build", "--strict", "--quiet"], cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""

"""House rules that a machine can check: import arrows, one rollout, size and smell counts."""

import ast
import re
from pathlib import Path

import pytest

from inputs import ROOT

ROOMS = ("benchmarks", "evaluation", "hub", "playground", "training")
LIBRARY = sorted([*ROOT.glob("*.py"), *(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))])
LIBRARY = [path for path in LIBRARY if path.name not in ("setup.py",)]
CLOSURE = sorted(path for path in ROOT.glob("*_plume.py"))
# Arrows point one way: a file imports only what stands in its list (rooms stand on all root files).
ARROWS = {
    "checks_plume": {"configuration_plume", "positions_plume"},
    "content_plume": set(),
    "configuration_plume": set(),
    "context_plume": {"decode_plume", "packed_plume"},
    "decode_plume": set(),
    "hub_files_plume": set(),
    "positions_plume": set(),
    "options_plume": set(),
    "prompt_plume": set(),
    "truncation_plume": set(),
    "vision_plume": set(),
    "latent_plume": {"configuration_plume"},
    "packed_plume": {"checks_plume", "decode_plume", "latent_plume"},
    "patches_plume": {"decode_plume"},
    "recorded_plume": {"context_plume", "decode_plume"},
    "modeling_plume": {
        "checks_plume",
        "configuration_plume",
        "context_plume",
        "decode_plume",
        "hub_files_plume",
        "latent_plume",
        "packed_plume",
        "patches_plume",
        "positions_plume",
        "recorded_plume",
    },
    "processing_plume": {
        "content_plume",
        "hub_files_plume",
        "options_plume",
        "prompt_plume",
        "truncation_plume",
        "vision_plume",
    },
}
CLOSURE_LIBRARIES = {"torch", "transformers", "PIL", "numpy", "av", "huggingface_hub"}
MAX_FILE_LINES, MAX_FUNCTION_LINES = 320, 50
LONGER = {"modeling_plume.py": 400, "processing_plume.py": 410}


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def functions(path: Path) -> list[ast.FunctionDef]:
    return [node for node in ast.walk(parse(path)) if isinstance(node, ast.FunctionDef)]


def code_lines(node: ast.FunctionDef) -> int:
    """Lines of a function without signature and docstring."""
    body = node.body[1:] if ast.get_docstring(node) else node.body
    return node.end_lineno - body[0].lineno + 1 if body else 0


@pytest.mark.parametrize("path", CLOSURE, ids=lambda path: path.stem)
def test_root_files_import_along_the_arrows_only(path):
    relative, absolute = set(), set()
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.ImportFrom):
            assert node.level <= 1, "remote code follows single-dot imports only"
            (relative if node.level else absolute).add((node.module or "").split(".")[0])
        elif isinstance(node, ast.Import):
            absolute |= {alias.name.split(".")[0] for alias in node.names}
    import sys

    assert relative == ARROWS[path.stem]
    assert absolute - set(sys.stdlib_module_names) <= CLOSURE_LIBRARIES


TRAINING_ARROWS = {
    "curriculum": set(),
    "losses": set(),
    "distributed": set(),
    "sampler": set(),
    "diagnostics": set(),
    "data": set(),
    "grad_cache": {"losses"},
    "config": {"curriculum", "losses"},
    "collator": {"config", "curriculum", "data"},
    "card": {"config"},
    "dry_run": {"collator", "config"},
    "callbacks": {"sampler"},
    "learning_rate": {"curriculum"},
    "trainer": {
        "callbacks", "card", "learning_rate", "collator", "config", "curriculum", "diagnostics", "distributed", "grad_cache", "losses", "sampler"
    },
    "train": {"collator", "config", "data", "dry_run", "trainer"},
}  # fmt: skip


def test_training_imports_along_the_arrows_only():
    for name, allowed in TRAINING_ARROWS.items():
        path = ROOT / "training" / f"{name}.py"
        path = path if path.exists() else ROOT / "training" / name / "__init__.py"
        modules = [n.module or "" for n in ast.walk(parse(path)) if isinstance(n, ast.ImportFrom)]
        assert {m.split(".")[2] for m in modules if m.startswith("plume.training.")} == allowed, name
        if name in ("curriculum", "losses", "distributed", "sampler"):
            assert not [m for m in modules if m.startswith(("plume", "transformers"))]


def test_no_docstring_quotes_a_relative_import():
    """The remote code loader finds imports by regular expression, in text too."""
    for path in CLOSURE:
        quoted = re.findall(r"^\s*from\s+\.\S+\s+import", path.read_text(), re.MULTILINE)
        real = [n for n in ast.walk(parse(path)) if isinstance(n, ast.ImportFrom) and n.level]
        assert len(quoted) == len(real)


def test_there_is_one_rollout():
    loops = [
        (path.name, ast.unparse(node.iter))
        for path in LIBRARY
        for node in ast.walk(parse(path))
        if isinstance(node, (ast.For, ast.comprehension))
        and re.search(r"range\(.*num_latent_steps", ast.unparse(node.iter))
    ]
    assert loops == [("modeling_plume.py", "range(1, num_latent_steps + 1)")]
    rollout = next(node for node in functions(ROOT / "modeling_plume.py") if node.name == "_rollout")
    assert code_lines(rollout) <= 40


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_rooms_are_small(path):
    assert len(path.read_text().splitlines()) <= LONGER.get(path.name, MAX_FILE_LINES)
    for node in functions(path):
        assert code_lines(node) <= MAX_FUNCTION_LINES, node.name


def test_the_library_is_free_of_smells():
    calls, handlers, environment = [], [], []
    for path in LIBRARY:
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                calls.append((path.name, node.func.id))
            elif isinstance(node, ast.ExceptHandler):
                handlers.append(ast.unparse(node.type) if node.type else "bare")
            elif isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv"):
                environment.append(path.name)
    assert not [
        call for call in calls if call[1] == "print" and call[0] not in ("__main__.py", "train.py", "training.py")
    ]
    assert not {"bare", "Exception", "BaseException"} & set(handlers)
    assert not environment
    # getattr and hasattr on our own objects hide mistakes. The uses: a dtype by name, a peft model, a streamed dataset,
    # a switch of newer transformers.
    assert sum(name in ("getattr", "hasattr") for _, name in calls) <= 4
    text = "".join(path.read_text() for path in LIBRARY)
    assert "TODO" not in text
    assert "coconut" not in text.lower()


def test_legacy_token_strings_are_data_of_one_file():
    for path in LIBRARY:
        if path.name not in ("prompt_plume.py", "__init__.py"):
            assert not re.search(r"disc_emb|gen_emb|<bot>|<eot>", path.read_text()), path.name


def test_everything_public_is_documented_and_typed():
    for path in LIBRARY:
        assert ast.get_docstring(parse(path)), path.name
        tree = parse(path)
        public = [node for node in ast.walk(tree) if isinstance(node, (ast.Module, ast.ClassDef))]
        methods = [node for owner in public for node in owner.body if isinstance(node, ast.FunctionDef)]
        for node in methods:
            if not node.name.startswith("_"):
                assert ast.get_docstring(node), (path.name, node.name)
        for node in functions(path):
            arguments = [*node.args.args, *node.args.kwonlyargs]
            typed = [argument for argument in arguments if argument.arg not in ("self", "cls")]
            assert node.returns is not None, (path.name, node.name)
            assert all(argument.annotation for argument in typed), (path.name, node.name)


EVALUATION_ARROWS = {
    "table": set(),
    "store": set(),
    "embedders": set(),
    "parsers": {"parsers", "table"},
    "tasks": {"parsers", "table"},
    "encoder": {"embedders", "parsers", "store"},
    "scores": {"table"},
    "report": {"scores", "table"},
    "doctor": {"scores", "table"},
    "plots": {"scores", "style", "table"},
}


def test_evaluation_imports_along_the_arrows_only():
    for name, allowed in EVALUATION_ARROWS.items():
        path = ROOT / "evaluation" / f"{name}.py"
        paths = [path] if path.exists() else sorted((ROOT / "evaluation" / name).glob("*.py"))
        modules = [n.module or "" for p in paths for n in ast.walk(parse(p)) if isinstance(n, ast.ImportFrom)]
        assert {m.split(".")[2] for m in modules if m.startswith("plume.evaluation.")} <= allowed, name
    for path in LIBRARY:
        if path.parent.name in ("training", "hub", ROOT.name):
            assert "plume.evaluation" not in path.read_text(), path.name

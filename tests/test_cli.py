"""One command line: quick to answer, one spelling of a flag, defaults in every help, mistakes in one sentence."""

import json
import resource
import runpy
import subprocess
import sys

import numpy as np
import pytest

import plume
from inputs import MEDIA, ROOT
from plume import __main__ as command_line
from plume.arguments import ArgumentParser
from plume.checkpoints import SHIPPED


def run(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=ROOT.parent, capture_output=True, text=True, check=False
    )


COMMANDS = sorted({*command_line.COMMANDS, *command_line.OWN} - {"train"})  # its flags are those of trl's classes
SUBCOMMANDS = [["search", "index"], ["search", "query"], ["search", "page"], ["evaluate", "run"], ["evaluate", "audit"]]
SUBCOMMANDS += [["bench", "compare"], ["bench", "training"]]
ASKED = [["--help"], *([name, "--help"] for name in COMMANDS), *([*names, "--help"] for names in SUBCOMMANDS)]


@pytest.mark.parametrize("arguments", ASKED, ids=" ".join)
def test_help_takes_less_than_half_a_second_of_processor_time(arguments):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = run("-m", "plume", *arguments)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5


@pytest.mark.parametrize("name", COMMANDS)
def test_help_imports_no_heavy_library(name):
    done = run("-X", "importtime", "-m", "plume", name, "--help")
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert "plume.__main__" not in imported  # runpy runs it
    assert "plume.arguments" in imported
    assert not imported & {"torch", "transformers", "huggingface_hub", "datasets", "lancedb", "gradio", "ray", "mteb"}


KNOWN = "from transformers import AutoConfig; print(AutoConfig.for_model('plume').model_type)"


@pytest.mark.slow
def test_an_import_anywhere_else_registers_the_model():
    done = run("-c", f"import plume; {KNOWN}")
    assert done.stdout.strip() == "plume", done.stderr[-2000:]


@pytest.mark.slow
def test_in_the_command_line_the_first_public_name_registers_the_model():
    start = "import sys; sys.argv = sys.orig_argv[-1:] = ['plume']; import plume; assert 'torch' not in sys.modules"
    done = run("-c", f"{start}; plume.PlumeConfig; {KNOWN}; plume.nothing")
    assert done.stdout.strip() == "plume", done.stderr[-2000:]
    assert "AttributeError: module 'plume' has no attribute 'nothing'" in done.stderr


@pytest.mark.parametrize("name", sorted({*command_line.COMMANDS, *command_line.OWN}))
def test_every_command_shows_its_flags_with_dashes_and_defaults(name, capsys):
    if name == "train":
        pytest.importorskip("trl", reason="training needs the extra `train`")
    with pytest.raises(SystemExit) as ended:
        command_line.main([name, "--help"])
    text = capsys.readouterr().out
    assert ended.value.code == 0
    flags = [word for line in text.splitlines() for word in line.split() if word.startswith("--")]
    assert not [flag for flag in flags if "_" in flag.split("=")[0]]
    if name in ("embed", "convert", "audit", "train"):
        assert "(default: " in text


def test_sub_parsers_show_defaults_too(capsys):
    with pytest.raises(SystemExit):
        command_line.main(["evaluate", "run", "--help"])
    assert "(default: 8)" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("spelling", [["--data-root", "a_b"], ["--data_root", "a_b"], ["--data_root=a_b"]])
def test_both_spellings_of_a_flag_are_taken_and_values_stay(spelling):
    parser = ArgumentParser()
    commands = parser.add_subparsers()
    commands.add_parser("run").add_argument("--data-root")
    assert parser.parse_args(["run", *spelling]).data_root == "a_b"


@pytest.mark.parametrize(("former", "flag"), [("--latent-steps", "--num-latent-steps"), ("--out", "--output")])
def test_former_names_of_a_flag_are_taken(former, flag):
    parser = ArgumentParser()
    parser.add_argument(flag)
    assert list(vars(parser.parse_args([former, "3"])).values()) == ["3"]


def test_the_trainer_s_flags_have_both_spellings():
    pytest.importorskip("trl", reason="training needs the extra `train`")
    from plume.training.train import parse

    for flag in ("--media-root", "--media_root"):
        _, args, *_ = parse(["--output-dir", "out", "--use_cpu", flag, "media"])
        assert args.media_root == "media"


MISTAKES = [
    (["embed", "hoilday.jpg"], "There is no file 'hoilday.jpg'"),
    (["embed"], "There is nothing to embed"),
    (["embed", "--items-file", "missing.jsonl"], "missing.jsonl"),
    (["embed", "a", "--num-latent-steps", "99"], "num_latent_steps=99 is outside 0..32"),
    (["verify", "no/folder"], "no/folder is no folder"),
    (["publish", "missing", "org/name", "--dry-run"], "missing"),
    (["info", "/missing"], "missing"),
    (["info", "tyny"], "There is no model 'tyny'"),
    (["embed", "a", "--model", "tyny"], "come with the package are tiny, anytime, pictures"),
    (["evaluate", "doctor", "missing"], "There are no results to check: 'missing' does not exist"),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES, ids=range(len(MISTAKES)))
def test_a_mistake_ends_with_its_sentence_and_status_two(arguments, message, capsys):
    assert command_line.main(arguments) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.splitlines()[-1].startswith("error: ") or "error: " in said
    assert "Traceback" not in said


@pytest.mark.parametrize("arguments", [["--debug", "embed", "hoilday.jpg"], ["embed", "hoilday.jpg", "--debug"]])
def test_debug_shows_where_a_mistake_happened(arguments):
    with pytest.raises(ValueError, match=r"hoilday\.jpg"):
        command_line.main(arguments)


def test_a_missing_extra_is_named(monkeypatch, capsys):
    def missing(module):
        if module == "plume.apps.serving.__main__":
            raise ModuleNotFoundError("No module named 'fastapi'", name="fastapi")

    monkeypatch.setattr(command_line, "import_module", missing)
    assert command_line.main(["serve"]) == 2
    assert "`plume serve` needs fastapi, which is not installed: pip install 'plume-embedding[serving]'" in (
        capsys.readouterr().err
    )


def test_no_command_and_an_unknown_one_are_refused(capsys):
    for arguments in ([], ["embedd"]):
        with pytest.raises(SystemExit) as ended:
            command_line.main(arguments)
        assert ended.value.code == 2
    assert "invalid choice: 'embedd'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "handed_on"),
    [
        (["--model", "tiny", "tiny"], ["--model", str(SHIPPED["tiny"]), "tiny"]),
        (["run", "--model=tiny"], ["run", f"--model={SHIPPED['tiny']}"]),
        (["--model", "org/plume"], ["--model", "org/plume"]),
    ],
)
def test_rooms_get_the_folder_of_the_shipped_model(given, handed_on):
    assert command_line.with_shipped_model(given) == handed_on


# embed and info


@pytest.fixture(scope="module")
def expected():
    items = ["open red", {"image": str(MEDIA / "bus.png")}, {"video": str(MEDIA / "rolling_ball.mp4")}]
    return plume.embed(items, progress=False).vectors


def test_embed_prints_a_line_per_item(expected, capsys):
    words = ["open red", str(MEDIA / "bus.png"), str(MEDIA / "rolling_ball.mp4")]
    assert command_line.main(["embed", *words, "--model", "tiny"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["item"] for line in lines] == [0, 1, 2]
    assert np.abs(np.array([line["vector"] for line in lines]) - expected).max() <= 1e-5


def test_embed_reads_a_list_and_writes_a_file(expected, tmp_path, capsys):
    items = ["open red", {"image": str(MEDIA / "bus.png")}, {"image": "missing.png"}]
    (tmp_path / "items.jsonl").write_text("\n".join(map(json.dumps, items)) + "\n")
    output = tmp_path / "vectors.npz"
    arguments = ["--items-file", str(tmp_path / "items.jsonl"), "--output", str(output), "--on-error", "skip"]
    assert command_line.main(["embed", *arguments]) == 0
    said = capsys.readouterr()
    assert f"2 vectors of 3 items in {output}" in said.out
    assert "item 2 failed: The image 'missing.png'" in said.err
    assert np.abs(np.load(output)["vectors"] - expected[:2]).max() <= 1e-5


def test_info_says_what_a_checkpoint_is(capsys):
    assert command_line.main(["info", "tiny"]) == 0
    said = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert said["weights"].startswith("1,288,196 in F32")
    assert said["positions"] == "mrope"
    assert said["loads"] == "anywhere, with trust_remote_code=True"


def test_info_of_a_plain_backbone_is_refused(backbone, capsys):
    assert command_line.main(["info", str(backbone)]) == 2
    assert "'qwen2_vl'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("module", "command"), [("search", "plume search"), ("distributed", "plume corpus"), ("serving", "plume serve")]
)
def test_a_former_command_says_what_replaced_it(module, command):
    with pytest.raises(SystemExit, match=f"use `{command}`"):
        runpy.run_module(f"examples.{module}", run_name="__main__")


def test_the_model_of_an_endpoint_keeps_its_name(monkeypatch):
    """`tiny` names a model of the package, but not to a server."""
    pytest.importorskip("datasets", reason="the writer needs the extra `rationales`")
    from plume.training import write_rationales as writer

    seen = []
    monkeypatch.setattr(writer, "main", lambda arguments: seen.append(arguments) or 0)
    command_line.main(["rationales", "pairs.csv", "--endpoint", "http://localhost/v1", "--model", "tiny"])
    assert seen == [["pairs.csv", "--endpoint", "http://localhost/v1", "--model", "tiny"]]

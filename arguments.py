"""Command lines of this package: every flag in one spelling, every default in the help, every ending of a file."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Kinds of files by their endings, wherever a command line takes files or folders.
KINDS = {
    "picture": (".png", ".jpg", ".jpeg", ".webp", ".avif", ".bmp", ".tif", ".tiff"),
    "clip": (".mp4", ".m4v", ".mkv", ".webm", ".mov", ".avi", ".mpg", ".mpeg", ".gif"),
    "page": (".pdf",),
    "text": (".txt", ".md", ".rst", ".csv", ".tsv", ".html", ".htm", ".docx"),
}


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows every default, unless the help says itself what happens if a flag is omitted."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        says_it_itself = "omitted" in (action.help or "")
        if says_it_itself or action.default is None or action.default is False or action.default == []:
            return action.help
        return super()._get_help_string(action)


# Names that a flag had once, in some command.
_FORMER = {"--latent-steps": "--num-latent-steps", "--k": "--num-latent-steps", "--out": "--output"}


class ArgumentParser(argparse.ArgumentParser):
    """A parser that shows defaults and takes ``--data_root`` for ``--data-root``; its sub-parsers are alike."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"formatter_class": HelpFormatter, **kwargs})

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """As in argparse, after flags have got the name they are shown with."""
        given = sys.argv[1:] if args is None else args
        return super().parse_known_args([self._as_shown(argument) for argument in given], namespace)

    def _as_shown(self, argument: str) -> str:
        flag, equals, value = argument.partition("=")
        dashed = flag.replace("_", "-")
        if dashed not in self._option_string_actions:
            dashed = _FORMER.get(dashed, dashed)
        return (
            f"{dashed}{equals}{value}" if flag.startswith("--") and dashed in self._option_string_actions else argument
        )


def refuse_output(output: Path, inputs: Sequence[str]) -> None:
    """Refuse a file that rows cannot be written to.

    Raises:
        ValueError: If its name does not end in .jsonl, or it is one of the inputs.
    """
    if output.suffix.lower() not in (".jsonl", ".ndjson"):
        raise ValueError(f"--output {output} is written as JSON lines: let its name end in .jsonl.")
    if any(Path(name).resolve() == output.resolve() for name in inputs):
        raise ValueError(f"--output {output} is one of the inputs, which would be lost. Choose another name.")


def show_dashes(parser: argparse.ArgumentParser) -> None:
    """Let the help of a parser that knows both spellings of its flags, as transformers', show the one with dashes."""
    for action in parser._actions:
        action.option_strings = [name for name in action.option_strings if "_" not in name] or action.option_strings

"""The command line: ``plume COMMAND ...`` or ``python -m plume COMMAND ...``.

``plume COMMAND --help`` shows every flag with its default. A mistake ends with one sentence and the exit status 2;
``plume --debug COMMAND ...`` shows where it happened.
"""

import argparse
import json
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from plume.arguments import KINDS, ArgumentParser
from plume.checkpoints import DEFAULT_MODEL, SHIPPED, locate

# Each command hands its arguments to the command line of a package. What that needs is imported after its arguments are
# read, and here nothing but the standard library and light modules: a help must not take seconds.
_TASKS, _ON_ERROR = ("document", "query"), ("raise", "skip", "nan")
_MEDIA = {"image": KINDS["picture"], "video": KINDS["clip"], "pdf": KINDS["page"]}


class Command(NamedTuple):
    """A command of a package.

    Attributes:
        module: Module whose ``main(arguments)`` runs it.
        help: One line.
        extra: Extra of the package that it needs.
        first: Arguments before the caller's.
        takes_plume: Whether ``--model`` is a PLUME checkpoint, so that one that comes with the package has a name.
    """

    module: str
    help: str
    extra: str = ""
    first: tuple[str, ...] = ()
    takes_plume: bool = True


COMMANDS = {
    "search": Command("plume.apps.search.__main__", "index a folder, query it, open the search page", "search"),
    "serve": Command("plume.apps.serving.__main__", "serve embeddings to OpenAI clients", "serving"),
    "corpus": Command("plume.apps.corpus.__main__", "embed a corpus on many cores or GPUs", "corpus"),
    "train": Command("plume.training.train", "train on pairs, stage by stage", "train"),
    "mine": Command("plume.training.mine", "mine hard negatives for pairs to train on", "train"),
    "rationales": Command(
        "plume.training.write_rationales", "write rationales for pairs to train on", "rationales", takes_plume=False
    ),
    "evaluate": Command("plume.evaluation.__main__", "score a checkpoint on MMEB-v2 or other tasks", "eval"),
    "audit": Command("plume.evaluation.__main__", "are the latent steps used?", "eval", ("audit",)),
    "convert": Command("plume.hub.__main__", "bring a published checkpoint into this layout", first=("convert",)),
    "verify": Command("plume.hub.__main__", "check a checkpoint folder", "st", ("verify",)),
    "publish": Command("plume.hub.__main__", "upload a checkpoint folder to the Hub", first=("publish",)),
    "export": Command("plume.hub.__main__", "write graphs that run without torch", "export", ("export",)),
    "bench": Command("plume.benchmarks.__main__", "measure what latent thinking costs", "bench"),
    "playground": Command("plume.playground.__main__", "write the generated world out", "train"),
}


def embed_parser() -> ArgumentParser:
    """The command line of ``plume embed``."""
    parser = ArgumentParser(prog="plume embed", description="Embed texts, pictures, clips and PDF files.")
    parser.add_argument("items", nargs="*", help="texts, and files by their endings; a PDF gives one vector per page")
    parser.add_argument("--items-file", type=Path, help='JSON lines: each a text or an object such as {"image": PATH}')
    parser.add_argument(
        "--model", default=DEFAULT_MODEL, help=f"folder or Hub id of a checkpoint, or {', '.join(SHIPPED)}"
    )
    parser.add_argument("--output", type=Path, help="file for the vectors (.npz); JSON lines are printed if omitted")
    parser.add_argument("--task", choices=_TASKS, default="document", help="which instruction goes in front")
    parser.add_argument("--prompt", help="instruction instead; the checkpoint's if omitted")
    parser.add_argument("--num-latent-steps", type=int, help="K; the checkpoint's if omitted")
    parser.add_argument("--on-error", choices=_ON_ERROR, default="raise", help="what an unusable item does")
    parser.add_argument("--batch-tokens", type=int, default=8192, help="tokens per batch, padding included")
    parser.add_argument("--device", help="torch device; CUDA if there is one, if omitted")
    parser.add_argument("--dtype", default="auto", help="of the weights, e.g. bfloat16")
    return parser


def embed(arguments: list[str]) -> int:
    """``plume embed``: print or store vectors."""
    options = embed_parser().parse_args(arguments)
    items = [as_item(argument) for argument in options.items]
    if options.items_file:
        lines = options.items_file.read_text(encoding="utf-8").splitlines()
        items += [json.loads(line) for line in lines if line.strip()]
    if not items:
        raise ValueError("There is nothing to embed. Name texts or files, or a file of them with --items-file.")
    from plume import embed as embed_items
    from plume import load

    result = embed_items(
        items,
        load(options.model, device=options.device, dtype=options.dtype),
        task=options.task,
        prompt=options.prompt,
        num_latent_steps=options.num_latent_steps,
        on_error=options.on_error,
        batch_tokens=options.batch_tokens,
        output=options.output,
        progress=sys.stderr.isatty(),
    )
    for failure in result.failures:
        page = f", page {failure.page}" if failure.page else ""
        print(f"item {failure.index}{page} failed: {failure.reason}", file=sys.stderr)
    if options.output:
        print(f"{len(result.vectors)} vectors of {len(items)} items in {options.output}")
        return 0
    for vector, index, page in zip(result.vectors, result.indices.tolist(), result.pages.tolist(), strict=True):
        place = {"item": index, **({"page": page} if page else {})}
        print(json.dumps({**place, "vector": [round(value, 6) for value in vector.tolist()]}))
    return 0


def as_item(argument: str) -> str | dict[str, str]:
    """A file as what its ending says, anything else as a text.

    Raises:
        ValueError: If a word looks like a file that does not exist: as a text it would be embedded silently.
    """
    kind = next((kind for kind, endings in _MEDIA.items() if argument.lower().endswith(endings)), None)
    if kind is None:
        return argument
    if not Path(argument).is_file() and not argument.startswith(("http://", "https://", "file://")):
        raise ValueError(f"There is no file {argument!r}. Check the path; for a text of that name use --items-file.")
    return {kind: argument}


def info(arguments: list[str]) -> int:
    """``plume info``: what a checkpoint says of itself, without its weights."""
    parser = ArgumentParser(prog="plume info", description="What a checkpoint says of itself, without its weights.")
    parser.add_argument("model", help=f"folder or Hub id of a checkpoint, or {', '.join(SHIPPED)}")
    parser.add_argument("--revision", help="of a Hub checkpoint; its main branch if omitted")
    options = parser.parse_args(arguments)
    from plume.hub.info import describe

    for name, value in describe(locate(options.model), options.revision).items():
        print(f"{name:<16}{value}")
    return 0


OWN: dict[str, tuple[Callable[[list[str]], int], str]] = {
    "embed": (embed, "embed texts, pictures, clips and PDF files"),
    "info": (info, "say what a checkpoint is"),
}


def run(name: str, arguments: list[str]) -> int:
    """Run one command.

    Raises:
        ImportError: If its extra is not installed.
    """
    if name in OWN:
        return OWN[name][0](arguments)
    command = COMMANDS[name]
    try:
        # A help needs no model, an exported one no torch, and imports take seconds.
        if not {"-h", "--help", "--runtime"} & {argument.partition("=")[0] for argument in arguments}:
            import_module("plume.public")  # registers the model with transformers, as `import plume` does elsewhere
        own = with_shipped_model(arguments) if command.takes_plume else arguments
        return import_module(command.module).main([*command.first, *own]) or 0
    except ModuleNotFoundError as error:
        extra = command.extra or ("torch" if error.name in ("torch", "transformers") else None)
        if not extra or (error.name or "").startswith("plume"):
            raise
        raise ImportError(
            f"`plume {name}` needs {error.name}, which is not installed: pip install 'plume-embedding[{extra}]'."
        ) from error


def with_shipped_model(arguments: list[str]) -> list[str]:
    """Arguments in which ``--model tiny`` is the folder of the model that comes with the package.

    >>> with_shipped_model(["--model", "org/plume", "tiny"])
    ['--model', 'org/plume', 'tiny']
    """
    changed = []
    for before, argument in zip(["", *arguments], arguments, strict=False):
        flag, equals, value = argument.partition("=")
        if before == "--model":
            argument = locate(argument)
        elif flag == "--model" and equals:
            argument = f"--model={locate(value)}"
        changed.append(argument)
    return changed


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: Command line without the program; ``sys.argv`` if omitted.

    Returns:
        The exit status: 2 for a mistake of the caller.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(
        prog="plume", description=__doc__.replace("``", "`"), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of a mistake")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    helps = {name: line for name, (_, line) in OWN.items()} | {name: each.help for name, each in COMMANDS.items()}
    for name, line in helps.items():
        commands.add_parser(name, help=line, add_help=False)
    place = next((place for place, argument in enumerate(given) if argument in helps), len(given))
    options = parser.parse_args(given[: place + 1])
    rest = given[place + 1 :]
    debug = options.debug or (rest[-1:] == ["--debug"])
    try:
        return run(options.command, rest[:-1] if rest[-1:] == ["--debug"] else rest)
    except (ValueError, OSError, ImportError) as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    raise SystemExit(main())

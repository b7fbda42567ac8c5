"""Search a folder of pictures, clips, PDFs and texts.

python -m plume.apps.search index FOLDER... [--index DIR] [--model CHECKPOINT]
python -m plume.apps.search query [TEXT] [--media FILE] [--top N] [--kinds KIND...] [--num-latent-steps K]
python -m plume.apps.search page [--port PORT] [--world FOLDER]
python -m plume.apps.search world FOLDER               # a playground folder to search, with questions to ask
python -m plume.apps.search import PARQUET_FOLDER      # what plume.apps.corpus wrote
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from plume.apps.shared.terminal import plain
from plume.arguments import KINDS, ArgumentParser
from plume.checkpoints import DEFAULT_MODEL, SHIPPED

_OFFERED = 4  # questions that the page offers


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line, or the given words."""
    common = ArgumentParser(add_help=False)
    common.add_argument("--index", type=Path, default=Path("outputs/search-index"), help="folder of the index")
    common.add_argument(
        "--model", help=f"folder or Hub id of a checkpoint, or {', '.join(SHIPPED)}; {DEFAULT_MODEL} if omitted"
    )
    common.add_argument("--runtime", type=Path, metavar="OUT", help="what `plume export` wrote, instead of --model")
    common.add_argument("--device", help="torch device; CUDA if available")
    common.add_argument("--dtype", default="auto", help="dtype of the weights, e.g. float32")
    common.add_argument("--int8", action="store_true", help="weights of eight bits for decoder and adapter, on a CPU")
    common.add_argument("--no-reuse", action="store_true", help="read instructions and pictures again every time")
    parser = ArgumentParser(prog="plume search", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    index = commands.add_parser("index", parents=[common], help="bring the index up to date with folders")
    index.add_argument("folders", type=Path, nargs="+", help="folders to index")
    index.add_argument("--batch", type=int, default=16, help="documents per commit")
    index.add_argument(
        "--forget-empty", action="store_true", help="forget documents of folders that are empty now, as unmounted disks"
    )
    index.add_argument(
        "--num-latent-steps",
        dest="k",
        type=int,
        help="latent steps of the documents; those of the index, in a new one the checkpoint's, if omitted",
    )
    query = commands.add_parser("query", parents=[common], help="search from the command line")
    query.add_argument("text", nargs="?", default="", help="what to look for")
    query.add_argument("--media", type=Path, help="a picture or clip to look for, with or instead of the text")
    query.add_argument("--top", type=int, default=5, help="how many results")
    query.add_argument("--kinds", nargs="*", default=[], choices=KINDS, help="only documents of these kinds")
    query.add_argument(
        "--num-latent-steps", dest="k", type=int, help="latent steps of the query; the checkpoint's if omitted"
    )
    page = commands.add_parser("page", parents=[common], help="open the page")
    page.add_argument("--host", default="127.0.0.1", help="address to listen on")
    page.add_argument("--port", type=int, default=7860, help="port to listen on")
    page.add_argument("--world", type=Path, help="offer the questions of this folder, written by `world`")
    world = commands.add_parser("world", help="write a playground folder to search")
    world.add_argument("folder", type=Path, help="where to")
    imported = commands.add_parser("import", parents=[common], help="take over vectors of plume.apps.corpus")
    imported.add_argument("vectors", type=Path, help="folder of Parquet files")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> None:
    """Carry out one command."""
    from plume.apps.search.importing import import_vectors  # here and below: a help does not wait for libraries
    from plume.apps.search.indexing import index_folders
    from plume.apps.search.searching import Search
    from plume.apps.search.store import open_index, steps_of
    from plume.apps.search.world import read_questions, write_world
    from plume.apps.shared.batches import open_encoder
    from plume.apps.shared.limits import Limits, MediaError

    if options.command == "world":
        print(f"{len(write_world(options.folder))} questions and their answers in {options.folder}")
        return
    if options.command in ("query", "page") and steps_of(options.index) is None:
        raise ValueError(
            f"There is no index in {options.index}, so nothing can be found. Make one with `plume search index FOLDER "
            f"--index {options.index}`, or name another one with --index."
        )
    encoder = open_encoder(
        options.model, options.device, options.dtype, options.runtime, int8=options.int8, reuse=not options.no_reuse
    )
    index = open_index(options.index, encoder, options.k if options.command == "index" else None)
    if options.command == "index":
        report = index_folders(options.folders, index, encoder, batch=options.batch, forget_empty=options.forget_empty)
        for skipped in report.skipped:
            print(f"skipped  {plain(skipped.path)}: {plain(skipped.reason)}")
        print(
            f"{report.embedded} embedded, {report.unchanged} unchanged, {report.removed} removed, "
            f"{len(report.skipped)} skipped; {len(index)} documents in {options.index}"
        )
    elif options.command == "query":
        try:
            answer = Search(index, encoder, Limits()).run(
                options.text, options.media, options.k, options.top, options.kinds
            )
        except (MediaError, OSError) as error:
            raise ValueError(f"The query cannot be read (--media {options.media}): {error}") from error
        for rank, hit in enumerate(answer.hits, start=1):
            place = f" ({hit.part} of {hit.parts})" if hit.parts > 1 else ""
            print(f"{rank:>3}  {hit.score:.3f}  {plain(hit.kind):<8} {plain(str(Path(hit.root, hit.path)))}{place}")
    elif options.command == "import":
        print(f"{import_vectors(options.vectors, index)} documents imported; {len(index)} in {options.index}")
    else:
        import uvicorn

        from plume.apps.search.page import build_app

        print(f"{len(index)} documents. Open http://{options.host}:{options.port}", flush=True)
        questions = read_questions(options.world)[:_OFFERED] if options.world else []
        app = build_app(Search(index, encoder, Limits()), questions)
        uvicorn.run(app, host=options.host, port=options.port, log_level="warning")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line, or the given words."""
    run(parse_arguments(arguments))


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error

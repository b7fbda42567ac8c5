"""Serve embeddings: python -m plume.apps.serving [--model CHECKPOINT] [--port 8000]."""

import argparse
from dataclasses import replace
from pathlib import Path

from plume.arguments import ArgumentParser
from plume.checkpoints import SHIPPED

_MODEL = "pictures"


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line, or the given words."""
    parser = ArgumentParser(prog="plume serve", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--model", help=f"folder or Hub id of a checkpoint, or {', '.join(SHIPPED)}; {_MODEL} if omitted"
    )
    parser.add_argument("--runtime", type=Path, metavar="OUT", help="what `plume export` wrote, instead of --model")
    parser.add_argument("--device", help="torch device; CUDA if available")
    parser.add_argument("--dtype", default="auto", help="dtype of the weights, e.g. float32")
    parser.add_argument("--int8", action="store_true", help="weights of eight bits for decoder and adapter, on a CPU")
    parser.add_argument("--no-reuse", action="store_true", help="read instructions and pictures again every time")
    parser.add_argument("--name", default="plume", help="name of the model for clients")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on")
    parser.add_argument("--max-waiting", type=int, default=256, help="inputs that may wait; beyond, 429")
    parser.add_argument("--max-batch", type=int, default=32, help="inputs per batch")
    parser.add_argument("--linger-ms", type=float, default=5.0, help="milliseconds to wait for company")
    parser.add_argument("--media-root", type=Path, help="folder from which clients may name files, as file:NAME")
    parser.add_argument("--api-key", help="what clients must send as Authorization: Bearer KEY")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Load the model, serve until interrupted."""
    options = parse_arguments(arguments)
    import uvicorn  # not before the arguments are read: a help does not wait for libraries

    from plume.apps.serving.app import Settings, build_app
    from plume.apps.shared.batches import open_encoder

    model = options.model or (None if options.runtime else _MODEL)
    settings = replace(
        Settings(),
        name=options.name,
        max_waiting=options.max_waiting,
        max_batch=options.max_batch,
        linger=options.linger_ms / 1000,
        media_root=options.media_root,
        api_key=options.api_key,
    )
    app = build_app(
        open_encoder(
            model, options.device, options.dtype, options.runtime, int8=options.int8, reuse=not options.no_reuse
        ),
        settings,
    )
    print(f"Serving {options.runtime or model} at http://{options.host}:{options.port}/v1", flush=True)
    uvicorn.run(app, host=options.host, port=options.port, log_level="warning", timeout_keep_alive=10)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error

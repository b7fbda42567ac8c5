"""Embed a corpus on many cores or GPUs; after a kill at any time, the same command continues.

python -m plume.apps.corpus CORPUS --output JOB [--model CHECKPOINT] [--actors 2 --cpus 1 --gpus 0] [--address auto]
python -m plume.apps.corpus CORPUS --output JOB --processes cpu cpu     # sentence-transformers instead of Ray

CORPUS is a folder, or Parquet with the columns id, text and image. On a cluster: --actors 16 --gpus 1 --address auto
"""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from plume.apps.shared.terminal import plain
from plume.arguments import ArgumentParser
from plume.checkpoints import DEFAULT_MODEL

if TYPE_CHECKING:
    from plume.apps.shared.encoder import Encoder


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line, or the given words."""
    parser = ArgumentParser(prog="plume corpus", description=__doc__.splitlines()[0])
    parser.add_argument("corpus", type=Path, help="folder, or Parquet with the columns id, text and image")
    parser.add_argument("--output", type=Path, required=True, help="folder of the job, shared by all nodes")
    parser.add_argument("--model", default=DEFAULT_MODEL, help="PLUME checkpoint: folder or Hub id")
    parser.add_argument("--actors", type=int, default=2, help="models that work side by side")
    parser.add_argument("--cpus", type=float, default=1, help="cores per actor")
    parser.add_argument("--gpus", type=float, default=0, help="GPUs per actor")
    parser.add_argument("--address", help="address of a running Ray cluster; a local one is started if omitted")
    parser.add_argument("--processes", nargs="+", metavar="DEVICE", help="one process per device, without Ray")
    parser.add_argument("--pixel-budget", type=int, help="pixels per batch; what suits the device if omitted")
    parser.add_argument("--chunk", type=int, default=256, help="documents per unit of work and per Parquet file")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Plan, embed what is left, report the result."""
    options = parse_arguments(arguments)
    import pyarrow.dataset as ds  # not before the arguments are read: a help does not wait for libraries

    from plume.apps.shared.encoder import Encoder
    from plume.apps.shared.lock import locked

    output = options.output.resolve()
    model_id = str(Path(options.model).resolve()) if Path(options.model).is_dir() else options.model
    encoder = Encoder(model_id, "cpu")
    with locked(output):
        total = embed_corpus(options, output, model_id, encoder)
    failed = ds.dataset(output / "vectors", format="parquet").filter(ds.field("error") != "")
    for row in failed.to_table(["path", "part", "error"]).to_pylist():
        print(f"failed   {plain(row['path'])}, part {row['part']}: {plain(row['error'])}")
    skipped = json.loads((output / "skipped.json").read_text(encoding="utf-8"))
    for file in skipped:
        print(f"skipped  {plain(file['path'])}: {plain(file['reason'])}")
    print(f"{total - failed.count_rows()} of {total} documents embedded, in {output / 'vectors'}")


def embed_corpus(options: argparse.Namespace, output: Path, model_id: str, encoder: "Encoder") -> int:
    """Plan and embed what is left; returns the number of documents of the plan."""
    from plume.apps.corpus.plan import make_plan

    total = make_plan(options.corpus, output, encoder, options.chunk)
    if options.processes:
        from plume.apps.corpus.one_machine import run_processes

        run_processes(output, encoder, options.processes)
    else:
        from plume.apps.corpus.job import run_job  # Ray takes seconds to import

        resources = {"num_cpus": options.cpus, "num_gpus": options.gpus}
        run_job(output, model_id, options.pixel_budget, options.actors, resources, options.address)
    return total


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error

"""The job on Ray Data: actors that each hold one model embed the chunks of the plan that have no result yet.

Only names of chunks travel through Ray; documents and vectors are read and written where the actor runs. Inside an
actor, batches are sized by pixels (:func:`plume.apps.shared.batches.pack`).

Ray Data's own checkpoints (2.60, beta) were tried first: resumed on two cores, their filter and their readers take the
cores that the actors wait for, and the job hangs.
"""

import logging
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray.data import ActorPoolStrategy, DataContext
from tqdm import tqdm

from plume.apps.corpus.chunks import READING, count_documents, embed_chunk, unfinished
from plume.apps.shared.encoder import Encoder


class Embed:
    """One actor: loads the model once, then embeds chunk after chunk."""

    def __init__(self, output: Path, model_id: str, pixel_budget: int | None) -> None:
        self.output, self.encoder = output, Encoder(model_id, pixel_budget=pixel_budget)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Embed and commit the chunk that ``row`` names; returns its number of documents."""
        reading = self.output / "writing" / READING.replace("*", str(os.getpid()))
        try:
            count = embed_chunk(self.output, row["chunk"], self.encoder, self.encoder.try_encode, reading.write_text)
        finally:
            reading.unlink(missing_ok=True)
        return {"documents": count}


def show_readers(folder: Path, bar: tqdm, ended: threading.Event, seconds: float = 1.0) -> None:
    """Let a bar say what each worker reads until the job has ended: a chunk takes its time."""
    while not ended.wait(seconds):
        said = []
        for path in sorted(folder.glob(READING)):
            with suppress(FileNotFoundError):  # its chunk has ended
                said.append(path.read_text())
        bar.set_postfix_str(", ".join(filter(None, said)))


def run_job(
    output: Path,
    model_id: str,
    pixel_budget: int | None,
    actors: int,
    resources: dict[str, float],
    address: str | None = None,
) -> None:
    """Embed what is left of a planned job.

    Args:
        output: Folder of the job, with its plan; on a cluster, on a disk that all nodes share.
        model_id: The checkpoint of the plan.
        pixel_budget: Pixels per batch. Defaults to what suits the device.
        actors: Actors, each with a model of its own.
        resources: ``num_cpus`` and ``num_gpus`` per actor.
        address: Of a running Ray cluster; a local one is started if omitted and needed.
    """
    left = unfinished(output)
    if not left:
        return
    ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING)
    DataContext.get_current().enable_progress_bars = False  # one bar, of documents, instead of one per operator
    work: Any = ray.data.from_items([{"chunk": name} for name in left], override_num_blocks=len(left))
    done = work.map(
        Embed,
        fn_constructor_args=(output, model_id, pixel_budget),
        compute=ActorPoolStrategy(size=min(actors, len(left))),
        **resources,
    )
    ended = threading.Event()
    try:
        with (
            tqdm(total=count_documents(output, left), unit="document", desc="embed") as bar,
            ThreadPoolExecutor() as side,
        ):
            side.submit(show_readers, output / "writing", bar, ended)
            try:
                for row in done.iter_rows():
                    bar.update(row["documents"])
            finally:
                ended.set()
    finally:
        ray.shutdown()

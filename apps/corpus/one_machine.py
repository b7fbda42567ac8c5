"""The same job on one machine, with the multi-process ``encode`` of sentence-transformers instead of Ray.

Plan, chunks and results are the same files, so one job can be begun by one and ended by the other.
"""

from pathlib import Path

import numpy as np
from sentence_transformers import SentenceTransformer
from tqdm import tqdm

from plume.apps.corpus.chunks import Vectors, count_documents, embed_chunk, unfinished
from plume.apps.shared.encoder import Encoder

_PER_TASK, _BATCH = 16, 8


def run_processes(output: Path, encoder: Encoder, devices: list[str]) -> None:
    """Embed what is left of a planned job in one process per device.

    Args:
        output: Folder of the job, with its plan.
        encoder: The checkpoint of the plan.
        devices: Torch devices, such as ``["cpu", "cpu"]`` or ``["cuda:0", "cuda:1"]``.
    """
    left = unfinished(output)
    if not left:
        return
    model = SentenceTransformer(encoder.model_id, device=devices[0])
    pool = model.start_multi_process_pool(devices)

    def embed(contents: list) -> Vectors:
        try:
            vectors = model.encode_document(contents, pool=pool, chunk_size=_PER_TASK, batch_size=_BATCH)
        except ValueError as error:  # one of them cannot be embedded: the others shall not wait for it
            return [error] if len(contents) == 1 else [vector for one in contents for vector in embed([one])]
        return list(np.asarray(vectors, dtype=np.float32))

    try:
        with tqdm(total=count_documents(output, left), unit="document", desc="embed") as bar:
            for chunk in left:
                bar.update(embed_chunk(output, chunk, encoder, embed, bar.set_postfix_str))
    finally:
        model.stop_multi_process_pool(pool)

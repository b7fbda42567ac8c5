"""Take over the vectors that ``plume.apps.corpus`` wrote, without embedding anything again."""

import json
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.dataset as ds
from tqdm import tqdm

from plume.apps.search.store import Index
from plume.apps.shared.lock import locked
from plume.apps.shared.rows import JOB_FILE


def import_vectors(folder: Path, index: Index, batch: int = 1000) -> int:
    """Put the rows of a finished or unfinished job into the index; rows of documents that failed are left out.

    Args:
        folder: What the job wrote.
        index: Where to; its checkpoint must be the job's.
        batch: Rows per commit.

    Returns:
        Number of rows.

    Raises:
        ValueError: If the folder is no job's, or the job embedded with another checkpoint.
    """
    if not (folder / JOB_FILE).is_file():
        raise ValueError(f"{folder} has no {JOB_FILE}, so it was not written by plume.apps.corpus. Check the path.")
    job = json.loads((folder / JOB_FILE).read_text(encoding="utf-8"))
    index.check_made_by(job["model"], job["num_latent_steps"], str(folder))
    rows = ds.dataset(folder / "vectors", format="parquet")
    count = 0
    with locked(index.folder):
        batches = rows.to_batches(columns=index.schema.names, filter=pc.field("error") == "", batch_size=batch)
        for some in tqdm(batches, unit="batch", desc="import"):
            if len(some):
                index.put(some.to_pylist())
                count += len(some)
        index.table.optimize()
    return count

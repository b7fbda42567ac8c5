"""Golden vectors: those of the model with torch at export time, that every machine which runs the export must give."""

from pathlib import Path
from typing import Any

import numpy as np

from plume.hub.fixed import fixed_inputs
from plume.runtime import Runtime
from plume.runtime.manifest import GOLDEN

TOLERANCE, LEAST_COSINE = 1e-5, 0.999


def save_golden(folder: Path, vectors: dict[int, np.ndarray]) -> None:
    """Store the vectors of :func:`fixed_inputs`, by K."""
    arrays: dict[str, Any] = {str(steps): rows for steps, rows in vectors.items()}
    np.savez(folder / GOLDEN, **arrays)


def check_golden(runtime: Runtime) -> float:
    """Compare the vectors of an export on this machine with the golden ones.

    Returns:
        The largest difference of a number, or with weights of eight bits the largest distance of a cosine from 1.

    Raises:
        ValueError: If a number differs by more than 1e-5, or with weights of eight bits a cosine is below 0.999.
    """
    worst = 0.0
    with np.load(runtime.folder / GOLDEN) as golden:
        for steps in golden:
            vectors = runtime.encode(fixed_inputs(), num_latent_steps=int(steps))
            if runtime.manifest.int8:
                worst = max(worst, 1 - float((vectors * golden[steps]).sum(axis=1).min()))
            else:
                worst = max(worst, float(np.abs(vectors - golden[steps]).max()))
    limit = 1 - LEAST_COSINE if runtime.manifest.int8 else TOLERANCE
    if not worst <= limit:
        what = "a cosine is {:.5f} below 1" if runtime.manifest.int8 else "a number differs by {:.1e}"
        raise ValueError(
            f"{runtime.folder} does not give the vectors of its checkpoint: {what.format(worst)}, and at most "
            f"{limit:.0e} is allowed. Do not use it; another version of onnxruntime may compute it right."
        )
    return worst

"""Who ranks for the latent view to learn from, in addition to the contrast of the pairs themselves.

- ``explicit``: the explicit view of the model itself, a frozen copy of it that reads the rationales (as LaSER, though
  LaSER's teacher goes on learning). It teaches every stage but the explicit one.
- ``scores``: ``teacher_scores`` in the data, of a reranker for example: one for the positive, one per hard negative.
"""

from copy import deepcopy
from typing import Any

from plume import PlumeModel
from plume.training.config import PlumeTrainingConfig
from plume.training.data import look


def freeze_teacher(model: PlumeModel, rows: Any, args: PlumeTrainingConfig) -> PlumeModel | None:
    """A frozen copy of the model where the explicit view teaches; None where nobody does, or the data do.

    Args:
        model: The model, before it is wrapped or trained.
        rows: The training rows.
        args: The run.

    Raises:
        ValueError: If the rows hold nothing that this teacher needs.
    """
    if args.teacher is None:
        return None
    found = look(rows)
    if args.teacher == "explicit":
        if not found.rationales:
            raise ValueError(
                "--teacher explicit ranks by rationales, and no row has one on both sides. Write them with `plume "
                "rationales`, or leave the teacher out."
            )
        return deepcopy(model).eval().requires_grad_(False)
    if not (found.scores and args.num_negatives):
        raise ValueError(
            "--teacher scores ranks a positive among its hard negatives by the data's teacher_scores, and "
            + ("--num_negatives is 0" if found.scores else "no row has them")
            + ". Give each row one score for its positive and one per hard negative, or leave the teacher out."
        )
    return None

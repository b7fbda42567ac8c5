"""Which specialised experts steer which inputs (Fig. 5 and 9). The shared expert is always active and left out."""

from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import Any

import torch

MODALITIES = ("T", "I", "V", "D", "TI", "TV", "TD")


def selected(probs_NKE: torch.Tensor, num_active: int) -> torch.Tensor:
    """Whether an expert is among the ``num_active`` likeliest, ``(N, K, E)`` of 0 and 1."""
    top = probs_NKE.topk(num_active, dim=-1).indices
    return torch.zeros_like(probs_NKE).scatter(-1, top, 1.0)


def expert_use(probs_NKE: torch.Tensor, num_active: int, modalities: Sequence[str]) -> list[dict[str, Any]]:
    """Use of the experts by modality.

    Args:
        probs_NKE: Routing probabilities of N inputs, ``(N, K, E)``.
        num_active: K_r, experts selected per step.
        modalities: Letters of each input's modality, see :func:`modality_of`.

    Returns:
        Rows ``{"modality", "n", "selected", "mass"}``; the last two are ``K x E`` lists: share of inputs that select
        the expert at a step, and mean routing probability.
    """
    chosen, rows = selected(probs_NKE, num_active), []
    for modality in sorted(set(modalities), key=_order):
        index = torch.tensor([place for place, name in enumerate(modalities) if name == modality])
        rows.append(
            {
                "modality": modality,
                "n": len(index),
                "selected": chosen[index].mean(dim=0).tolist(),
                "mass": probs_NKE[index].mean(dim=0).tolist(),
            }
        )
    return rows


def pool(rows: Sequence[dict[str, Any]], measure: str = "selected") -> torch.Tensor:
    """Mean of rows of :func:`expert_use` weighted by their inputs, ``(K, E)``."""
    counts = torch.tensor([row["n"] for row in rows], dtype=torch.float32)
    values = torch.tensor([row[measure] for row in rows])
    return (counts.view(-1, 1, 1) * values).sum(dim=0) / counts.sum()


def by_modality(rows: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Rows of any number of tasks, gathered by modality in the order of the paper's Fig. 9."""
    gathered = defaultdict(list)
    for row in sorted(rows, key=lambda row: _order(row["modality"])):
        gathered[row["modality"]].append(row)
    return dict(gathered)


def modality_of(kinds: Collection[str], is_visdoc: bool) -> str:
    """Letters of what an input holds: text T, image I, video V, page image D, and text with one of them."""
    image = "D" if is_visdoc else "I"
    letters = {"text": "T", "image": image, "video": "V"}
    return "".join(letter for kind, letter in letters.items() if kind in kinds)


def _order(modality: str) -> tuple[int, str]:
    return (MODALITIES.index(modality) if modality in MODALITIES else len(MODALITIES), modality)

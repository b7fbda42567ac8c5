"""Whether this CPU multiplies bfloat16, and a word of advice where it does not (``docs/performance.md``)."""

from typing import Any

import torch
from transformers.utils import logging

logger = logging.get_logger(__name__)


def emulates_bfloat16() -> bool:
    """Whether this CPU has no bfloat16 arithmetic, so that every product converts its factors first."""
    return torch.cpu._is_avx2_supported() and not torch.cpu._is_avx512_bf16_supported()


def warn_of_emulation(model: Any) -> None:
    """Say once that a model in bfloat16 on such a CPU is slow."""
    if model.dtype == torch.bfloat16 and model.device.type == "cpu" and emulates_bfloat16():
        what = "The weights are bfloat16, which this CPU only emulates: embedding takes some three times as long."
        logger.warning_once(f"{what} Load with dtype=torch.float32 where memory allows it, at 4 bytes per weight.")

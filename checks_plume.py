"""What a model refuses to embed, because the vector would be silently wrong, and what it warns of."""

import torch
from transformers.utils import logging

from .configuration_plume import PlumeConfig
from .positions_plume import Media

logger = logging.get_logger(__name__)


def check_prefix(
    input_ids: torch.Tensor, attention_mask: torch.Tensor, media: list[Media], config: PlumeConfig
) -> None:
    """Check a batch of prefixes; reads from the device once, before any work is queued there.

    Args:
        input_ids: ``(B, T)``.
        attention_mask: ``(B, T)``.
        media: Images and videos of the batch.
        config: Of the model.

    Raises:
        ValueError: If the batch is padded on the right, a row lacks ``<slt>`` or ``<anchor>``, or media and
            placeholders differ.
    """
    anchors = (input_ids == config.anchor_token_id) & attention_mask.bool()
    findings = torch.stack(
        [
            (attention_mask[:, 1:] < attention_mask[:, :-1]).any() | (attention_mask[:, -1] == 0).any(),
            (input_ids[:, -1] != config.latent_start_token_id).any(),
            ~anchors.any(dim=-1).all(),
            *((input_ids == kind.token_id).sum() for kind in media),
        ]
    )
    padded_right, without_start, without_anchor, *placeholders = findings.tolist()
    if padded_right:
        raise ValueError(
            "The batch is padded on the right or inside, so its last column is not <slt> and the rollout would start "
            "from padding. Pad on the left, as PlumeProcessor does unless it is told padding_side='right'."
        )
    if without_start or without_anchor:
        absent = "latent_start_token_id" if without_start else "anchor_token_id"
        raise ValueError(
            f"A row lacks config.{absent}: PLUME needs <anchor> in the prefix and <slt> at its end. Build inputs with "
            "PlumeProcessor, with add_generation_prompt=True and the tokenizer of this checkpoint."
        )
    for kind, found in zip(media, placeholders, strict=True):
        merged = config.vision_config.spatial_merge_size**2
        given = 0 if kind.grid_thw is None else int(kind.grid_thw.prod(dim=-1).sum()) // merged
        if found != given or (kind.pixels is None) != (kind.grid_thw is None):
            raise ValueError(
                f"The text holds {found} media placeholders (token {kind.token_id}) but the media given have {given} "
                "tokens. Pass pixels and grids together, one media item per placeholder, as PlumeProcessor does."
            )


def check_suffix(suffix_input_ids: torch.Tensor, input_ids: torch.Tensor, config: PlumeConfig) -> None:
    """Check that every row has a suffix to read its embedding from.

    Args:
        suffix_input_ids: ``(B, S)``.
        input_ids: ``(B, T)``.
        config: Of the model.

    Raises:
        ValueError: If rows are missing or lack ``<gen>``.
    """
    readable = (suffix_input_ids == config.embedding_token_id).any(dim=-1)
    if len(suffix_input_ids) != len(input_ids) or not readable.all():
        raise ValueError(
            f"suffix_input_ids has shape {tuple(suffix_input_ids.shape)} for {len(input_ids)} rows, "
            f"{int(readable.sum())} of them with <gen> (config.embedding_token_id), whose state is the "
            "embedding. Give each row one."
        )


def emulates_bfloat16() -> bool:
    """Whether this CPU has no bfloat16 arithmetic, so that every product converts its factors first."""
    return torch.cpu._is_avx2_supported() and not torch.cpu._is_avx512_bf16_supported()


def warn_of_emulation(vectors: torch.Tensor) -> None:
    """Say once that vectors in bfloat16 on such a CPU are slow (``docs/performance.md``).

    Args:
        vectors: What the decoder is about to read, any shape.
    """
    if vectors.dtype == torch.bfloat16 and vectors.device.type == "cpu" and emulates_bfloat16():
        logger.warning_once(
            "The weights are bfloat16, which this CPU only emulates: embedding takes some three times as long as in "
            "float32. Load with dtype=torch.float32 where memory allows it, at 4 bytes per weight instead of 2."
        )

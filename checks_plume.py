"""Input checks: errors for inputs that would silently give a wrong vector."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .positions_plume import Media


def left_aligned(input_ids: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Token ids and mask, ``(B, T)`` each, with the padding of every row moved to its left.

    A row's tokens keep their order, and media follow the rows, so nothing else has to move. Padding between two tokens
    of a row stays there, for :func:`check_prefix` to refuse.
    """
    if attention_mask is None:
        return input_ids, torch.ones_like(input_ids)
    length = input_ids.shape[1]
    columns = torch.arange(length, device=input_ids.device)
    num_trailing = length - 1 - (columns * attention_mask.bool()).amax(dim=-1, keepdim=True)
    source = (columns - num_trailing) % length
    return input_ids.gather(1, source), attention_mask.gather(1, source)


def check_prefix(input_ids: Tensor, attention_mask: Tensor, media: list[Media], config: Any) -> None:
    """Refuse prefixes ``(B, T)`` padded after a token, without ``<slt>`` or ``<anchor>``, or media that do not fit.

    Reads from the device once, before any work is queued there.
    """
    anchors = (input_ids == config.anchor_token_id) & attention_mask.bool()
    findings = [
        (attention_mask[:, 1:] < attention_mask[:, :-1]).any() | (attention_mask[:, -1] == 0).any(),
        (input_ids[:, -1] != config.latent_start_token_id).any(),
        ~anchors.any(dim=-1).all(),
        *((input_ids == kind.token_id).sum() for kind in media),
    ]
    padded_inside, without_start, without_anchor, *placeholders = torch.stack(findings).tolist()
    if padded_inside:
        cause = "A row has padding between its tokens or no tokens at all, so its positions would be wrong."
        raise ValueError(f"{cause} Pad on one side only, as PlumeProcessor does.")
    if without_start or without_anchor:
        absent = "latent_start_token_id" if without_start else "anchor_token_id"
        cause = f"A row lacks config.{absent}: PLUME needs <anchor> in the prefix and <slt> at its end."
        raise ValueError(f"{cause} Use this checkpoint's PlumeProcessor, with add_generation_prompt=True.")
    for kind, found in zip(media, placeholders, strict=True):
        merged = config.vision_config.spatial_merge_size**2
        given = 0 if kind.grid_thw is None else int(kind.grid_thw.prod(dim=-1).sum()) // merged
        if found != given or (kind.pixels is None) != (kind.grid_thw is None):
            cause = f"The text holds {found} placeholders (token {kind.token_id}) but the media have {given} tokens."
            raise ValueError(f"{cause} Pass pixels with their grids, one item per placeholder, as PlumeProcessor does.")


def check_suffix(suffix_input_ids: Tensor, input_ids: Tensor, config: Any) -> None:
    """Refuse suffixes ``(B, S)`` that leave one of the rows ``(B, T)`` without ``<gen>``."""
    readable = (suffix_input_ids == config.embedding_token_id).any(dim=-1)
    if len(suffix_input_ids) != len(input_ids) or not readable.all():
        cause = f"suffix_input_ids has {int(readable.sum())} rows with <gen>, input_ids {len(input_ids)} rows."
        raise ValueError(f"{cause} Its state is the embedding (config.embedding_token_id): give each row one.")


def check_readout_steps(readout_steps: Sequence[int] | None, num_latent_steps: int) -> tuple[int, ...]:
    """The steps to read out after, ending in K; refuses what is empty, not increasing integers, or outside 0..K."""
    if readout_steps is None:
        return (num_latent_steps,)
    steps = tuple(readout_steps)
    whole = all(type(step) is int for step in steps)  # True is no step
    if not (steps and whole and list(steps) == sorted(set(steps)) and steps[0] >= 0 and steps[-1] <= num_latent_steps):
        cause = f"readout_steps={[*steps]} must be increasing integers from 0 to num_latent_steps={num_latent_steps}."
        raise ValueError(f"{cause} Sort them, or raise num_latent_steps.")
    return steps if steps[-1] == num_latent_steps else (*steps, num_latent_steps)


def check_finite(embeddings: Tensor) -> None:
    """Refuse embeddings of any shape with a NaN or an infinity among them."""
    if not embeddings.isfinite().all():
        cause = "The embeddings are not finite (NaN or infinity), so similarities computed from them mean nothing."
        raise ValueError(f"{cause} Check the weights for NaN, and use bfloat16 or float32 instead of float16.")

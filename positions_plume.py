"""Multimodal rotary positions as pure functions of token ids, mask and media grids.

The positions of transformers' own Qwen2-VL differ between library versions for videos and live partly in module
state; these are the reference ones of the Qwen2-VL release, depend on their arguments only, and never make the
host wait for the device.

1. A text token advances the position by 1 on all three axes (time, height, width).
2. A media item of merged grid (t, h, w) spreads its tokens over start + (0..t-1, 0..h-1, 0..w-1). Where the backbone
   measures time in seconds (Qwen2.5-VL), frame f stands at start + floor(f * time_step).
3. The next token gets the item's largest position on any axis, plus 1.
4. Padding is ignored: each row starts at 0 however far it is padded.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Media(NamedTuple):
    """One kind of media of a batch, in the order of appearance over all rows; tensors are None where it has none."""

    token_id: int  # its placeholder token
    pixels: Tensor | None  # patches, (P, C)
    grid_thw: Tensor | None  # grids (time, height, width) in patches, (N, 3)
    time_step: Tensor | None = None  # positions from one temporal patch to the next, (N,); 1 if None
    frames_apart: bool = False  # whether every temporal patch is an item of its own for positions (Qwen3-VL)


def mrope_index(
    input_ids: Tensor, attention_mask: Tensor, media: list[Media], merge_size: int
) -> tuple[Tensor, Tensor]:
    """Positions ``(3, B, T)`` of every prefix token and the first free one ``(B,)`` of every row, both int64.

    Args:
        input_ids: Token ids, ``(B, T)``, media placeholders already expanded.
        attention_mask: 1 for tokens, 0 for padding, ``(B, T)``.
        media: Images and videos of the batch; their pixels do not matter here.
        merge_size: Patches per token along height and width.
    """
    valid = attention_mask.bool()
    advance = valid.long()
    within = torch.zeros(3, valid.numel(), dtype=torch.long, device=input_ids.device)
    for kind in media:
        if kind.grid_thw is not None:
            is_media = ((input_ids == kind.token_id) & valid).flatten()
            offsets, spans = _offsets_within_media(is_media, kind, merge_size)
            within += offsets
            advance = torch.where(is_media.view_as(valid), spans.view_as(valid), advance)
    positions = advance.cumsum(dim=-1) - advance + within.view(3, *valid.shape)
    return positions.masked_fill(~valid, 0), advance.sum(dim=-1)


def rollout_positions(
    input_ids: Tensor, attention_mask: Tensor, media: list[Media], merge_size: int, num_ahead: int, position_scheme: str
) -> Tensor:
    """Positions ``(3, B, T + num_ahead)`` of the prefix and of the latent steps and suffix tokens after it, int64.

    The prefix is as in :func:`mrope_index`, and every row ends in ``<slt>``. The scheme ``"mrope"`` continues at
    p_slt + 1 (section 3.3), ``"kv_length"`` at the number of tokens before it, visual tokens counted one by one.
    """
    prefix, following = mrope_index(input_ids, attention_mask, media, merge_size)
    if position_scheme == "kv_length":
        following = attention_mask.sum(dim=-1)
    elif position_scheme != "mrope":
        raise ValueError(f"position_scheme={position_scheme!r} is unknown. Use 'mrope' or 'kv_length'.")
    ahead = following.unsqueeze(1) + torch.arange(num_ahead, device=input_ids.device)
    return torch.cat([prefix, ahead.expand(len(prefix), -1, -1)], dim=-1)


def _offsets_within_media(is_media: Tensor, kind: Media, merge_size: int) -> tuple[Tensor, Tensor]:
    """Offsets (3, B*T) of media tokens from the start of their item, and spans (B*T,) on its last token."""
    assert kind.grid_thw is not None
    grid_thw = kind.grid_thw.to(is_media.device)
    if kind.frames_apart:
        sides = grid_thw[:, 1:].repeat_interleave(grid_thw[:, 0], dim=0)
        grid_thw = torch.nn.functional.pad(sides, (1, 0), value=1)
    time_step = torch.ones_like(grid_thw[:, 0]) if kind.time_step is None else kind.time_step.to(grid_thw.device)
    time, height, width = (grid_thw // grid_thw.new_tensor([1, merge_size, merge_size])).unbind(-1)
    sizes = time * height * width
    ends = sizes.cumsum(0)
    rank = is_media.long().cumsum(0) - 1
    item = torch.searchsorted(ends, rank.clamp(min=0), right=True).clamp(max=sizes.shape[0] - 1)
    index = rank - (ends - sizes)[item]
    area = (height * width)[item]
    seconds = (index // area * time_step[item]).long()
    offsets = torch.stack([seconds, index % area // width[item], index % width[item]])
    last = torch.stack([((time - 1) * time_step).long(), height - 1, width - 1]).amax(0)
    # The whole span is paid on the last token, so that every token of an item counts from the item's start.
    spans = torch.where(index == sizes[item] - 1, last[item] + 1, 0)
    return offsets * is_media, spans * is_media

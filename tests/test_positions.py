"""Positions: the released checkpoint's table, and a property test against counting."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from plume.positions_plume import Media, mrope_index, rollout_positions
from reference import count_positions

IMAGE, VIDEO, TEXT = 1, 2, 3
TEXT_TOKENS = 97  # the released prompt around a 14-token question, without media
BEFORE_MEDIA = 15  # system turn, "user\n" and <|vision_start|>
# Input, grid in patches, prefix length, M-RoPE at <slt>, first latent and suffix position by scheme (K = 8).
GOLDEN = [
    ("no image", None, None, 97, 96, 97, 97, 105, 105),
    ("28x28", IMAGE, (1, 2, 2), 101, 100, 101, 101, 109, 109),
    ("56x56", IMAGE, (1, 4, 4), 104, 101, 102, 104, 110, 112),
    ("448x448", IMAGE, (1, 32, 32), 356, 115, 116, 356, 124, 364),
    ("8 frames of 336x336", VIDEO, (4, 24, 24), 676, 111, 112, 676, 120, 684),
    ("1344x1344", IMAGE, (1, 96, 96), 2404, 147, 148, 2404, 156, 2412),
]


@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize("row", GOLDEN, ids=[row[0] for row in GOLDEN])
def test_positions_equal_the_released_checkpoint_s(row, padding):
    _, kind, grid, length, at_start, mrope_latent, kv_latent, mrope_suffix, kv_suffix = row
    ids = [TEXT] * TEXT_TOKENS
    if grid is not None:
        # Vision start and end and one newline join the media tokens.
        ids = [TEXT] * BEFORE_MEDIA + [kind] * (grid[0] * grid[1] * grid[2] // 4) + [TEXT] * (TEXT_TOKENS - 12)
    assert len(ids) == length
    input_ids = torch.tensor([[0] * padding + ids])
    mask = torch.tensor([[0] * padding + [1] * length])
    media = [Media(token, None, torch.tensor([grid]) if token == kind else None) for token in (IMAGE, VIDEO)]
    for scheme, latent, suffix in (("mrope", mrope_latent, mrope_suffix), ("kv_length", kv_latent, kv_suffix)):
        positions = rollout_positions(input_ids, mask, media, 2, 8 + 5, scheme)
        for axis in positions:
            ahead = axis[0, padding + length :].tolist()
            assert axis[0, padding + length - 1] == at_start
            assert ahead[:8] == list(range(latent, latent + 8))
            assert ahead[8:] == list(range(suffix, suffix + 5))


def test_text_after_a_long_video_continues_after_its_last_frame():
    """t = 4 frames of 2x2 tokens after 3 text tokens: the reference values of the Qwen2-VL release."""
    ids = torch.tensor([[TEXT] * 3 + [VIDEO] * 16 + [TEXT] * 4])
    positions, following = mrope_index(ids, torch.ones_like(ids), [Media(VIDEO, None, torch.tensor([[4, 4, 4]]))], 2)
    assert positions[0, 0].tolist() == [0, 1, 2, *[3] * 4, *[4] * 4, *[5] * 4, *[6] * 4, 7, 8, 9, 10]
    assert positions[1, 0].tolist() == [0, 1, 2, *[3, 3, 4, 4] * 4, 7, 8, 9, 10]
    assert positions[2, 0].tolist() == [0, 1, 2, *[3, 4, 3, 4] * 4, 7, 8, 9, 10]
    assert following.tolist() == [11]


pieces = st.lists(
    st.one_of(
        st.just(None),
        st.tuples(st.just(IMAGE), st.just(1), st.integers(1, 3), st.integers(1, 3)),
        st.tuples(st.just(VIDEO), st.integers(1, 4), st.integers(1, 2), st.integers(1, 3)),
    ),
    min_size=1,
    max_size=6,
)


@given(rows=st.lists(pieces, min_size=1, max_size=4))
def test_positions_equal_counting_token_by_token(rows):
    """Any batch of interleaved texts, images and videos, adjacent media included, under left padding."""
    expected, encoded = [], []
    grids: dict[int, list] = {IMAGE: [], VIDEO: []}
    for row in rows:
        ids, own = [], {IMAGE: [], VIDEO: []}
        for piece in row:
            if piece is None:
                ids.append(TEXT)
            else:
                kind, t, h, w = piece
                ids += [kind] * (t * h * w)
                own[kind].append((t, 2 * h, 2 * w))
        encoded.append(ids)
        expected.append(count_positions(ids, own, (IMAGE, VIDEO)))
        for kind, found in own.items():
            grids[kind] += found
    width = max(map(len, encoded))
    input_ids = torch.tensor([[0] * (width - len(ids)) + ids for ids in encoded])
    mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in encoded])
    media = [Media(kind, None, torch.tensor(found) if found else None) for kind, found in grids.items()]
    positions, following = mrope_index(input_ids, mask, media, 2)
    for row, (counted, next_position) in enumerate(expected):
        assert positions[:, row, width - len(counted) :].T.tolist() == [list(position) for position in counted]
        assert following[row] == next_position

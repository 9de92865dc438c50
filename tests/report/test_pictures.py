"""Block maps against the token-exact mask, and the pictures made of them."""

from __future__ import annotations

import io
import tracemalloc
from collections.abc import Callable

import imageio.v2 as imageio
import numpy as np
import pytest
import torch

from vidaccel.layout import TokenLayout
from vidaccel.plan import BlockMask
from vidaccel.report import mask_picture
from vidaccel.report.pictures import block_map

Maker = Callable[..., BlockMask]


def random_mask(patterns: int, queries: int, keys: int, query_block: int, key_block: int, seed: int) -> BlockMask:
    shape = (patterns, -(-queries // query_block), -(-keys // key_block))
    blocks = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.4
    blocks[0, 1] = False
    return BlockMask.from_blocks(blocks, query_block, key_block, queries, keys)


@pytest.mark.parametrize("max_cells", [512, 7, 3, 1])
@pytest.mark.parametrize("pattern", [0, 2])
def test_block_map_is_the_mean_of_the_token_mask(max_cells: int, pattern: int) -> None:
    mask = random_mask(3, queries=203, keys=181, query_block=16, key_block=12, seed=1)
    cells, height, width = block_map(mask, pattern, max_cells)
    assert max(cells.shape) <= max_cells and height % 16 == 0 and width % 12 == 0
    tokens = mask.to_dense()[pattern].double().numpy()
    expected = [[tokens[row : row + height, column : column + width].mean() for column in range(0, 181, width)]
                for row in range(0, 203, height)]
    np.testing.assert_allclose(cells, expected, atol=1e-12)


def test_block_map_shows_ranges_that_end_within_a_block() -> None:
    offsets, ranges = torch.tensor([[0, 2, 3]]).int(), torch.tensor([[0, 3], [10, 17], [5, 6]]).int()
    cells, _, _ = block_map(BlockMask(offsets, ranges, 16, 8, 20, 20))
    np.testing.assert_allclose(cells, [[3 / 8, 6 / 8, 1 / 4], [1 / 8, 0, 0]])


def test_picture_has_the_size_asked_for_and_shows_the_mask(frame_window_mask: Maker) -> None:
    layout = TokenLayout(13, 9, 13)
    mask = frame_window_mask(layout, 16)
    sparse = imageio.imread(io.BytesIO(mask_picture(mask, layout, size=800)))
    full = imageio.imread(io.BytesIO(mask_picture(BlockMask.full(1521, 1521, 16, 16), layout, size=800)))
    assert sparse.shape[:2] == (688, 800) and (sparse[0, 0, :3] == 255).all()

    def dark(picture: np.ndarray) -> float:
        return float((abs(picture[..., :3].astype(int) - (29, 79, 124)).sum(axis=2) < 12).sum())

    kept = float(block_map(mask)[0].mean())
    assert dark(sparse) / dark(full) == pytest.approx(kept, abs=0.05)


def test_picture_is_the_same_each_time(frame_window_mask: Maker) -> None:
    layout = TokenLayout(5, 4, 6, text_before=7, text_after=9)
    mask = frame_window_mask(layout, 8)
    assert mask_picture(mask, layout) == mask_picture(mask, layout)


def test_large_mask_needs_little_memory(frame_window_mask: Maker) -> None:
    layout = TokenLayout(33, 45, 80, text_after=256)
    mask = frame_window_mask(layout, 128, reach=3)
    mask_picture(mask, layout)
    tracemalloc.start()
    picture = mask_picture(mask, layout)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert picture.startswith(b"\x89PNG") and peak < 64 * 2**20


@pytest.mark.parametrize(("layout", "options", "message"), [
    (TokenLayout(2, 3, 4), {}, "does not belong to the grid 2x3x4 of 24 tokens"),
    (TokenLayout(13, 9, 13), {"pattern": 1}, "pattern 1 is not one of the mask's 1"),
    (TokenLayout(13, 9, 13), {"size": 20}, "200 is the least"),
])
def test_wrong_arguments_are_named(layout: TokenLayout, options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mask_picture(BlockMask.full(1521, 1521, 16, 16), layout, **options)

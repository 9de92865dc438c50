"""Patterns made from maps whose structure is known."""

from __future__ import annotations

import itertools

import torch

from vidaccel.calibration import learned
from vidaccel.calibration.grid import Grid
from vidaccel.calibration.learned import cells, decay, key_rows, stripes
from vidaccel.layout import TokenLayout
from vidaccel.patterns import density_of, orders
from vidaccel.patterns.bits import from_base64, from_hex
from vidaccel.patterns.cells import Cells
from vidaccel.patterns.decay import Decay
from vidaccel.patterns.stripes import Stripes

LAYOUT, BLOCK, SIDE = TokenLayout(8, 8, 8), 8, 64
GRID = Grid(LAYOUT, 4, BLOCK, (1, 4))


def test_the_order_of_a_head_is_found() -> None:
    """A head that follows time has its mass on the diagonal where frames run fastest, and nowhere in other orders."""
    mass = torch.full((6, SIDE, SIDE), 1 / SIDE, dtype=torch.float64)
    at = orders.AXES.index("WHF")
    mass[at] = 0.5 * torch.eye(SIDE) + 0.5 / SIDE
    found = cells(mass, GRID)
    assert len(found) == learned.BEST_ORDERS * len(learned.LEVELS)
    for level, best in zip(learned.LEVELS, found[:: learned.BEST_ORDERS], strict=True):
        assert isinstance(best, Cells) and best.axes == "WHF"
        assert abs(density_of(best, LAYOUT, BLOCK) - level) < 0.02
        assert from_base64(best.cells, SIDE, SIDE).diagonal().all()


def test_the_reach_of_a_head_is_found_and_is_the_same_on_other_grids() -> None:
    """A head of near rows and columns in all frames: its blocks are the nearest ones wherever they are counted."""
    near = torch.exp2(-(torch.arange(8)[:, None] - torch.arange(8)).abs().double())
    mass = torch.cat([torch.ones(64, dtype=torch.float64), near.flatten(), near.flatten()])
    found = decay(mass, GRID)
    names = [*orders.AXES, "tile:2x2x2"]
    for each, (level, name) in zip(found, itertools.product(learned.LEVELS, names), strict=True):
        assert isinstance(each, Decay) and each.density == level and each.order == name
        assert density_of(each, LAYOUT, BLOCK) <= max(each.density, 1 / 64) + 1e-6
    # A block is the eight frames of one place: those of the same and of neighbouring places are kept.
    best = next(each for each in found if each.order in ("HWF", "WHF") and each.density == 0.05)
    for layout in (LAYOUT, TokenLayout(8, 12, 10)):
        kept = best.blocks(layout, BLOCK)
        place = orders.video_order(layout, best.order)[::8]
        row, column = place // layout.width % layout.height, place % layout.width
        away = (row[:, None] - row).abs() + (column[:, None] - column).abs()
        assert away[kept].max() <= 2 and kept[away == 0].all()


def test_the_keys_of_a_head_are_found() -> None:
    keys = torch.rand(8, 8, 8, dtype=torch.float64)
    keys[2, 3], keys[5, 1] = 50.0, 40.0
    rows = key_rows(keys.flatten(), LAYOUT)
    torch.testing.assert_close(rows, keys.sum(-1))
    found = stripes(rows, GRID)
    assert len(found) == 2 * len(learned.LEVELS)
    for number, each in enumerate(found):
        assert isinstance(each, Stripes)
        level = learned.LEVELS[number // 2]
        kept = from_hex(each.cells, 8, 8)
        assert kept[2, 3] and (kept[5, 1] or level < 2 / 64 * 2)
        assert density_of(each, LAYOUT, BLOCK) < level + 0.05


def test_rows_finer_than_stripes_are_summed() -> None:
    layout = TokenLayout(2, 130, 1)
    rows = key_rows(torch.ones(260, dtype=torch.float64), layout)
    assert rows.shape == (2, 64) and float(rows.sum()) == 260 and rows.min() == 2

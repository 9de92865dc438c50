"""Patterns made from maps whose structure is known."""

from __future__ import annotations

import torch

from vidaccel.calibration import learned
from vidaccel.calibration.learned import cells, key_rows, stripes
from vidaccel.layout import TokenLayout
from vidaccel.patterns import density_of, orders
from vidaccel.patterns.bits import from_base64, from_hex
from vidaccel.patterns.cells import Cells
from vidaccel.patterns.stripes import Stripes

LAYOUT, BLOCK, SIDE = TokenLayout(8, 8, 8), 8, 64


def test_the_order_of_a_head_is_found() -> None:
    """A head that follows time has its mass on the diagonal where frames run fastest, and nowhere in other orders."""
    mass = torch.full((6, SIDE, SIDE), 1 / SIDE, dtype=torch.float64)
    at = orders.AXES.index("WHF")
    mass[at] = 0.5 * torch.eye(SIDE) + 0.5 / SIDE
    found = cells(mass, LAYOUT, BLOCK)
    assert len(found) == learned.BEST_ORDERS * len(learned.LEVELS)
    for level, best in zip(learned.LEVELS, found[:: learned.BEST_ORDERS], strict=True):
        assert isinstance(best, Cells) and best.axes == "WHF"
        assert abs(density_of(best, LAYOUT, BLOCK) - level) < 0.02
        assert from_base64(best.cells, SIDE, SIDE).diagonal().all()


def test_the_keys_of_a_head_are_found() -> None:
    keys = torch.rand(8, 8, 8, dtype=torch.float64)
    keys[2, 3], keys[5, 1] = 50.0, 40.0
    rows = key_rows(keys.flatten(), LAYOUT)
    torch.testing.assert_close(rows, keys.sum(-1))
    found = stripes(rows, LAYOUT, BLOCK)
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

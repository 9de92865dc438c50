"""Pictures of block maps and of plans."""

from __future__ import annotations

import imageio.v3 as iio
import numpy as np
import pytest
import torch

from vidaccel.layout import TokenLayout
from vidaccel.patterns import plan_of
from vidaccel.patterns.bands import Band
from vidaccel.patterns.simple import Dense, Skip
from vidaccel.plan import AttentionPlan, BlockMask
from vidaccel.report.patterns import patterns_picture, plan_maps

LAYOUT = TokenLayout(5, 3, 7)


def dark(picture: bytes) -> float:
    return float((iio.imread(picture)[..., 0] < 128).mean())


def test_what_is_computed_is_dark() -> None:
    thin, half, full = (np.tri(9, k=k) > 0 for k in (-5, 0, 9))
    shares = [dark(patterns_picture([("a name", each)])) for each in (thin, half, full)]
    assert shares == sorted(shares) and shares[0] < shares[1] < shares[2]
    assert dark(patterns_picture([("a", torch.ones(300, 300, dtype=torch.bool))])) > 0.4


def test_maps_stand_in_rows() -> None:
    one, seven = (iio.imread(patterns_picture([("x", np.eye(3))] * n, "title", columns=3)).shape for n in (1, 7))
    assert seven[0] > 2 * one[0] and seven[1] > 2 * one[1]
    with pytest.raises(ValueError, match="no block map"):
        patterns_picture([])


def test_a_plan_has_a_map_for_each_distinct_head() -> None:
    heads = [Band(0.1), Skip(), Band(0.1), Band(0.1, "HWF"), Dense()]
    maps = plan_maps(plan_of(heads, LAYOUT, 4))
    assert [name for name, _ in maps] == ["heads 0, 2", "head 1", "head 3", "head 4"]
    for (_, blocks), each in zip(maps, (Band(0.1), Skip(), Band(0.1, "HWF"), Dense()), strict=True):
        assert blocks.tolist() == each.blocks(LAYOUT, 4).tolist()


def test_heads_that_share_a_plan_are_one_map() -> None:
    [(name, blocks)] = plan_maps(plan_of([Band(0.1, "HWF")] * 3, LAYOUT, 4))
    assert name == "all heads" and blocks.tolist() == Band(0.1, "HWF").blocks(LAYOUT, 4).tolist()
    assert plan_maps(AttentionPlan(None))[0][1].tolist() == [[True]]
    many = plan_maps(plan_of([Band(0.1)] * 8 + [Skip()], LAYOUT, 4))
    assert many[0][0] == "8 heads: 0, 1, 2, 3, 4, 5, ..."


def test_a_map_keeps_the_blocks_that_a_range_touches() -> None:
    mask = BlockMask(torch.tensor([[0, 1, 3]], dtype=torch.int32),
                     torch.tensor([[3, 5], [0, 1], [2, 4]], dtype=torch.int32), 4, 4, 8, 10)  # fmt: skip
    assert plan_maps(AttentionPlan(mask))[0][1].tolist() == [[True, True, False], [True, False, False]]

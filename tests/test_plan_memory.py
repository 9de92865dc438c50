"""Masks are made and counted some patterns and ranges at a time: the same result, and little memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.live import Live
from tests.planning.no_sync import NoSync
from tests.test_summary import LAYOUTS, pairs_by_hand, random_plan
from vidaccel import mask as mask_module
from vidaccel import plan as plan_module
from vidaccel.layout import TokenLayout
from vidaccel.mask import BlockMask
from vidaccel.plan import AttentionPlan

WAN_720P = TokenLayout(21, 45, 80)


def with_slack(plan: AttentionPlan, room: int) -> AttentionPlan:
    """The same plan with a mask as one that was made on a GPU."""
    mask = plan.mask
    assert mask is not None
    ranges = torch.nn.functional.pad(mask.ranges, (0, 0, 0, room))
    roomy = BlockMask(mask.offsets, ranges, mask.query_block, mask.key_block, mask.queries, mask.keys)
    return AttentionPlan(roomy, plan.query_order, plan.key_order)


def counted(plan: AttentionPlan, layout: TokenLayout) -> Tensor:
    """All densities of a plan that was not counted yet."""
    fresh = with_slack(plan, 0)
    return torch.cat([fresh.densities(layout), fresh.video_densities(layout)])


@pytest.mark.parametrize(("patterns", "orders", "keys"), [(1, 0, 0), (6, 6, 6), (1, 6, 6), (6, 3, 3), (2, 6, 2)])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_densities_do_not_depend_on_how_many_ranges_are_counted_at_a_time(
    layout: TokenLayout, patterns: int, orders: int, keys: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, lanes = random_plan(layout, patterns, orders, keys), max(patterns, orders, keys)
    whole = counted(plan, layout)
    torch.testing.assert_close(whole[3:], pairs_by_hand(plan, layout, lanes))
    assert plan.mask is not None and whole[0] == pytest.approx(float(plan.mask.to_dense().double().mean()))
    for chunk in (1, 7):
        monkeypatch.setattr(plan_module, "CHUNK", chunk)
        assert torch.equal(counted(plan, layout), whole)
        assert torch.equal(counted(with_slack(plan, 10), layout), whole)


@pytest.mark.parametrize("batch", [1, 2])
def test_counting_takes_little_memory(batch: int) -> None:
    """At a real size, with room for as many ranges as clusters may need; nothing waits."""
    lanes, tiles = 40 * batch, -(-WAN_720P.tokens // 128)
    offsets, ranges, order = (
        torch.empty(size, dtype=torch.int32, device="meta")
        for size in ((lanes, tiles + 1), (lanes * tiles * 496, 2), (lanes, WAN_720P.tokens))
    )
    plan = AttentionPlan(BlockMask(offsets, ranges, 128, 64, WAN_720P.tokens, WAN_720P.tokens), order, order)
    with Live(offsets, ranges, order) as live, NoSync():
        plan.densities(WAN_720P)
    assert live.most < 64e6, f"{live.most / 1e6:.0f} MB"


@pytest.mark.parametrize("density", [0.0, 0.4, 1.0])
def test_ranges_do_not_depend_on_how_many_patterns_are_made_at_a_time(
    density: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = torch.rand(5, 4, 7, generator=torch.Generator().manual_seed(0)) < density
    whole = BlockMask.from_blocks(blocks, 16, 8, 60, 50)
    for cells in (1, 2 * 4 * 7, 3 * 4 * 7):
        monkeypatch.setattr(mask_module, "RUN", cells)
        parts = BlockMask.from_blocks(blocks, 16, 8, 60, 50)
        parts.validate()
        assert torch.equal(parts.ranges, whole.ranges) and torch.equal(parts.offsets, whole.offsets)


def test_a_mask_of_many_blocks_takes_little_besides_itself() -> None:
    tiles = -(-WAN_720P.tokens // 64)
    blocks = torch.empty(40, tiles, tiles, dtype=torch.bool, device="meta")
    with Live(blocks) as live:
        mask = BlockMask.from_blocks(blocks, 64, 64, WAN_720P.tokens, WAN_720P.tokens)
    assert live.most - mask.nbytes < 128e6, f"{live.most / 1e6:.0f} MB for a mask of {mask.nbytes / 1e6:.0f} MB"

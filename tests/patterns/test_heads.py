"""Plans of layers whose heads have patterns of their own, and masks picked from others."""

from __future__ import annotations

import pytest
import torch

from vidaccel.layout import TokenLayout
from vidaccel.mask import BlockMask
from vidaccel.patterns import PATTERNS, at_density, pattern, plan_of
from vidaccel.patterns.bands import Band
from vidaccel.patterns.simple import Dense, Skip

LAYOUT = TokenLayout(5, 3, 7, text_before=3, text_after=2)


def random_mask(patterns: int, seed: int) -> BlockMask:
    blocks = torch.rand(patterns, 9, 9, generator=torch.Generator().manual_seed(seed)) < 0.4
    blocks[0] = False
    return BlockMask.from_blocks(blocks, 4, 4, 35, 34)


def test_stacked_and_picked_masks_hold_the_same_patterns():
    masks = [random_mask(3, 0), random_mask(2, 1)]
    both = BlockMask.stack(masks)
    both.validate()
    dense = torch.cat([mask.to_dense() for mask in masks])
    assert torch.equal(both.to_dense(), dense)
    index = torch.tensor([4, 0, 0, 2, 4, 1])
    picked = both.pick(index)
    picked.validate()
    assert torch.equal(picked.to_dense(), dense[index])


def test_masks_that_do_not_fit_are_not_stacked():
    with pytest.raises(ValueError, match="does not fit"):
        BlockMask.stack([random_mask(1, 0), BlockMask.full(35, 34, 8, 8)])


def test_each_head_has_its_own_pattern():
    heads = [Band(0.1), Band(0.05, "HWF"), Skip(), Band(0.1), Dense()]
    plan = plan_of(heads, LAYOUT, 4)
    assert plan.mask is not None and plan.query_order is not None
    plan.mask.validate()
    kept = plan.mask.to_dense()
    for head, each in enumerate(heads):
        blocks = each.blocks(LAYOUT, 4)
        expanded = blocks.repeat_interleave(4, 0).repeat_interleave(4, 1)[: LAYOUT.tokens, : LAYOUT.tokens]
        assert torch.equal(kept[head], expanded)
        assert plan.query_order[head].sort().values.tolist() == list(range(LAYOUT.tokens))
    assert plan.query_order[0].tolist() == list(range(LAYOUT.tokens))


def test_heads_of_one_pattern_share_it():
    plan = plan_of([Band(0.1)] * 4, LAYOUT, 4)
    assert plan.mask is not None and plan.mask.patterns == 1 and plan.query_order is None
    assert plan_of([Dense(), Dense()], LAYOUT, 4).mask is None


def test_a_density_is_met():
    found, density = at_density(Band.scaled, TokenLayout(21, 30, 52), 128, 0.25)
    assert abs(density - 0.25) < 0.005
    assert plan_of([found], TokenLayout(21, 30, 52), 128).density(TokenLayout(21, 30, 52)).video_density == density


@pytest.mark.parametrize("name", PATTERNS)
def test_unknown_and_missing_fields_are_refused(name):
    with pytest.raises(ValueError, match="has no 'extra'"):
        pattern({"name": name, "extra": 1})


def test_json_round_trip():
    each = Band(0.25, "HWF")
    assert pattern(each.to_dict()) == each
    with pytest.raises(ValueError, match="needs 'width'"):
        pattern({"name": "band"})
    with pytest.raises(ValueError, match="unknown pattern 'nothing'; choose .*band"):
        pattern({"name": "nothing"})

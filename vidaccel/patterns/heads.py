"""One plan for a layer from the patterns of its heads."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vidaccel.layout import TokenLayout
from vidaccel.mask import BlockMask
from vidaccel.patterns import cover, orders
from vidaccel.patterns.base import Pattern
from vidaccel.patterns.simple import Dense
from vidaccel.plan import AttentionPlan

KEPT = 4096
MASKS_KEPT = 256
"""Of a large grid, some 100 KB each: heads of many layers have equal patterns."""
SOLVER_STEPS = 16
DIGITS = 5
"""Of a solved size: enough for a block of 128 in a million tokens, and short in a profile."""


@functools.lru_cache(MASKS_KEPT)
def mask_of(pattern: Pattern, layout: TokenLayout, block: int) -> BlockMask:
    """The mask of one pattern in the positions of its order, in square blocks of `block` tokens."""
    return BlockMask.from_blocks(pattern.blocks(layout, block)[None], block, block, layout.tokens, layout.tokens)


@functools.lru_cache(KEPT)
def density_of(pattern: Pattern, layout: TokenLayout, block: int) -> float:
    """Video density of a pattern on a grid, in blocks of `block` tokens."""
    return cover.video_density(pattern.blocks(layout, block), orders.placed(layout, pattern.order), block)


def plan_of(heads: Sequence[Pattern], layout: TokenLayout, block: int) -> AttentionPlan:
    """The plan of a layer whose head ``h`` has pattern ``heads[h]``; of one pattern, a plan that all heads share.

    Raises:
        ValueError: no pattern.
    """
    if not heads:
        raise ValueError("a layer's plan needs the pattern of at least one head")
    distinct = list(dict.fromkeys(heads))
    if distinct == [Dense()]:
        return AttentionPlan(None)
    index = torch.tensor([distinct.index(each) for each in heads])
    mask = BlockMask.stack([mask_of(each, layout, block) for each in distinct])
    order = _order([each.order for each in distinct], layout)
    if len(distinct) > 1:
        mask = mask.pick(index)
        order = order[index] if order is not None and len(order) > 1 else order
    return AttentionPlan(mask, order, order)


def _order(names: Sequence[str], layout: TokenLayout) -> Tensor | None:
    """A row for each name; one row where all are the same, None where that is the natural order."""
    if len(set(names)) == 1:
        row = orders.sequence(layout, names[0])
        return None if row is None else row[None]
    natural = torch.arange(layout.tokens, dtype=torch.int32)
    rows = [orders.sequence(layout, name) for name in names]
    return torch.stack([natural if row is None else row for row in rows])


def at_density(
    make: Callable[[float], Pattern], layout: TokenLayout, block: int, density: float
) -> tuple[Pattern, float]:
    """The pattern among ``make(0)`` to ``make(1)`` whose video density on a grid is nearest to `density`, and that.

    Args:
        make: such as `Pattern.scaled`; what it keeps never shrinks as its argument grows.
        density: in (0, 1].

    Raises:
        ValueError: a density out of range.
    """
    if not 0 < density <= 1:
        raise ValueError(f"density {density} is outside (0, 1]")
    low, high = 0.0, 1.0
    for _ in range(SOLVER_STEPS):
        middle = round((low + high) / 2, DIGITS)
        low, high = (middle, high) if density_of(make(middle), layout, block) <= density else (low, middle)
    found = [(make(share), density_of(make(share), layout, block)) for share in (low, high)]
    return min(found, key=lambda each: abs(each[1] - density))

"""One budget over heads that several processes have: the same blocks as where one process has all heads.

Nothing is gathered but sums. The border score is found by its bits, four at a time, each by one exchange of what blocks
of the sixteen next values cost; ties at the border go to the lower head, as in one process. All sums are of whole
numbers, so that every process finds the very same border. Nothing waits for a GPU but the exchanges themselves.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vidaccel.site import Dealt

BITS, KEY = 4, 32
"""Bits of a score that one exchange settles, and all of them."""


def total(values: Tensor, heads: Dealt) -> Tensor:
    """The sum over the processes that have other heads; of integers, exact."""
    return heads.ranks.gather(values[None], 0).sum(0)


def cut(scores: Tensor, forced: Tensor, costs: Tensor | None, budget: Tensor, heads: Dealt) -> Tensor:
    """The best blocks of each group that the budget pays for besides those that are forced.

    Args:
        scores: fp32 ``[groups * heads here, tiles, blocks]``.
        forced: bool of that shape, kept in any case and paid for first.
        costs: of blocks, integers of that shape; None: all cost 1.
        budget: of each group for the heads of all processes, int64 ``[groups]``.
        heads: which heads are here.

    Returns:
        bool of that shape.
    """
    shape = (len(budget), len(heads.own), -1)
    first, key = forced.reshape(shape), _keys(scores.reshape(shape))
    cost = torch.ones_like(key) if costs is None else costs.reshape(shape).long()
    spent = total((cost * first).sum((1, 2)), heads)
    cost = cost.masked_fill(first, 0)
    border, spent = _border(key, cost, spent, budget, heads)
    border = border[:, None, None]
    tied = key == border
    at_border = cost * tied
    before = heads.gather(at_border.sum(2), 1)
    before = heads.here(before.cumsum(1) - before, 1)[:, :, None]
    upto = before + at_border.cumsum(2) + spent[:, None, None]
    kept = first | (key > border) | (tied & (upto <= budget[:, None, None]))
    return kept.view(scores.shape)


def _border(key: Tensor, cost: Tensor, spent: Tensor, budget: Tensor, heads: Dealt) -> tuple[Tensor, Tensor]:
    """The key of each group at which the budget ends, and what is spent on what is above it: int64 ``[groups]``."""
    prefix, groups, width = torch.zeros_like(spent), len(spent), 1 << BITS
    for shift in range(KEY - BITS, -1, -BITS):
        within = (key >> shift + BITS) == prefix[:, None, None]
        digit = (key >> shift) & (width - 1)
        here = cost.new_zeros(groups, width).scatter_add_(1, digit.flatten(1), (cost * within).flatten(1))
        # From the highest digit down.
        upto = total(here, heads).flip(1).cumsum(1) + spent[:, None]
        paid = (upto <= budget[:, None]).sum(1).clamp_(max=width - 1)
        prefix = (prefix << BITS) + (width - 1 - paid)
        spent = torch.cat([spent[:, None], upto], 1).gather(1, paid[:, None])[:, 0]
    return prefix, spent


def _keys(scores: Tensor) -> Tensor:
    """Numbers in the order of fp32 scores, of `KEY` bits: int64; NaN is as ``-inf``, and both zeros are one."""
    bits = torch.where(scores.isnan(), float("-inf"), scores).add(0.0).contiguous().view(torch.int32).long()
    return torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits) + (1 << KEY - 1)

"""Which keys single queries attend to under a plan: the rows of its mask, without the others."""

from __future__ import annotations

import torch
from torch import Tensor

from vidaccel.plan import AttentionPlan, BlockMask
from vidaccel.planning import dispatch


def keys_of_rows(plan: AttentionPlan | BlockMask, rows: Tensor, lanes: range | None = None) -> Tensor:
    """Whether some queries attend to each key, from the plan's ranges and orders; extra keys are not keys.

    Args:
        plan: with a mask, on the device of `rows`.
        rows: int64 ``[rows]``, places of queries in the natural order, each any number of times.
        lanes: heads of batch rows (batch slowest) to do this for; by default as many as the plan tells apart.

    Returns:
        bool ``[lanes, rows, keys]`` in the natural order of keys. The kernel needs no memory but this: it walks the
        ranges of these rows only.

    Raises:
        ValueError: a dense plan, or rows that are not int64 ``[rows]``.
    """
    plan = with_mask(plan)
    if rows.dtype != torch.int64 or rows.ndim != 1:
        raise ValueError(f"rows are int64 [rows], got {rows.dtype} {list(rows.shape)}")
    assert plan.mask is not None
    lanes = range(patterns_of(plan)) if lanes is None else lanes
    tiles = tiles_of_rows(plan, rows, lanes)
    if not dispatch.uses_triton(rows, plan.mask.ranges):
        return torch.stack([_keys(plan, lane, tiles[at % len(tiles)]) for at, lane in enumerate(lanes)])
    marks = torch.zeros(len(lanes), len(rows), plan.mask.keys, dtype=torch.uint8, device=rows.device)
    dispatch.module("sampled").prepare_marks(plan, tiles, marks, lanes.start, bit=1).run()
    return marks.view(torch.bool)


def with_mask(plan: AttentionPlan | BlockMask) -> AttentionPlan:
    """The plan, or one of a bare mask.

    Raises:
        ValueError: it is dense.
    """
    plan = AttentionPlan(plan) if isinstance(plan, BlockMask) else plan
    if plan.mask is None:
        raise ValueError("a dense plan (mask=None) attends to every key: there is nothing to measure")
    return plan


def patterns_of(plan: AttentionPlan) -> int:
    """Lanes that the plan's mask and orders tell apart: 1, heads or batch * heads."""
    assert plan.mask is not None
    return max([plan.mask.patterns, *(len(each) for each in (plan.query_order, plan.key_order) if each is not None)])


def tiles_of_rows(plan: AttentionPlan, rows: Tensor, lanes: range) -> Tensor:
    """The query tile of each row: int64 ``[lanes, rows]``, or ``[1, rows]`` where lanes share an order."""
    assert plan.mask is not None
    order = plan.query_order
    if order is None:
        return rows[None] // plan.mask.query_block
    if len(order) > 1:
        lane = torch.arange(lanes.start, lanes.stop, device=order.device)
        order = order[lane % len(order)]
    position = torch.empty_like(order)
    places = torch.arange(order.shape[1], dtype=order.dtype, device=order.device)
    position.scatter_(1, order.long(), places.expand_as(order))
    return position[:, rows].long() // plan.mask.query_block


def _keys(plan: AttentionPlan, lane: int, tiles: Tensor) -> Tensor:
    """`keys_of_rows` of one lane: steps up where ranges start, down where they end, summed along the keys."""
    mask = plan.mask
    assert mask is not None
    offsets = mask.offsets[lane % mask.patterns].long()
    ranges = mask.ranges[int(offsets[0]) : int(offsets[-1])].long()
    tile_of_range = torch.repeat_interleave(offsets.diff())
    wanted, place = tiles.unique(return_inverse=True)
    # Ranges of tiles that no row is in go to a row of their own that is cut off.
    slot = torch.full((mask.tiles,), len(wanted), device=tiles.device)
    slot[wanted] = torch.arange(len(wanted), device=tiles.device)
    steps = torch.zeros(len(wanted) + 1, mask.keys + 1, dtype=torch.int32, device=tiles.device)
    one = torch.ones_like(tile_of_range, dtype=torch.int32)
    for edge, sign in zip(ranges.unbind(1), (one, -one), strict=True):
        steps.index_put_((slot[tile_of_range], edge), sign, accumulate=True)
    kept = steps.cumsum(1)[:-1, :-1].bool()[place]
    if plan.key_order is None:
        return kept
    natural = torch.empty_like(kept)
    natural[:, plan.key_order[lane % len(plan.key_order)].long()] = kept
    return natural

"""The check before any time is taken: sampled tiles against fp64, and every element finite."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from vidaccel.plan import AttentionPlan

Inputs = tuple[Tensor, Tensor, Tensor]
"""Query, key, value ``[batch, tokens, heads, head_dim]``."""


def error(out: Tensor, inputs: Inputs, plan: AttentionPlan) -> float:
    """Relative Frobenius error of an output on the first, middle and last tile of the first and last head.

    Args:
        out: ``[batch, tokens, heads, head_dim]``, of which the first batch row is looked at.
        plan: what was to be computed; without extra keys.

    Returns:
        The error; infinity where any element of the whole output is not finite.
    """
    mask = plan.mask
    assert mask is not None and plan.extra is None
    if not bool(torch.isfinite(out).all()):
        return math.inf
    squares = total = 0.0
    for head, tile in itertools.product({0, out.shape[2] - 1}, {0, mask.tiles // 2, mask.tiles - 1}):
        rows, exact = _tile(inputs, plan, head, tile)
        squares += float((out[0, rows, head].double() - exact).square().sum())
        total += float(exact.square().sum())
    return math.sqrt(squares / total) if total else math.sqrt(squares)


def _tile(inputs: Inputs, plan: AttentionPlan, head: int, tile: int) -> tuple[Tensor, Tensor]:
    """Token numbers of a tile's queries and their outputs in fp64."""
    query, key, value = inputs
    mask = plan.mask
    assert mask is not None
    first, last = mask.offsets[head % mask.patterns, tile : tile + 2].tolist()
    ranges = mask.ranges[first:last].tolist()
    device = query.device
    places = [torch.arange(start, end, device=device) for start, end in ranges]
    rows = torch.arange(tile * mask.query_block, min((tile + 1) * mask.query_block, mask.queries), device=device)
    rows, keys = (
        _tokens(plan.query_order, head, rows),
        _tokens(plan.key_order, head, torch.cat([rows.new_zeros(0), *places])),
    )
    scores = query[0, rows, head].double() @ key[0, keys, head].double().T * query.shape[-1] ** -0.5
    return rows, torch.nan_to_num(scores.softmax(-1), nan=0.0) @ value[0, keys, head].double()


def _tokens(order: Tensor | None, head: int, positions: Tensor) -> Tensor:
    return positions if order is None else order[head % len(order)].long()[positions]

"""The attention mass of every block, from queries, keys and the log-sum-exp of each row: what an oracle would know."""

from __future__ import annotations

import torch
from torch import Tensor

from vidaccel.planning import dispatch, shapes

WORKING_BYTES = 256 << 20
"""Memory for scores in torch: query tiles are worked on in groups."""


def block_mass(
    query: Tensor,
    key: Tensor,
    lse: Tensor,
    query_block: int,
    key_block: int,
    *,
    scale: float,
    key_lengths: Tensor | None = None,
    query_order: Tensor | None = None,
    key_order: Tensor | None = None,
) -> Tensor:
    """Mean over the queries of a tile of the attention weight that they give to the keys of a block.

    AdaSpa (Xia et al. 2025) finds blocks by it, and reuses the log-sum-exp of an earlier step. The products take
    2 * N^2 * head_dim operations per head, half of dense attention, and each score is used once, where it is made.

    Args:
        query, key: ``[batch, tokens, heads, head_dim]``.
        lse: fp32 ``[batch, heads, queries]``, natural logarithm, in the queries' natural places, as
            ``kernels.attention`` returns it; a row with -inf has no weights.
        query_block, key_block: tokens.
        scale: of the scores, that of `lse`.
        key_lengths: int ``[batch]``; keys from there on, in their order, are padding.
        query_order, key_order: int32 ``[rows, tokens]`` as in an ``AttentionPlan``: blocks are then of consecutive
            positions in these orders.

    Returns:
        fp32 ``[batch * heads, query tiles, key blocks]``; with the log-sum-exp of dense attention rows sum to 1.

    Raises:
        ValueError: shapes, types or sizes that do not fit.
    """
    shapes.check_pair(query, key)
    shapes.check_block("query_block", query_block)
    shapes.check_block("key_block", key_block)
    expected = (query.shape[0], query.shape[2], query.shape[1])
    if lse.shape != expected or lse.dtype != torch.float32 or lse.device != query.device:
        raise ValueError(
            f"lse is float32 {list(expected)} on {query.device}, got {lse.dtype} {list(lse.shape)} on {lse.device}"
        )
    key_lengths = shapes.check_lengths("key_lengths", key_lengths, key)
    orders = shapes.check_order("query_order", query_order, query), shapes.check_order("key_order", key_order, key)
    if not dispatch.uses_triton(query, key, unless=shapes.no_dot(query)):
        return block_mass_reference(query, key, lse, query_block, key_block, scale, key_lengths, *orders)
    kernels, amd = dispatch.module("mass"), torch.version.hip is not None
    launch = kernels.prepare(query, key, lse, query_block, key_block, scale, key_lengths, *orders, amd=amd)
    launch.run()
    mass: Tensor = kernels.joined(launch)
    return mass


def block_mass_reference(
    query: Tensor, key: Tensor, lse: Tensor, query_block: int, key_block: int, scale: float,
    key_lengths: Tensor | None, query_order: Tensor | None, key_order: Tensor | None,
) -> Tensor:  # fmt: skip
    """The definition in torch, some query tiles of one head at a time."""
    lanes, tiles = query.shape[0] * query.shape[2], -(-query.shape[1] // query_block)
    mass = query.new_empty(lanes, tiles, -(-key.shape[1] // key_block), dtype=torch.float32)
    step = max(1, WORKING_BYTES // (12 * key.shape[1] * query_block))
    for lane in range(lanes):
        rows = shapes.states_of_lane(query, lane, query_order)
        length = shapes.length_of_lane(key_lengths, lane, key)
        columns = shapes.cleared(shapes.states_of_lane(key, lane, key_order), length)
        valid = torch.arange(len(columns), device=key.device) < length
        of_rows = lse.flatten(0, 1)[lane]
        of_rows = of_rows if query_order is None else of_rows[query_order[lane % len(query_order)].long()]
        for first in range(0, tiles, step):
            part = slice(first * query_block, (first + step) * query_block)
            norm = of_rows[part, None]
            weights = ((rows[part] @ columns.T) * scale - norm).exp()
            weights = weights.masked_fill(~valid | (norm == float("-inf")), 0.0)
            mass[lane, first : first + step] = _tile_means(weights, query_block, key_block)
    return mass


def _tile_means(weights: Tensor, query_block: int, key_block: int) -> Tensor:
    """Sum over the keys of each block, mean over the rows of each tile: ``[tiles, blocks]``."""
    rows = len(weights)
    padded: Tensor = torch.nn.functional.pad(weights, (0, -weights.shape[1] % key_block, 0, -rows % query_block))
    sums = padded.unflatten(1, (-1, key_block)).sum(2).unflatten(0, (-1, query_block)).sum(1)
    counts = torch.full((len(sums), 1), query_block, device=weights.device)
    counts[-1] = rows - (len(sums) - 1) * query_block
    means: Tensor = sums / counts
    return means

"""The kernel of `mass`: one product per pair of tiles, whose weights are summed where they are made."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from vidaccel.planning.shapes import power_of_two, read_in_place, strides
from vidaccel.planning.triton_slots import Slots, positions, tile_mask
from vidaccel.triton_launch import Launch

NVIDIA = {"BLOCK_Q": 128, "BLOCK_K": 64}, {"num_warps": 8, "num_stages": 2}
"""Constants and options."""
AMD = {"BLOCK_Q": 64, "BLOCK_K": 64}, {"num_warps": 4, "num_stages": 1}
"""On gfx942 the larger tile spills scalar registers, and so does loading ahead."""


def prepare(
    query: Tensor, key: Tensor, lse: Tensor, query_block: int, key_block: int, scale: float,
    key_lengths: Tensor | None, query_order: Tensor | None, key_order: Tensor | None, *, amd: bool,
) -> Launch:  # fmt: skip
    """The launch for checked inputs; `joined` makes the result of it."""
    tile, options = AMD if amd else NVIDIA
    query, key = read_in_place(query), read_in_place(key)
    batch, queries, heads, head_dim = query.shape
    rows = Slots.of(query_block, queries, tile["BLOCK_Q"])
    columns = Slots.of(key_block, key.shape[1], tile["BLOCK_K"])
    lanes = batch * heads
    arguments = {
        "query": query, "key": key, "lse": lse.contiguous(), "query_order": query_order, "key_order": key_order,
        "mass": query.new_empty(lanes, rows.blocks, rows.parts, columns.blocks, columns.parts, dtype=torch.float32),
        "lengths": key_lengths, "scale_log2": scale * math.log2(math.e),
        **strides("q", query), **strides("k", key), "queries": queries, "keys": key.shape[1], "heads": heads,
        "query_rows": 1 if query_order is None else len(query_order),
        "key_rows": 1 if key_order is None else len(key_order),
        "query_block": query_block, "key_block": key_block,
        "row_groups": rows.groups, "column_groups": columns.groups,
    }  # fmt: skip
    constants = {
        "HEAD_DIM": head_dim, "BLOCK_D": power_of_two(head_dim), **tile, "GROUP_Q": rows.group,
        "GROUP_K": columns.group, "QUERY_PARTS": rows.parts, "KEY_PARTS": columns.parts,
    }  # fmt: skip
    return Launch(block_masses, arguments, constants, options, (rows.tiles, lanes))


def joined(launch: Launch) -> Tensor:
    """The mass of blocks from that of their pieces."""
    pieces: Tensor = launch.arguments["mass"]
    whole = pieces.shape[2] == pieces.shape[4] == 1
    return pieces[:, :, 0, :, 0] if whole else pieces.sum((2, 4))


@triton.jit(do_not_specialize=[
    "queries", "keys", "heads", "query_rows", "key_rows", "query_block", "key_block", "row_groups",
    "column_groups",
])  # fmt: skip
def block_masses(
    query, key, lse, mass, query_order, key_order, lengths, scale_log2,
    q_batch, q_token, q_head, k_batch, k_token, k_head,
    queries, keys, heads, query_rows, key_rows, query_block, key_block, row_groups, column_groups,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_Q: tl.constexpr, GROUP_Q: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_K: tl.constexpr,
    QUERY_PARTS: tl.constexpr, KEY_PARTS: tl.constexpr,
):  # fmt: skip
    """Weights of a tile of queries on all keys, summed per group; orders and `lengths` may be None."""
    lane = tl.program_id(1)
    batch, head = (lane // heads).to(tl.int64), (lane % heads).to(tl.int64)
    query += batch * q_batch + head * q_head
    key += batch * k_batch + head * k_head
    length = keys
    if lengths is not None:
        length = tl.load(lengths + batch)
    dims = tl.arange(0, BLOCK_D)

    first_row = tl.program_id(0) * (BLOCK_Q // GROUP_Q)
    row, inside = positions(first_row, QUERY_PARTS, query_block, queries, BLOCK_Q, GROUP_Q)
    token = row
    if query_order is not None:
        token = tl.load(query_order + (lane % query_rows).to(tl.int64) * queries + row, mask=inside, other=0)
    norm = tl.load(lse + lane.to(tl.int64) * queries + token, mask=inside, other=float("-inf"))
    inside = inside & (norm != float("-inf"))
    norm = tl.where(inside, norm * 1.4426950408889634, 0.0)
    q_mask = tile_mask(inside, HEAD_DIM, BLOCK_D)
    q = tl.load(query + token.to(tl.int64)[:, None] * q_token + dims[None, :], mask=q_mask, other=0.0)
    # Every sum is divided by the rows of its tile; rows that do not count are left out by a share of 0.
    tile_rows = tl.maximum(tl.minimum(queries - row // query_block * query_block, query_block), 1)
    share = tl.where(inside, 1.0 / tile_rows.to(tl.float32), 0.0)

    if key_order is not None:
        key_order += (lane % key_rows).to(tl.int64) * keys
    row_group = first_row + tl.arange(0, BLOCK_Q // GROUP_Q)
    mass += (lane.to(tl.int64) * row_groups + row_group)[:, None] * column_groups
    for first in tl.range(0, column_groups, BLOCK_K // GROUP_K):
        column, valid = positions(first, KEY_PARTS, key_block, length, BLOCK_K, GROUP_K)
        place = column
        if key_order is not None:
            place = tl.load(key_order + column, mask=valid, other=0)
        k_mask = tl.trans(tile_mask(valid, HEAD_DIM, BLOCK_D))
        k = tl.load(key + place.to(tl.int64)[None, :] * k_token + dims[:, None], mask=k_mask, other=0.0)
        scores = tl.dot(q, k) * scale_log2 - norm[:, None]
        weights = tl.where(valid[None, :], tl.exp2(scores) * share[:, None], 0.0)
        sums = tl.sum(tl.reshape(weights, [BLOCK_Q, BLOCK_K // GROUP_K, GROUP_K]), 2)
        sums = tl.sum(tl.reshape(sums, [BLOCK_Q // GROUP_Q, GROUP_Q, BLOCK_K // GROUP_K]), 1)
        group = first + tl.arange(0, BLOCK_K // GROUP_K)
        tl.store(mass + group[None, :], sums, mask=(row_group < row_groups)[:, None] & (group < column_groups)[None, :])

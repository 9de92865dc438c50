"""The kernels of `antidiagonal`: products of cells to a sum of exponentials per block, then those to shares."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from vidaccel.planning.shapes import power_of_two, read_in_place, strides
from vidaccel.planning.triton_slots import Slots, positions
from vidaccel.triton_launch import Launch

BLOCK_Q, BLOCK_K, BLOCK_F = 128, 128, 64
"""Query cells, slots of key cells and features of one step."""
OPTIONS = {"num_warps": 8, "num_stages": 3}


def run(
    query: Tensor, key: Tensor, query_block: int, key_block: int, stride: int, scale: float, lengths: Tensor | None,
    working_bytes: int,
) -> Tensor:  # fmt: skip
    """Block scores of checked inputs, in groups of lanes whose scratch memory is at most `working_bytes`."""
    lanes = query.shape[0] * query.shape[2]
    scores = query.new_empty(
        lanes, -(-query.shape[1] // query_block), -(-key.shape[1] // key_block), dtype=torch.float32
    )
    rows = -(-query.shape[1] // stride)
    group = max(1, min(lanes, working_bytes // (4 * rows * scores.shape[2])))
    logs = scores.new_empty(group, rows, scores.shape[2])
    for first in range(0, lanes, group):
        part = logs[: min(group, lanes - first)]
        prepare_cells(query, key, part, first, key_block, stride, scale, lengths).run()
        prepare_shares(part, scores[first : first + group], query.shape[1], query_block, stride).run()
    return scores


def prepare_cells(
    query: Tensor, key: Tensor, logs: Tensor, first_lane: int, key_block: int, stride: int, scale: float,
    lengths: Tensor | None,
) -> Launch:  # fmt: skip
    """The launch that fills `logs` ``[lanes, strided rows, key blocks]`` for the lanes from `first_lane` on."""
    query, key = read_in_place(query), read_in_place(key)
    heads, head_dim = query.shape[2:]
    cells = Slots.of(key_block // stride, -(-key.shape[1] // stride), BLOCK_K)
    arguments = {
        "query": query, "key": key, "logs": logs, "lengths": lengths, "scale_log2": scale / stride * math.log2(math.e),
        **strides("q", query), **strides("k", key), "queries": query.shape[1], "keys": key.shape[1], "heads": heads,
        "rows": logs.shape[1], "blocks": cells.blocks, "per_block": key_block // stride, "stride": stride,
        "first_lane": first_lane, "column_tiles": cells.tiles,
    }  # fmt: skip
    features = power_of_two(head_dim)
    constants = {
        "HEAD_DIM": head_dim, "PIECES": -(-features // BLOCK_F), "BLOCK_F": min(BLOCK_F, features),
        "BLOCK_Q": BLOCK_Q, "BLOCK_K": BLOCK_K, "GROUP": cells.group,
    }  # fmt: skip
    return Launch(cell_logs, arguments, constants, OPTIONS, (-(-logs.shape[1] // BLOCK_Q) * cells.tiles, len(logs)))


def prepare_shares(logs: Tensor, scores: Tensor, queries: int, query_block: int, stride: int) -> Launch:
    """The launch that turns the logarithms of these lanes into shares of their rows, averaged over tiles."""
    arguments = {
        "logs": logs, "scores": scores, "queries": queries, "rows": logs.shape[1], "blocks": logs.shape[2],
        "per_tile": query_block // stride, "stride": stride,
    }  # fmt: skip
    rows = power_of_two(query_block // stride)
    constants = {"BLOCK_R": rows, "BLOCK_B": max(16, 2048 // rows)}
    return Launch(tile_shares, arguments, constants, {"num_warps": 4, "num_stages": 2}, (scores.shape[1], len(scores)))


@triton.jit(do_not_specialize=["queries", "keys", "heads", "rows", "blocks", "per_block", "first_lane", "column_tiles"])
def cell_logs(
    query, key, logs, lengths, scale_log2, q_batch, q_token, q_head, k_batch, k_token, k_head,
    queries, keys, heads, rows, blocks, per_block, stride, first_lane, column_tiles,
    HEAD_DIM: tl.constexpr, PIECES: tl.constexpr, BLOCK_F: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Base-2 logarithm of the sum of exponentials of each strided row over each key block."""
    lane = first_lane + tl.program_id(1)
    batch, head = (lane // heads).to(tl.int64), (lane % heads).to(tl.int64)
    query += batch * q_batch + head * q_head
    key += batch * k_batch + head * k_head
    length = keys
    if lengths is not None:
        length = tl.load(lengths + batch)
    row = tl.program_id(0) // column_tiles * BLOCK_Q + tl.arange(0, BLOCK_Q)
    # Tokens that a cell has; past the last of them it repeats it.
    row_has = tl.minimum(queries - row * stride, stride)
    first_block = tl.program_id(0) % column_tiles * (BLOCK_K // GROUP)
    column, exists = positions(first_block, 1, per_block, tl.cdiv(length, stride), BLOCK_K, GROUP)
    column_has = tl.minimum(length - column * stride, stride)

    features = tl.arange(0, BLOCK_F)
    acc = tl.zeros([BLOCK_Q, BLOCK_K], tl.float32)
    for step in tl.range(0, stride * PIECES):
        phase = step // PIECES
        dims = step % PIECES * BLOCK_F + features
        q_row = (row * stride + tl.minimum(stride - 1 - phase, row_has - 1)).to(tl.int64)
        k_row = (column * stride + tl.minimum(phase, column_has - 1)).to(tl.int64)
        q_mask = (row < rows)[:, None] & (dims < HEAD_DIM)[None, :]
        q = tl.load(query + q_row[:, None] * q_token + dims[None, :], mask=q_mask, other=0.0)
        k_mask = exists[None, :] & (dims < HEAD_DIM)[:, None]
        k = tl.load(key + k_row[None, :] * k_token + dims[:, None], mask=k_mask, other=0.0)
        acc = tl.dot(q, k, acc)

    weight = tl.where(exists, column_has.to(tl.float32) / stride, 1.0)
    scores = tl.where(exists[None, :], acc * scale_log2 + tl.log2(weight)[None, :], float("-inf"))
    scores = tl.reshape(scores, [BLOCK_Q, BLOCK_K // GROUP, GROUP])
    most = tl.max(scores, 2)
    # A block without a key has no finite maximum; its logarithm stays -inf.
    most = tl.where(most == float("-inf"), 0.0, most)
    sums = most + tl.log2(tl.sum(tl.exp2(scores - most[:, :, None]), 2))
    block = first_block + tl.arange(0, BLOCK_K // GROUP)
    logs += (tl.program_id(1).to(tl.int64) * rows + row)[:, None] * blocks + block[None, :]
    tl.store(logs, sums, mask=(row < rows)[:, None] & (block < blocks)[None, :])


@triton.jit(do_not_specialize=["queries", "rows", "blocks", "per_tile", "stride"])
def tile_shares(
    logs, scores, queries, rows, blocks, per_tile, stride, BLOCK_R: tl.constexpr, BLOCK_B: tl.constexpr
):  # fmt: skip
    """A tile's mean over its queries of each block's share; strided rows are weighted by the tokens they have."""
    tile, lane = tl.program_id(0), tl.program_id(1).to(tl.int64)
    tokens = tl.minimum(queries - tile * per_tile * stride, per_tile * stride)
    row = tile * per_tile + tl.arange(0, BLOCK_R)
    inside = (tl.arange(0, BLOCK_R) < per_tile) & (row < rows)
    columns = tl.arange(0, BLOCK_B)
    logs += (lane * rows + row)[:, None] * blocks
    scores += (lane * tl.num_programs(0) + tile) * blocks
    most = tl.full([BLOCK_R], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_R], tl.float32)
    for column in tl.range(0, blocks, BLOCK_B):
        mask = inside[:, None] & (column + columns < blocks)[None, :]
        each = tl.load(logs + (column + columns)[None, :], mask=mask, other=float("-inf"))
        higher = tl.maximum(most, tl.max(each, 1))
        finite = tl.where(higher == float("-inf"), 0.0, higher)
        total = total * tl.exp2(most - finite) + tl.sum(tl.exp2(each - finite[:, None]), 1)
        most = higher
    # Rows without keys, and those past the tile, have a total of 0 and weigh nothing.
    most = tl.where(most == float("-inf"), 0.0, most)
    has = tl.minimum(queries - row * stride, stride).to(tl.float32)
    weight = tl.where(total > 0.0, has / (tl.where(total > 0.0, total, 1.0) * tokens), 0.0)
    for column in tl.range(0, blocks, BLOCK_B):
        mask = inside[:, None] & (column + columns < blocks)[None, :]
        each = tl.load(logs + (column + columns)[None, :], mask=mask, other=float("-inf"))
        part = tl.sum(tl.exp2(each - most[:, None]) * weight[:, None], 0)
        tl.store(scores + column + columns, part, mask=column + columns < blocks)

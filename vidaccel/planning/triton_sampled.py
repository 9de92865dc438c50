"""The kernels of `sampled` and `rows`: rows of masks as bits, and softmax attention of these rows under them."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from vidaccel.plan import AttentionPlan
from vidaccel.planning.rows import patterns_of, tiles_of_rows
from vidaccel.planning.shapes import power_of_two, read_in_place, strides
from vidaccel.planning.triton_slots import tile_mask
from vidaccel.triton_launch import Launch

CANDIDATES_AT_ONCE = 7
"""Plans whose masks share a byte per row and key; the last bit, always set, is dense attention."""
DENSE_BIT = 1 << CANDIDATES_AT_ONCE
BLOCK_R, BLOCK_K = 64, 32
MOST_TOKEN_STRIDE = 1 << 23
"""Elements: a step addresses its tokens from one pointer with 32 bits."""
OPTIONS = {"num_warps": 8, "num_stages": 2}


def run(
    query: Tensor, key: Tensor, value: Tensor, rows: Tensor, plans: list[AttentionPlan], out: Tensor, lse: Tensor,
    scale: float, lengths: Tensor | None, working_bytes: int,
) -> None:  # fmt: skip
    """Fill `out` and `lse` of checked inputs, in groups of lanes whose masks take at most `working_bytes`."""
    every = range(query.shape[0] * query.shape[2])
    lane_bytes = len(rows) * key.shape[1]
    for first in range(0, len(plans), CANDIDATES_AT_ONCE):
        some = plans[first : first + CANDIDATES_AT_ONCE]
        shared = all(patterns_of(plan) == 1 for plan in some)
        for lanes in _groups(every, len(every) if shared else max(1, working_bytes // lane_bytes)):
            marked = range(1) if shared else lanes
            shape = (len(marked), len(rows), key.shape[1])
            marks = torch.full(shape, DENSE_BIT, dtype=torch.uint8, device=query.device)
            for bit, plan in enumerate(some):
                prepare_marks(plan, tiles_of_rows(plan, rows, marked), marks, marked.start, 1 << bit).run()
            prepare(query, key, value, rows, marks, lanes, first, len(some), out, lse, scale, lengths).run()


def _groups(lanes: range, size: int) -> Iterator[range]:
    for first in range(0, len(lanes), size):
        yield lanes[first : first + size]


def prepare_marks(plan: AttentionPlan, tiles: Tensor, marks: Tensor, first_lane: int, bit: int) -> Launch:
    """The launch that sets `bit` of ``marks[lane - first_lane, row, key]`` where the row's tile keeps the key.

    `tiles` is int64 ``[lanes or 1, rows]``; a byte belongs to one program, so that several launches can share it.
    """
    mask = plan.mask
    assert mask is not None
    arguments = {
        "offsets": mask.offsets.contiguous(), "ranges": mask.ranges.contiguous(), "row_tiles": tiles.contiguous(),
        "key_order": None if plan.key_order is None else plan.key_order.contiguous(), "marks": marks,
        "first_lane": first_lane, "patterns": mask.patterns, "tiles": mask.tiles, "tile_lanes": len(tiles),
        "order_rows": 1 if plan.key_order is None else len(plan.key_order), "keys": mask.keys, "bit": bit,
    }  # fmt: skip
    return Launch(mark_keys, arguments, {"BLOCK": 256}, {"num_warps": 2, "num_stages": 2}, (marks.shape[1], len(marks)))


def prepare(
    query: Tensor, key: Tensor, value: Tensor, rows: Tensor, marks: Tensor, lanes: range, first: int, count: int,
    out: Tensor, lse: Tensor, scale: float, lengths: Tensor | None,
) -> Launch:  # fmt: skip
    """The launch for `count` candidates from `first` on, and for dense attention, which is last in `out`, of `lanes`.

    A row under a candidate is a row of a tile, so that up to 64 of these share what is read of keys and values: both
    come from memory once per lane and from the L2 cache for the other tiles.
    """
    query, key, value = (read_in_place(each, MOST_TOKEN_STRIDE) for each in (query, key, value))
    heads, head_dim = query.shape[2:]
    pairs = (count + 1) * len(rows)
    arguments = {
        "query": query, "key": key, "value": value, "rows": rows.contiguous(), "marks": marks, "out": out, "lse": lse,
        "lengths": lengths, "scale_log2": scale * math.log2(math.e),
        **strides("q", query), **strides("k", key), **strides("v", value),
        "batch_rows": query.shape[0], "heads": heads, "keys": key.shape[1], "row_count": len(rows),
        "first_lane": lanes.start, "mark_lanes": len(marks), "first_plan": first, "plans": count,
        "dense_plan": len(out) - 1,
    }  # fmt: skip
    constants = {
        "HEAD_DIM": head_dim, "BLOCK_D": power_of_two(head_dim), "BLOCK_R": BLOCK_R, "BLOCK_K": BLOCK_K,
        "DENSE_BIT": DENSE_BIT,
    }  # fmt: skip
    return Launch(sampled_rows, arguments, constants, OPTIONS, (-(-pairs // BLOCK_R), len(lanes)))


@triton.jit(do_not_specialize=["first_lane", "patterns", "tiles", "tile_lanes", "order_rows", "keys", "bit"])
def mark_keys(
    offsets, ranges, row_tiles, key_order, marks, first_lane, patterns, tiles, tile_lanes, order_rows, keys, bit,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Walk the ranges of one row's tile; `key_order` may be None."""
    at, row, rows = tl.program_id(1), tl.program_id(0), tl.num_programs(0)
    lane = first_lane + at
    tile = tl.load(row_tiles + at % tile_lanes * rows + row)
    entry = offsets + (lane % patterns).to(tl.int64) * (tiles + 1) + tile
    marks += (at.to(tl.int64) * rows + row) * keys
    first, last = tl.load(entry), tl.load(entry + 1)
    for each in tl.range(first, last):
        start = tl.load(ranges + 2 * each)
        end = tl.load(ranges + 2 * each + 1)
        for step in tl.range(start, end, BLOCK):
            place = step + tl.arange(0, BLOCK)
            inside = place < end
            if key_order is not None:
                place = tl.load(key_order + (lane % order_rows).to(tl.int64) * keys + place, mask=inside, other=0)
            old = tl.load(marks + place, mask=inside, other=0)
            tl.store(marks + place, old | bit.to(tl.uint8), mask=inside)


@triton.jit(do_not_specialize=[
    "batch_rows", "heads", "keys", "row_count", "first_lane", "mark_lanes", "first_plan", "plans", "dense_plan",
])  # fmt: skip
def sampled_rows(
    query, key, value, rows, marks, out, lse, lengths, scale_log2,
    q_batch, q_token, q_head, k_batch, k_token, k_head, v_batch, v_token, v_head,
    batch_rows, heads, keys, row_count, first_lane, mark_lanes, first_plan, plans, dense_plan,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr,
    DENSE_BIT: tl.constexpr,
):  # fmt: skip
    """Online softmax of rows under candidates, each with its bits of `marks`; `lengths` may be None."""
    lane = first_lane + tl.program_id(1)
    batch, head = (lane // heads).to(tl.int64), (lane % heads).to(tl.int64)
    key += batch * k_batch + head * k_head
    value += batch * v_batch + head * v_head
    length = keys
    if lengths is not None:
        length = tl.load(lengths + batch)
    pair = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    plan, row = pair // row_count, pair % row_count
    inside, dense = plan <= plans, plan == plans
    dims, columns = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_K)
    bit = tl.where(dense, DENSE_BIT, 1 << tl.minimum(plan, plans)).to(tl.uint8)
    token = tl.load(rows + row)
    query += batch * q_batch + head * q_head
    row_mask = tile_mask(inside, HEAD_DIM, BLOCK_D)
    q = tl.load(query + token[:, None] * q_token + dims[None, :], mask=row_mask, other=0.0)
    # 64 bits from tile to tile, 32 within one: pointers then cost half the registers.
    marks += tl.program_id(1) % mark_lanes * row_count.to(tl.int64) * keys
    mark_at = row[:, None] * keys + columns[None, :]
    key_at = dims[:, None] + columns[None, :] * k_token
    value_at = columns[:, None] * v_token + dims[None, :]

    acc = tl.zeros([BLOCK_R, BLOCK_D], tl.float32)
    row_max = tl.full([BLOCK_R], float("-inf"), tl.float32)
    row_sum = tl.zeros([BLOCK_R], tl.float32)
    for first in tl.range(0, length, BLOCK_K):
        valid = first + columns < length
        place = tl.cast(first, tl.int64)
        v_mask = tile_mask(valid, HEAD_DIM, BLOCK_D)
        k = tl.load(key + place * k_token + key_at, mask=tl.trans(v_mask), other=0.0)
        v = tl.load(value + place * v_token + value_at, mask=v_mask, other=0.0)
        bits = tl.load(marks + first + mark_at, mask=inside[:, None] & valid[None, :], other=0)
        scores = tl.where((bits & bit[:, None]) != 0, tl.dot(q, k) * scale_log2, float("-inf"))
        higher = tl.maximum(row_max, tl.max(scores, 1))
        # A row has no finite maximum until it meets its first key.
        finite = tl.where(higher == float("-inf"), 0.0, higher)
        weights = tl.exp2(scores - finite[:, None])
        shrink = tl.exp2(row_max - finite)
        row_sum = row_sum * shrink + tl.sum(weights, 1)
        acc = tl.dot(weights.to(v.dtype), v, acc * shrink[:, None])
        row_max = higher

    slot = tl.where(dense, dense_plan, first_plan + plan).to(tl.int64)
    safe = tl.where(row_sum == 0.0, 1.0, row_sum)
    out += (((slot * batch_rows + batch) * row_count + row) * heads + head)[:, None] * HEAD_DIM + dims[None, :]
    tl.store(out, acc / safe[:, None], mask=row_mask)
    natural = (row_max + tl.log2(safe)) * 0.6931471805599453
    tl.store(lse + (slot * batch_rows * heads + lane) * row_count + row, natural, mask=inside)

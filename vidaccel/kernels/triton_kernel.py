"""The Triton kernel: block-sparse flash attention, forward, over ranges of keys.

The online softmax is that of Milakov and Gimelshein, "Online normalizer calculation for softmax" (2018), tiled as in
Dao, "FlashAttention-2" (2023). A program computes up to BLOCK_Q query rows of one tile of one head.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _fold(acc, row_max, row_sum, query, key, value, scale_log2, valid, BLOCK_K: tl.constexpr):
    """Fold a tile of keys, of which the first `valid` count, into a softmax whose exponents are base 2."""
    scores = tl.dot(query, key)
    if valid < BLOCK_K:
        scores = tl.where((tl.arange(0, BLOCK_K) < valid)[None, :], scores, float("-inf"))
    # Every tile has a valid key, so that the new maximum is finite and no difference below is inf - inf.
    new_max = tl.maximum(row_max, tl.max(scores, 1) * scale_log2)
    weights = tl.exp2(scores * scale_log2 - new_max[:, None])
    shrink = tl.exp2(row_max - new_max)
    row_sum = row_sum * shrink + tl.sum(weights, 1)
    acc = tl.dot(weights.to(value.dtype), value, acc * shrink[:, None])
    return acc, new_max, row_sum


@triton.jit(do_not_specialize=["queries", "heads", "patterns", "tiles", "query_block"])
def block_sparse_forward(
    query, key, value, out, lse, offsets, ranges, order, key_lengths, scale_log2,
    q_batch, q_token, q_head, k_batch, k_token, k_head, v_batch, v_token, v_head, o_batch, o_token, o_head,
    queries, heads, patterns, tiles, query_block,
    HEAD_DIM: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """See `vidaccel.kernels.triton.prepare` for the arguments; `lse` and `key_lengths` may be None."""
    # Which rows: programs start in the order of their numbers, and `order` lists the longest work first.
    parts = tl.cdiv(query_block, BLOCK_Q)
    place = tl.program_id(0) // parts
    entry = tl.load(order + place % (patterns * tiles))
    pattern, tile = entry // tiles, entry % tiles
    lane = place // (patterns * tiles) * patterns + pattern
    batch, head = (lane // heads).to(tl.int64), (lane % heads).to(tl.int64)
    row = tile * query_block + tl.program_id(0) % parts * BLOCK_Q
    row_end = tl.minimum((tile + 1) * query_block, queries)

    rows, columns, dims = tl.arange(0, BLOCK_Q), tl.arange(0, BLOCK_K), tl.arange(0, HEAD_DIM)
    # 64 bits where a whole tensor is addressed, 32 within a tile: pointers then cost half the registers.
    query += batch * q_batch + head * q_head + row.to(tl.int64) * q_token
    key += batch * k_batch + head * k_head
    value += batch * v_batch + head * v_head
    inside = (row + rows < row_end)[:, None]
    q = tl.load(query + rows[:, None] * q_token + dims[None, :], mask=inside, other=0.0)
    key_at = dims[:, None] + columns[None, :] * k_token
    value_at = columns[:, None] * v_token + dims[None, :]

    first = tl.load(offsets + pattern * (tiles + 1) + tile)
    last = tl.load(offsets + pattern * (tiles + 1) + tile + 1)
    # The last tile may be so short that this program has no rows.
    last = tl.where(row < row_end, last, first)
    length = 2147483647
    if key_lengths is not None:
        length = tl.load(key_lengths + batch)
    steps = 0
    for each in range(first, last):
        width = tl.minimum(tl.load(ranges + 2 * each + 1), length) - tl.load(ranges + 2 * each)
        steps += tl.cdiv(tl.maximum(width, 0), BLOCK_K)

    acc = tl.zeros([BLOCK_Q, HEAD_DIM], tl.float32)
    row_max = tl.full([BLOCK_Q], float("-inf"), tl.float32)
    row_sum = tl.zeros([BLOCK_Q], tl.float32)
    at = first
    position = tl.load(ranges + 2 * at, mask=steps > 0, other=0)
    end = tl.minimum(tl.load(ranges + 2 * at + 1, mask=steps > 0, other=0), length)
    # One loop over the tiles of all ranges, not one per range: loads then run ahead across the gaps, too.
    for step in tl.range(0, steps):
        valid = end - position
        # Keys past the end of a range are loaded as zeros, since what lies there may be NaN.
        k = tl.load(key + position.to(tl.int64) * k_token + key_at, mask=(columns < valid)[None, :], other=0.0)
        v = tl.load(value + position.to(tl.int64) * v_token + value_at, mask=(columns < valid)[:, None], other=0.0)
        acc, row_max, row_sum = _fold(acc, row_max, row_sum, q, k, v, scale_log2, valid, BLOCK_K)
        done = valid <= BLOCK_K
        more = done & (step + 1 < steps)
        at = tl.where(done, at + 1, at)
        next_start = tl.load(ranges + 2 * at, mask=more, other=0)
        next_end = tl.load(ranges + 2 * at + 1, mask=more, other=0)
        position = tl.where(done, next_start, position + BLOCK_K)
        end = tl.where(done, tl.minimum(next_end, length), end)

    # A row without keys has acc = 0 and row_max = -inf: zeros, and a log-sum-exp of -inf.
    row_sum = tl.where(row_sum == 0.0, 1.0, row_sum)
    acc = acc / row_sum[:, None]
    out += batch * o_batch + head * o_head + row.to(tl.int64) * o_token
    tl.store(out + rows[:, None] * o_token + dims[None, :], acc.to(out.dtype.element_ty), mask=inside)
    if lse is not None:
        natural = (row_max + tl.log2(row_sum)) * 0.6931471805599453
        tl.store(lse + lane.to(tl.int64) * queries + row + rows, natural, mask=row + rows < row_end)

"""The Triton kernel: block-sparse flash attention, forward, over ranges of keys.

The online softmax is that of Milakov and Gimelshein, "Online normalizer calculation for softmax" (2018), tiled as in
Dao, "FlashAttention-2" (2023); INT8 scores as in Zhang et al., "SageAttention" (2024). A program computes up to BLOCK_Q
query rows of one tile of one head. A head dim is HEAD columns and, for 96, TAIL more, so that no product is padded.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _load(states, token, dims, inside):
    """Rows ``[tokens, dims]`` of a tensor at 64-bit or 32-bit offsets `token`; zeros where not `inside`."""
    return tl.load(states + token[:, None] + dims[None, :], mask=inside[:, None], other=0.0)


@triton.jit
def _load_columns(states, token, dims, inside):
    """The same as columns ``[dims, tokens]``."""
    return tl.load(states + dims[:, None] + token[None, :], mask=inside[None, :], other=0.0)


@triton.jit
def _places(order, position, steps, stride, inside):
    """Offsets of the tokens at `position` + `steps` of an order: gathered by number, 64 bits."""
    token = tl.load(order + position + steps, mask=inside, other=0)
    return token.to(tl.int64) * stride


@triton.jit
def _fold(
    acc, acc_tail, row_max, row_sum, scores, factor, value, value_tail, SHIFT: tl.constexpr, PARTIAL: tl.constexpr,
    TAIL: tl.constexpr, SEEN: tl.constexpr,
):  # fmt: skip
    """Fold a tile of keys into a softmax whose exponents are base 2: scores times `factor`, and values.

    Weights are multiplied by 2 to the power SHIFT, which the sum is, too. PARTIAL: products that may be added in fewer
    than 32 bits, as tensor cores do with e4m3, before they join `acc`. SEEN: every row has a finite score by now.
    """
    new_max = tl.maximum(row_max, tl.max(scores, 1) * factor)
    # A row that has seen no key has a maximum of -inf, from which nothing can be subtracted.
    base = new_max if SEEN else tl.where(new_max == float("-inf"), 0.0, new_max)
    weights = tl.exp2(scores * tl.expand_dims(factor, 1) - (base - SHIFT)[:, None])
    shrink = tl.exp2(row_max - base)
    row_sum = row_sum * shrink + tl.sum(weights, 1)
    narrow = weights.to(value.dtype)
    acc = tl.dot(narrow, value, acc * shrink[:, None], max_num_imprecise_acc=PARTIAL)
    if TAIL:
        acc_tail = tl.dot(narrow, value_tail, acc_tail * shrink[:, None], max_num_imprecise_acc=PARTIAL)
    return acc, acc_tail, new_max, row_sum


@triton.jit(do_not_specialize=["queries", "keys", "heads", "patterns", "tiles", "query_block", "groups"])
def block_sparse_forward(
    query, key, value, out, lse, offsets, ranges, order, key_lengths, query_order, key_order,
    query_scale, key_scale, value_scale, extra_query, extra_key, extra_value, extra_bias, scale_log2,
    q_batch, q_token, q_head, k_batch, k_token, k_head, v_batch, v_token, v_head, o_batch, o_token, o_head,
    e_batch, e_token, e_head, x_batch, x_token, x_head, y_batch, y_token, y_head,
    queries, keys, heads, patterns, tiles, query_block, query_rows, key_rows, groups, bias_patterns,
    HEAD: tl.constexpr, TAIL: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, EXTRA_K: tl.constexpr,
    SHIFT: tl.constexpr, PARTIAL: tl.constexpr,
):  # fmt: skip
    """See `vidaccel.kernels.triton.prepare` for the arguments, of which many may be None."""
    # Which rows: programs start in the order of their numbers, and `order` lists the longest work first.
    parts = tl.cdiv(query_block, BLOCK_Q)
    place = tl.program_id(0) // parts
    entry = tl.load(order + place % (patterns * tiles))
    pattern, tile = entry // tiles, entry % tiles
    lane = place // (patterns * tiles) * patterns + pattern
    batch, head, wide_lane = (lane // heads).to(tl.int64), (lane % heads).to(tl.int64), lane.to(tl.int64)
    row = tile * query_block + tl.program_id(0) % parts * BLOCK_Q
    row_end = tl.minimum((tile + 1) * query_block, queries)

    rows, columns, dims = tl.arange(0, BLOCK_Q), tl.arange(0, BLOCK_K), tl.arange(0, HEAD)
    tail_dims = HEAD + tl.arange(0, TAIL if TAIL else 16)
    # 64 bits where a whole tensor is addressed, 32 within a tile: pointers then cost half the registers.
    query += batch * q_batch + head * q_head
    out += batch * o_batch + head * o_head
    key += batch * k_batch + head * k_head
    value += batch * v_batch + head * v_head
    inside = row + rows < row_end
    if query_order is None:
        token = rows
        query += row.to(tl.int64) * q_token
        out += row.to(tl.int64) * o_token
        q_at, o_at = token * q_token, token * o_token
    else:
        token = tl.load(query_order + (lane % query_rows).to(tl.int64) * queries + row + rows, mask=inside, other=0)
        q_at, o_at = token.to(tl.int64) * q_token, token.to(tl.int64) * o_token
    q = _load(query, q_at, dims, inside)
    q_tail = _load(query, q_at, tail_dims, inside) if TAIL else q
    if key_order is not None:
        key_order += (lane % key_rows).to(tl.int64) * keys
    factor = tl.full([BLOCK_Q], 1.0, tl.float32) * scale_log2
    if query_scale is not None:
        shift = wide_lane * queries
        at_row = token if query_order is not None else row + rows
        factor *= tl.load(query_scale + shift + at_row, mask=inside, other=1.0)
        key_scale += wide_lane * keys

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

    acc = tl.zeros([BLOCK_Q, HEAD], tl.float32)
    acc_tail = tl.zeros([BLOCK_Q, TAIL if TAIL else 16], tl.float32)
    row_max = tl.full([BLOCK_Q], float("-inf"), tl.float32)
    row_sum = tl.zeros([BLOCK_Q], tl.float32)
    at = first
    position = tl.load(ranges + 2 * at, mask=steps > 0, other=0)
    end = tl.minimum(tl.load(ranges + 2 * at + 1, mask=steps > 0, other=0), length)
    # One loop over the tiles of all ranges, not one per range: loads then run ahead across the gaps, too.
    for step in tl.range(0, steps):
        valid = end - position
        # Keys past the end of a range are loaded as zeros, since what lies there may be NaN.
        there = columns < valid
        if key_order is None:
            k_base, v_base = key + position.to(tl.int64) * k_token, value + position.to(tl.int64) * v_token
            k_at, v_at = columns * k_token, columns * v_token
        else:
            number = tl.load(key_order + position + columns, mask=there, other=0).to(tl.int64)
            k_base, v_base, k_at, v_at = key, value, number * k_token, number * v_token
        k = _load_columns(k_base, k_at, dims, there)
        scores = tl.dot(q, k).to(tl.float32)
        if TAIL:
            k_tail = _load_columns(k_base, k_at, tail_dims, there)
            scores += tl.dot(q_tail, k_tail).to(tl.float32)
        if key_scale is not None:
            if key_order is None:
                k_scale = tl.load(key_scale + position + columns, mask=there, other=0.0)
            else:
                k_scale = tl.load(key_scale + number, mask=there, other=0.0)
            scores *= k_scale[None, :]
        if valid < BLOCK_K:
            scores = tl.where(there[None, :], scores, float("-inf"))
        v = _load(v_base, v_at, dims, there)
        v_tail = _load(v_base, v_at, tail_dims, there) if TAIL else v
        # Every step has a valid key.
        acc, acc_tail, row_max, row_sum = _fold(
            acc, acc_tail, row_max, row_sum, scores, factor, v, v_tail, SHIFT, PARTIAL, TAIL, True
        )  # fmt: skip
        done = valid <= BLOCK_K
        more = done & (step + 1 < steps)
        at = tl.where(done, at + 1, at)
        next_start = tl.load(ranges + 2 * at, mask=more, other=0)
        next_end = tl.load(ranges + 2 * at + 1, mask=more, other=0)
        position = tl.where(done, next_start, position + BLOCK_K)
        end = tl.where(done, tl.minimum(next_end, length), end)

    if value_scale is not None:
        value_scale += wide_lane * (HEAD + TAIL)
        acc *= tl.load(value_scale + dims)[None, :]
        if TAIL:
            acc_tail *= tl.load(value_scale + tail_dims)[None, :]
    if extra_key is not None:
        extra_key += batch * e_batch + head * e_head
        extra_value += batch * y_batch + head * y_head
        extra_bias += ((lane % bias_patterns).to(tl.int64) * tiles + tile) * groups
        if extra_query is not None:
            extra_query += batch * x_batch + head * x_head
            x_at = (token if query_order is not None else row + rows).to(tl.int64) * x_token
            q = _load(extra_query, x_at, dims, inside)
            q_tail = _load(extra_query, x_at, tail_dims, inside) if TAIL else q
        extra_columns = tl.arange(0, EXTRA_K)
        for start in tl.range(0, groups, EXTRA_K, num_stages=1):
            there = start + extra_columns < groups
            k_at, v_at = extra_columns * e_token, extra_columns * y_token
            scores = tl.dot(q, _load_columns(extra_key, k_at, dims, there))
            if TAIL:
                scores += tl.dot(q_tail, _load_columns(extra_key, k_at, tail_dims, there))
            bias = tl.load(extra_bias + start + extra_columns, mask=there, other=float("-inf")) * 1.4426950408889634
            scores = scores * scale_log2 + bias[None, :]
            v = _load(extra_value, v_at, dims, there)
            v_tail = _load(extra_value, v_at, tail_dims, there) if TAIL else v
            extra_key += EXTRA_K * e_token
            extra_value += EXTRA_K * y_token
            acc, acc_tail, row_max, row_sum = _fold(
                acc, acc_tail, row_max, row_sum, scores, tl.full([BLOCK_Q], 1.0, tl.float32), v, v_tail, SHIFT,
                None, TAIL, False,
            )  # fmt: skip

    # A row without keys has acc = 0 and row_max = -inf: zeros, and a log-sum-exp of -inf.
    row_sum = tl.where(row_sum == 0.0, 1.0, row_sum)
    kind = out.dtype.element_ty
    tl.store(out + o_at[:, None] + dims[None, :], (acc / row_sum[:, None]).to(kind), mask=inside[:, None])
    if TAIL:
        tail = (acc_tail / row_sum[:, None]).to(kind)
        tl.store(out + o_at[:, None] + tail_dims[None, :], tail, mask=inside[:, None])
    if lse is not None:
        natural = (row_max + tl.log2(row_sum) - SHIFT) * 0.6931471805599453
        at_lse = token if query_order is not None else row + rows
        tl.store(lse + wide_lane * queries + at_lse, natural, mask=inside)

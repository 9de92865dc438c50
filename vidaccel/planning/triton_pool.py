"""The kernel of `pool`: a program reads the tokens of one block of one head once."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vidaccel.planning.shapes import power_of_two, read_in_place, strides
from vidaccel.triton_launch import Launch


def prepare(
    states: Tensor, block: int, order: Tensor | None, lengths: Tensor | None, *, mean: bool, similarity: bool
) -> Launch:
    """The launch for checked inputs; its ``means`` and ``similarity`` are the results (None if not asked for)."""
    states = read_in_place(states)
    batch, tokens, heads, head_dim = states.shape
    blocks = -(-tokens // block)
    arguments = {
        "states": states, "order": order, "lengths": lengths, "tokens": tokens, "heads": heads, "block": block,
        "means": states.new_empty(batch, blocks, heads, head_dim, dtype=torch.float32) if mean else None,
        "similarity": states.new_empty(batch * heads, blocks, dtype=torch.float32) if similarity else None,
        "order_rows": 1 if order is None else len(order), **strides("s", states),
    }  # fmt: skip
    constants = {"HEAD_DIM": head_dim, "BLOCK_D": power_of_two(head_dim), "BLOCK_T": min(32, power_of_two(block))}
    return Launch(block_summaries, arguments, constants, {"num_warps": 4, "num_stages": 3}, (blocks, batch * heads))


@triton.jit(do_not_specialize=["tokens", "heads", "block", "order_rows"])
def block_summaries(
    states, order, lengths, means, similarity, s_batch, s_token, s_head, tokens, heads, block, order_rows,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """Mean, and squared norm of the mean of unit vectors, of a block; `order` and `lengths` may be None."""
    at, lane = tl.program_id(0), tl.program_id(1)
    batch, head = (lane // heads).to(tl.int64), (lane % heads).to(tl.int64)
    first = at * block
    last = tl.minimum(first + block, tokens)
    if lengths is not None:
        last = tl.minimum(last, tl.load(lengths + batch))
    dims = tl.arange(0, BLOCK_D)
    states += batch * s_batch + head * s_head
    total = tl.zeros([BLOCK_D], tl.float32)
    units = tl.zeros([BLOCK_D], tl.float32)
    for start in tl.range(0, tl.maximum(last - first, 0), BLOCK_T):
        position = first + start + tl.arange(0, BLOCK_T)
        inside = position < last
        token = position
        if order is not None:
            token = tl.load(order + (lane % order_rows).to(tl.int64) * tokens + position, mask=inside, other=0)
        mask = inside[:, None] & (dims < HEAD_DIM)[None, :]
        rows = tl.load(states + token.to(tl.int64)[:, None] * s_token + dims[None, :], mask=mask, other=0.0)
        rows = rows.to(tl.float32)
        if means is not None:
            total += tl.sum(rows, 0)
        if similarity is not None:
            # A row of zeros, absent ones among them, has no direction and stays zero.
            units += tl.sum(rows * tl.rsqrt(tl.maximum(tl.sum(rows * rows, 1), 1e-24))[:, None], 0)
    count = tl.maximum(last - first, 1).to(tl.float32)
    place = batch * tl.num_programs(0) + at
    if means is not None:
        tl.store(means + (place * heads + head) * HEAD_DIM + dims, total / count, mask=dims < HEAD_DIM)
    if similarity is not None:
        tl.store(similarity + lane.to(tl.int64) * tl.num_programs(0) + at, tl.sum(units * units, 0) / (count * count))

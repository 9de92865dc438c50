"""Triton kernel of `order`: rows of heads moved to or from their places in an order."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vidaccel.planning.shapes import power_of_two, read_in_place, strides
from vidaccel.triton_launch import Launch

ROWS = 32
"""Tokens of a program; of 128 dims in 16 bits these are 8 KB, four loads of 16 bytes per thread."""


@triton.jit(do_not_specialize=["tokens", "heads", "lanes", "rows"])
def move_rows(
    states, order, out, s_batch, s_token, s_head, o_batch, o_token, o_head, tokens, heads, lanes, rows,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr, BACK: tl.constexpr,
):  # fmt: skip
    """``out[i] = states[order[i]]`` for each lane or, if BACK, ``out[order[i]] = states[i]``."""
    # Heads of a token are neighbours in memory, so they come one after the other.
    lane, tile = tl.program_id(0) % lanes, tl.program_id(0) // lanes
    batch, head = (lane // heads).to(tl.int64), (lane % heads).to(tl.int64)
    position = tile * ROWS + tl.arange(0, ROWS)
    dims = tl.arange(0, BLOCK_D)
    inside = position < tokens
    token = tl.load(order + (lane % rows).to(tl.int64) * tokens + position, mask=inside, other=0).to(tl.int64)
    position = position.to(tl.int64)
    source, target = (position, token) if BACK else (token, position)
    mask = inside[:, None] & (dims < HEAD_DIM)[None, :]
    states += batch * s_batch + head * s_head
    out += batch * o_batch + head * o_head
    values = tl.load(states + source[:, None] * s_token + dims[None, :], mask=mask)
    tl.store(out + target[:, None] * o_token + dims[None, :], values, mask=mask)


def move(states: Tensor, order: Tensor, back: bool) -> Tensor:
    """`order.permute`, or `order.unpermute` if `back`, of checked arguments."""
    launch = prepare(states, order, back)
    launch.run()
    out: Tensor = launch.arguments["out"]
    return out


def prepare(states: Tensor, order: Tensor, back: bool) -> Launch:
    """The launch of `move_rows`; its ``out`` is contiguous. Only states whose head dim is not dense are copied."""
    batch, tokens, heads, head_dim = states.shape
    states = read_in_place(states)
    out = torch.empty(states.shape, dtype=states.dtype, device=states.device)
    arguments = {"states": states, "order": order.contiguous(), "out": out, "tokens": tokens, "heads": heads,
                 "lanes": batch * heads, "rows": len(order), **strides("s", states), **strides("o", out)}  # fmt: skip
    constants = {"HEAD_DIM": head_dim, "BLOCK_D": power_of_two(head_dim), "ROWS": ROWS, "BACK": back}
    grid = (triton.cdiv(tokens, ROWS) * batch * heads if head_dim else 0,)
    return Launch(move_rows, arguments, constants, {"num_warps": 4, "num_stages": 1}, grid)

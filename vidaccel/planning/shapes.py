"""What the planning operations accept, checked before any work; sizes that they share."""

from __future__ import annotations

import torch
from torch import Tensor

MOST_HEAD_DIM = 128
"""Of kernels that multiply matrices; larger ones run in torch."""


def check_states(name: str, states: Tensor) -> None:
    """Refuse what is not floating-point ``[batch, tokens, heads, head_dim]`` with tokens.

    Raises:
        ValueError: what was given.
    """
    if states.ndim != 4 or not states.is_floating_point() or 0 in states.shape:
        raise ValueError(
            f"{name} is floating-point [batch, tokens, heads, head_dim], got {states.dtype} {list(states.shape)}"
        )


def check_pair(query: Tensor, other: Tensor, name: str = "key") -> None:
    """Refuse keys (or values) that do not go with the queries: only the number of tokens may differ.

    Raises:
        ValueError: what was given and what is allowed.
    """
    check_states("query", query)
    check_states(name, other)
    batch, _, heads, head_dim = query.shape
    if (other.shape[0], *other.shape[2:]) != (batch, heads, head_dim):
        raise ValueError(f"{name} is {list(other.shape)}, the query needs [{batch}, tokens, {heads}, {head_dim}]")
    if (other.dtype, other.device) != (query.dtype, query.device):
        raise ValueError(f"{name} is {other.dtype} on {other.device}, the query {query.dtype} on {query.device}")


def check_block(name: str, block: int, multiple_of: int = 1) -> None:
    """Refuse a block size that is not a positive multiple.

    Raises:
        ValueError: what was given.
    """
    if block < 1 or block % multiple_of:
        raise ValueError(f"{name}={block} is not a positive multiple of {multiple_of}")


def check_order(name: str, order: Tensor | None, states: Tensor) -> Tensor | None:
    """An order of the tokens of `states` on their device, contiguous; None stays None.

    Raises:
        ValueError: not int32 ``[rows, tokens]`` with 1, heads or batch * heads rows.
    """
    if order is None:
        return None
    batch, tokens, heads, _ = states.shape
    if order.dtype != torch.int32 or order.ndim != 2 or order.shape[1] != tokens:
        raise ValueError(f"{name} is int32 [rows, {tokens}], got {order.dtype} {list(order.shape)}")
    if len(order) not in (1, heads, batch * heads):
        raise ValueError(f"{name} has {len(order)} rows; allowed: 1, {heads} (heads), {batch * heads} (batch * heads)")
    return order.to(states.device).contiguous()


def check_lengths(name: str, lengths: Tensor | None, states: Tensor) -> Tensor | None:
    """Valid tokens per batch row on the device of `states`: int32 ``[batch]`` in 0 to tokens; None stays None.

    Raises:
        ValueError: not int ``[batch]``.
    """
    if lengths is None:
        return None
    if lengths.shape != states.shape[:1] or lengths.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"{name} is int [{states.shape[0]}], got {lengths.dtype} {list(lengths.shape)}")
    return lengths.to(states.device).clamp(0, states.shape[1]).int()


def read_in_place(states: Tensor, most_token_stride: int | None = None) -> Tensor:
    """The tensor itself, or a copy if its head dim is not dense or its tokens too far apart for the kernel."""
    far = most_token_stride is not None and not 0 <= states.stride(1) <= most_token_stride
    return states.contiguous() if far or states.stride(-1) != 1 else states


def strides(letter: str, states: Tensor) -> dict[str, int]:
    """Kernel arguments ``x_batch``, ``x_token`` and ``x_head`` for a letter x."""
    return dict(zip((f"{letter}_batch", f"{letter}_token", f"{letter}_head"), states.stride()[:3], strict=True))


def power_of_two(number: int, least: int = 16) -> int:
    """The smallest power of two from `number` and from `least` on."""
    return max(least, 1 << (number - 1).bit_length())


def states_of_lane(states: Tensor, lane: int, order: Tensor | None = None) -> Tensor:
    """fp32 ``[tokens, head_dim]`` of one head of one batch row, in its order if there is one."""
    heads = states.shape[2]
    of_lane = states[lane // heads, :, lane % heads].float()
    return of_lane if order is None else of_lane[order[lane % len(order)].long()]


def length_of_lane(lengths: Tensor | None, lane: int, states: Tensor) -> Tensor:
    """Valid tokens of one lane as a tensor, so that nothing waits."""
    if lengths is None:
        return torch.tensor(states.shape[1], device=states.device)
    return lengths[lane // states.shape[2]]


def cleared(states: Tensor, length: Tensor) -> Tensor:
    """`states` ``[tokens, head_dim]`` with zeros past `length`, since what lies there may be NaN."""
    valid = torch.arange(len(states), device=states.device) < length
    return states.masked_fill(~valid[:, None], 0.0)


def no_dot(states: Tensor) -> str | None:
    """Why kernels that multiply matrices cannot read such states, or None."""
    if states.shape[-1] > MOST_HEAD_DIM:
        return f"head_dim is {states.shape[-1]}, kernels have at most {MOST_HEAD_DIM}"
    if states.dtype == torch.float32 and states.device.type == "cuda":
        # Tensor cores would round fp32 to 10 bits of mantissa; cuBLAS has true fp32, and no model runs in it.
        return "on a GPU matrix kernels have bfloat16 and float16, not float32"
    return None

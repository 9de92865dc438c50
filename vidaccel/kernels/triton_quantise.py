"""The kernels of `quantise`: sums and maxima over tokens without atomics, INT8 by rows, e4m3 by channels."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from vidaccel.triton_launch import Launch

CHUNK = 512
"""Tokens that one program reduces: 40 heads of 75,600 tokens are 5,920 programs, and their partial results 3 MB."""
ELEMENTS = 4096
"""Of a step of a program, 32 a thread; by compiler and bytes in flight, not timed."""
OPTIONS = {"num_warps": 4, "num_stages": 3}


def mean(key: Tensor, valid: Tensor | None) -> Tensor:
    """Mean over valid tokens, fp32 ``[batch, 1, heads, head_dim]``; see `quantise` for all arguments here."""
    batch, tokens, heads, head_dim = key.shape
    count = tokens if valid is None else valid.sum(2).clamp(min=1)[:, None, :, None]
    launch = prepare_reduction(key, valid, maximum=False)
    launch.run()
    total: Tensor = launch.arguments["partial"].sum(1)
    return total.view(batch, 1, heads, head_dim) / count


def rows(states: Tensor, key_mean: Tensor | None, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """INT8 of states less `key_mean`, and fp32 scales ``[batch, heads, tokens]``."""
    launch = prepare_rows(states, key_mean, valid)
    launch.run()
    return launch.arguments["out"], launch.arguments["scales"]


def channels(value: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """e4m3 of values, and fp32 scales ``[batch, heads, head_dim]``."""
    batch, _, heads, head_dim = value.shape
    reduction = prepare_reduction(value, valid, maximum=True)
    reduction.run()
    launch = prepare_channels(value, reduction.arguments["partial"].amax(1).view(batch, heads, head_dim), valid)
    launch.run()
    return launch.arguments["out"].view(torch.float8_e4m3fn), launch.arguments["scales"]


def lse_shift(query: Tensor, key_mean: Tensor, scale: float) -> Tensor:
    """``scale * query . key_mean``, fp32 ``[batch, heads, tokens]``."""
    launch = prepare_shift(query, key_mean * scale)
    launch.run()
    shift: Tensor = launch.arguments["shift"]
    return shift


def prepare_reduction(states: Tensor, valid: Tensor | None, *, maximum: bool) -> Launch:
    """The launch whose ``partial``, fp32 ``[batch * heads, chunks, head_dim]``, has sums or largest magnitudes."""
    batch, tokens, heads, head_dim = states.shape
    chunks = -(-tokens // CHUNK)
    partial = states.new_empty(batch * heads, chunks, head_dim, dtype=torch.float32)
    return _launch(reduce_tokens, states, valid, {"partial": partial}, {"CHUNK": CHUNK, "MAXIMUM": maximum})


def prepare_rows(states: Tensor, key_mean: Tensor | None, valid: Tensor | None) -> Launch:
    """The launch whose results are ``out`` and ``scales``."""
    batch, tokens, heads, _ = states.shape
    results = {
        "out": states.new_empty(states.shape, dtype=torch.int8),
        "scales": states.new_empty(batch, heads, tokens, dtype=torch.float32),
    }
    return _launch(quantise_rows, states, valid, {"key_mean": key_mean, **results}, {})


def prepare_channels(value: Tensor, largest: Tensor, valid: Tensor | None) -> Launch:
    """The launch whose results are ``out``, bytes, and ``scales``, from maxima ``[batch, heads, head_dim]``."""
    results = {"out": value.new_empty(value.shape, dtype=torch.uint8), "scales": torch.empty_like(largest)}
    return _launch(quantise_channels, value, valid, {"largest": largest, **results}, {})


def prepare_shift(query: Tensor, vector: Tensor) -> Launch:
    """The launch whose result is ``shift``, the queries' products with fp32 ``[batch, 1, heads, head_dim]``."""
    batch, tokens, heads, _ = query.shape
    shift = query.new_empty(batch, heads, tokens, dtype=torch.float32)
    others = {"vector": vector.float().contiguous(), "shift": shift}
    return _launch(shift_rows, query, None, others, {})


def _launch(
    kernel: Any, states: Tensor, valid: Tensor | None, others: dict[str, Any], constants: dict[str, Any]
) -> Launch:  # fmt: skip
    """A launch of programs for steps (or chunks) of tokens of each head."""
    states = states if states.stride(-1) == 1 else states.contiguous()
    batch, tokens, heads, head_dim = states.shape
    block_d = max(16, triton.next_power_of_2(head_dim))
    block_t = max(1, ELEMENTS // block_d)
    seen = None if valid is None else valid.view(torch.uint8)
    arguments = {"states": states, "valid": seen, **others, "tokens": tokens, "heads": heads}
    arguments.update(zip(("s_batch", "s_token", "s_head"), states.stride()[:3], strict=True))
    # A row of `valid` for a whole batch row has one head, which all share.
    by_head = valid is not None and valid.shape[1] > 1
    arguments.update(v_batch=0 if valid is None else valid.stride(0), v_head=tokens if by_head else 0)
    constants = {**constants, "HEAD_DIM": head_dim, "BLOCK_D": block_d, "BLOCK_T": block_t}
    grid = triton.cdiv(tokens, constants.get("CHUNK", block_t)), batch * heads
    return Launch(kernel, arguments, constants, OPTIONS, grid)


@triton.jit
def _read(
    states, valid, token, tokens, batch, head, s_batch, s_token, s_head, v_batch, v_head,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Rows as fp32, zeros for padding and past the end, and which ones are neither."""
    seen = token < tokens
    if valid is not None:
        seen = seen & (tl.load(valid + batch * v_batch + head * v_head + token, mask=seen, other=0) != 0)
    dims = tl.arange(0, BLOCK_D)
    at = states + batch * s_batch + head * s_head + token.to(tl.int64)[:, None] * s_token + dims[None, :]
    return tl.load(at, mask=seen[:, None] & (dims < HEAD_DIM)[None, :], other=0.0).to(tl.float32), seen


@triton.jit
def _is_finite(x):
    return tl.abs(x) <= 3.4028234663852886e38


@triton.jit
def _scales(largest, STEPS: tl.constexpr):
    """The scale by which STEPS stands for `largest`, and its inverse, as in `quantise._scales`."""
    empty = largest < 1e-30
    safe = tl.where(empty, 1.0, largest)
    return tl.where(empty, 1.0, safe / STEPS), tl.where(empty, 0.0, STEPS / safe)


@triton.jit
def _e4m3(x):
    """Bits of the nearest e4m3 value, ties to even, for magnitudes up to 448: in integers, so that any GPU can."""
    bits = x.to(tl.int32, bitcast=True)
    magnitude = bits & 0x7FFFFFFF
    normal = ((magnitude + 0x7FFFF + ((magnitude >> 20) & 1)) >> 20) - (120 << 3)
    # From 2^14 on, fp32 has steps of 2^-9, which are those of e4m3 below 2^-6: adding 2^14 rounds to them.
    small = (tl.abs(x) + 16384.0).to(tl.int32, bitcast=True) - 0x46800000
    code = tl.where(tl.abs(x) < 0.015625, small, normal)
    return (tl.where(_is_finite(x), code, 0x7F) | ((bits >> 24) & 0x80)).to(tl.uint8)


@triton.jit(do_not_specialize=["tokens", "heads"])
def reduce_tokens(
    states, valid, partial, tokens, heads, s_batch, s_token, s_head, v_batch, v_head,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_T: tl.constexpr, CHUNK: tl.constexpr, MAXIMUM: tl.constexpr,
):  # fmt: skip
    """Sums, or largest magnitudes, of the finite elements of the valid tokens of a chunk."""
    lane = tl.program_id(1).to(tl.int64)
    first = tl.program_id(0) * CHUNK
    total = tl.zeros([BLOCK_D], tl.float32)
    for start in tl.range(0, CHUNK, BLOCK_T):
        token = first + start + tl.arange(0, BLOCK_T)
        x, _ = _read(states, valid, token, tl.minimum(tokens, first + CHUNK), lane // heads, lane % heads, s_batch,
                     s_token, s_head, v_batch, v_head, HEAD_DIM, BLOCK_D)  # fmt: skip
        x = tl.where(_is_finite(x), x, 0.0)
        total = tl.maximum(total, tl.max(tl.abs(x), 0)) if MAXIMUM else total + tl.sum(x, 0)
    dims = tl.arange(0, BLOCK_D)
    place = (lane * tl.num_programs(0) + tl.program_id(0)) * HEAD_DIM
    tl.store(partial + place + dims, total, mask=dims < HEAD_DIM)


@triton.jit(do_not_specialize=["tokens", "heads"])
def quantise_rows(
    states, valid, key_mean, out, scales, tokens, heads, s_batch, s_token, s_head, v_batch, v_head,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """INT8 by rows; `key_mean` and `valid` may be None."""
    lane = tl.program_id(1).to(tl.int64)
    batch, head, dims = lane // heads, lane % heads, tl.arange(0, BLOCK_D)
    token = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    x, seen = _read(states, valid, token, tokens, batch, head, s_batch, s_token, s_head, v_batch, v_head, HEAD_DIM,
                    BLOCK_D)  # fmt: skip
    if key_mean is not None:
        centre = tl.load(key_mean + lane * HEAD_DIM + dims, mask=dims < HEAD_DIM, other=0.0)
        x = tl.where(seen[:, None], x - centre[None, :], 0.0)
    finite = _is_finite(x)
    # A maximum may or may not see a NaN, by device: rows are counted as broken apart from it.
    broken = tl.max(tl.where(finite, 0, 1), 1) > 0
    scale, inverse = _scales(tl.max(tl.where(finite, tl.abs(x), 0.0), 1), 127.0)
    # Adding and taking off 1.5 * 2^23 rounds to whole numbers, ties to even.
    whole = (tl.where(finite & ~broken[:, None], x, 0.0) * inverse[:, None] + 12582912.0) - 12582912.0
    place = ((batch * tokens + token) * heads + head) * HEAD_DIM
    inside = token < tokens
    tl.store(out + place[:, None] + dims[None, :], whole.to(tl.int8), mask=inside[:, None] & (dims < HEAD_DIM)[None, :])
    tl.store(scales + lane * tokens + token, tl.where(broken, float("nan"), scale), mask=inside)


@triton.jit(do_not_specialize=["tokens", "heads"])
def quantise_channels(
    states, valid, largest, out, scales, tokens, heads, s_batch, s_token, s_head, v_batch, v_head,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """e4m3 by channels; `valid` may be None. The first program of a head writes its scales."""
    lane = tl.program_id(1).to(tl.int64)
    batch, head, dims = lane // heads, lane % heads, tl.arange(0, BLOCK_D)
    token = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    x, _ = _read(states, valid, token, tokens, batch, head, s_batch, s_token, s_head, v_batch, v_head, HEAD_DIM,
                 BLOCK_D)  # fmt: skip
    scale, inverse = _scales(tl.load(largest + lane * HEAD_DIM + dims, mask=dims < HEAD_DIM, other=0.0), 448.0)
    place = ((batch * tokens + token) * heads + head) * HEAD_DIM
    x = tl.where(_is_finite(x), x * inverse[None, :], float("nan"))
    inside = (token < tokens)[:, None] & (dims < HEAD_DIM)[None, :]
    tl.store(out + place[:, None] + dims[None, :], _e4m3(x), mask=inside)
    tl.store(scales + lane * HEAD_DIM + dims, scale, mask=(dims < HEAD_DIM) & (tl.program_id(0) == 0))


@triton.jit(do_not_specialize=["tokens", "heads"])
def shift_rows(
    states, valid, vector, shift, tokens, heads, s_batch, s_token, s_head, v_batch, v_head,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """Products of the rows with a vector of the head."""
    lane = tl.program_id(1).to(tl.int64)
    token, dims = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T), tl.arange(0, BLOCK_D)
    x, _ = _read(states, valid, token, tokens, lane // heads, lane % heads, s_batch, s_token, s_head, v_batch, v_head,
                 HEAD_DIM, BLOCK_D)  # fmt: skip
    vector = tl.load(vector + lane * HEAD_DIM + dims, mask=dims < HEAD_DIM, other=0.0)
    tl.store(shift + lane * tokens + token, tl.sum(x * vector[None, :], 1), mask=token < tokens)

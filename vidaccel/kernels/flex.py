"""The plan's mask through PyTorch's FlexAttention (arXiv 2412.05496): a second opinion, and a way on GPUs that our own
kernel does not know.

On a GPU it is compiled, once per shape, which takes seconds. On a CPU it runs uncompiled and needs memory for all
scores: for tests, and never picked by itself.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import itertools
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vidaccel.kernels.compose import composed
from vidaccel.kernels.flex_mask import Blocks
from vidaccel.plan import AttentionPlan, BlockMask

GPU_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
MIN_HEAD_DIM = 16
"""The narrowest that FlexAttention's GPU kernels have."""
KEPT_PROGRAMS = 64
_NUMBERS = itertools.count()


def why_not(query: Tensor, precision: str | None = None) -> str | None:
    """The reason this backend cannot run a call with such a query, or None."""
    if precision is not None:
        return f"it has no quantised variant, and precision is {precision!r}"
    if query.device.type not in ("cuda", "cpu"):
        return f"it runs on a GPU or a CPU, the query is on {query.device}"
    if query.device.type == "cuda" and query.dtype not in GPU_DTYPES:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in GPU_DTYPES)
        return f"on a GPU it has {names}, not {str(query.dtype).removeprefix('torch.')}"
    if query.device.type == "cuda" and query.shape[-1] < MIN_HEAD_DIM:
        return f"on a GPU it has head dims of at least {MIN_HEAD_DIM}, not {query.shape[-1]}"
    return _import_problem()


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    plan: AttentionPlan,
    *,
    key_lengths: Tensor | None,
    scale: float,
    return_lse: bool,
    precision: str | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Attention as the plan says; see `vidaccel.kernels.attention`. Forward only.

    The first call with a mask translates it and waits for the GPU; the first with a shape compiles.
    """
    return composed(run, query, key, value, plan, key_lengths=key_lengths, scale=scale, return_lse=return_lse)


def run(
    query: Tensor, key: Tensor, value: Tensor, mask: BlockMask, *, key_lengths: Tensor | None, scale: float,
    return_lse: bool,
) -> tuple[Tensor, Tensor | None]:
    """Attention over the pairs that a bare mask keeps: ``[batch, tokens, heads, head_dim]`` in and out."""
    batch, _, heads, _ = query.shape
    if key_lengths is not None:
        key_lengths = key_lengths.to(query.device, torch.int32)
    blocks = Blocks.of(mask)
    flex_mask = blocks.flex(batch, heads, key_lengths)
    inputs = tuple(each.detach().transpose(1, 2) for each in (query, key, value))
    tensors = _signature(*inputs, flex_mask.kv_indices, flex_mask.full_kv_indices, blocks.rows, blocks.keys)
    program = _program(query.device, (*tensors, blocks.tile, key_lengths is None), blocks.size, scale, return_lse)
    result = program(*inputs, flex_mask)
    out, lse = result if return_lse else (result, None)
    return out.transpose(1, 2), None if lse is None else lse.float()


def _signature(*tensors: Tensor) -> tuple[Any, ...]:
    return tuple((each.dtype, each.shape, each.stride()) for each in tensors)


@functools.lru_cache(KEPT_PROGRAMS)
def _program(device: torch.device, signature: tuple[Any, ...], size: tuple[int, int], scale: float,
             return_lse: bool) -> Callable[..., Any]:  # fmt: skip
    """FlexAttention compiled for one kind of call, which `signature` tells from others.

    torch counts compilations by code object and past a limit refuses, or runs the uncompiled way without a word. So
    each kind has a code object of its own.
    """
    module = importlib.import_module("torch.nn.attention.flex_attention")
    flex_attention, options = module.flex_attention, _options(size) if device.type == "cuda" else None
    extra: dict[str, Any] = {}
    if return_lse:
        request = getattr(module, "AuxRequest", None)
        extra = {"return_lse": True} if request is None else {"return_aux": request(lse=True)}

    def call(query: Tensor, key: Tensor, value: Tensor, mask: Any) -> Any:
        result = flex_attention(query, key, value, block_mask=mask, scale=scale, kernel_options=options, **extra)
        if not return_lse:
            return result
        return result[0], result[1] if isinstance(result[1], Tensor) else result[1].lse

    code = call.__code__.replace(co_name=f"flex_call_{next(_NUMBERS)}")
    fresh = types.FunctionType(code, call.__globals__, code.co_name, call.__defaults__, call.__closure__)
    backend = "inductor" if device.type == "cuda" else "eager"
    compiled: Callable[..., Any] = torch.compile(fresh, dynamic=False, fullgraph=True, backend=backend)
    return compiled


def _options(size: tuple[int, int]) -> dict[str, int]:
    """The kernel's tiles where torch's own choice could be larger than a block, which it refuses."""
    names = ("BLOCK_M", "BLOCK_N")
    return {name: block for name, block in zip(names, size, strict=True) if block < 128}


@functools.cache
def _import_problem() -> str | None:
    """Why this torch's FlexAttention cannot be used, or None."""
    try:
        module = importlib.import_module("torch.nn.attention.flex_attention")
    except ImportError as error:
        return f"torch {torch.__version__} has no FlexAttention ({error}); 2.6 is the first that can"
    if "seq_lengths" not in inspect.signature(module.BlockMask.from_kv_blocks).parameters:
        return f"FlexAttention of torch {torch.__version__} needs lengths of whole blocks; 2.6 takes any"
    return None

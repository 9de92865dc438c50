"""Block-sparse attention on GPUs: what the Triton kernel is launched with.

Triton is imported by the first call that needs it, so this module can be imported anywhere. With ``TRITON_INTERPRET=1``
in the environment from the start, the kernel runs on the CPU in Triton's interpreter: slow, for tests.
"""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from vidaccel import triton_launch
from vidaccel.kernels import quantise, triton_table
from vidaccel.kernels.quantise import Quantised
from vidaccel.kernels.triton_table import HEAD_DIMS, Tile
from vidaccel.mask import BlockMask
from vidaccel.plan import AttentionPlan, ExtraKeys

DTYPES = (torch.bfloat16, torch.float16)
# In the interpreter bf16 is computed on its bits as integers: wrong by many orders of magnitude, without an error.
INTERPRETER_DTYPES = (torch.float32, torch.float16)
INTERPRETER_ARCHITECTURE = "sm_90"
WORK_CLASSES = 16
MAX_TOKEN_STRIDE = 1 << 23
"""Elements; the kernel addresses up to 128 tokens from one pointer with 32 bits."""
FP8_FROM = 89
"""Compute capability from which tensor cores multiply e4m3."""


def why_not(query: Tensor, precision: str | None = None) -> str | None:
    """The reason this backend cannot run a call with such a query, or None."""
    if not triton_launch.interpreted() and query.device.type != "cuda":
        return f"it needs a CUDA or ROCm GPU, the query is on {query.device}"
    dtypes = INTERPRETER_DTYPES if triton_launch.interpreted() else DTYPES
    if query.dtype not in dtypes:
        where = "in Triton's interpreter it has" if triton_launch.interpreted() else "it has"
        return f"{where} {_names(dtypes)}, not {_names((query.dtype,))}"
    if query.shape[-1] not in HEAD_DIMS:
        return f"it has head dims {', '.join(map(str, HEAD_DIMS))}, not {query.shape[-1]}"
    if triton_table.row(name := architecture(query.device)) is None:
        return f"it has no kernel for {name}; it needs {', '.join(triton_table.TABLE)} or a successor of these"
    return _precision_problem(name, precision) or _import_problem()


def _precision_problem(name: str, precision: str | None) -> str | None:
    """Why an architecture has no fast path for a precision, or None."""
    if precision == "fp8" and (name.startswith("gfx") or int(name[3:]) < FP8_FROM):
        return f"{name} multiplies no e4m3 in tensor cores; fp8 needs sm_{FP8_FROM} or later"
    if precision is not None and (reason := triton_table.NO_INT8.get(triton_table.row(name) or "")):
        return f"{name} {reason}"
    return None


@dataclass(frozen=True, eq=False)
class Work:
    """A mask as the kernel reads it, all int32 and contiguous.

    Args:
        offsets, ranges: those of the mask.
        order: every ``pattern * tiles + tile``, the ones with most keys first.
    """

    offsets: Tensor
    ranges: Tensor
    order: Tensor

    @classmethod
    def of(cls, mask: BlockMask) -> Work:
        """Made once per mask and kept as long as the mask lives; waits for no GPU."""
        if mask not in _WORK:
            _WORK[mask] = cls(mask.offsets.contiguous(), mask.ranges.contiguous(), _heaviest_first(mask))
        return _WORK[mask]


# Weak, so that it keeps no mask alive.
_WORK: WeakKeyDictionary[BlockMask, Work] = WeakKeyDictionary()


@dataclass(frozen=True, eq=False)
class AttentionLaunch(triton_launch.Launch):
    """A launch of the attention kernel; `key_mean` is what quantised keys are less, else None."""

    key_mean: Tensor | None = None


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
    """Attention by `plan`; see `vidaccel.kernels.attention`. Forward only.

    Inputs may be strided: only one whose head dim is not dense is copied. The first call with a mask sorts its tiles.

    Raises:
        ValueError: a scale that the kernel does not have.
    """
    assert plan.mask is not None
    mask, name = plan.mask, architecture(query.device)
    tile = triton_table.choose(name, query.shape[-1], mask.query_block, mask.range_length, precision)
    launch = prepare(
        query, key, value, plan, key_lengths=key_lengths, scale=scale, return_lse=return_lse, tile=tile,
        precision=precision,
    )  # fmt: skip
    launch.run()
    out, lse = launch.arguments["out"], launch.arguments["lse"]
    if lse is not None and launch.key_mean is not None:
        lse = lse + quantise.lse_shift(query, launch.key_mean, scale)
    return out, lse


def prepare(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    plan: AttentionPlan,
    *,
    key_lengths: Tensor | None,
    scale: float,
    return_lse: bool,
    tile: Tile,
    precision: str | None = None,
) -> AttentionLaunch:
    """The launch that computes a call with the given launch parameters; its ``out`` and ``lse`` are the results.

    With a `precision` it has quantised the inputs, and its ``lse`` still lacks `quantise.lse_shift`.

    Raises:
        ValueError: a scale that is not positive and finite.
    """
    # The running maximum is taken before scaling, which a scale that is not positive would turn round.
    if not 0.0 < scale < math.inf:
        raise ValueError(f"scale={scale} is not a positive finite number")
    mask, (batch, queries, heads, head_dim) = plan.mask, query.shape
    assert mask is not None
    out = query.new_empty(query.shape)
    lse = query.new_empty((batch, heads, queries), dtype=torch.float32) if return_lse else None
    bits = None
    if precision is not None:
        bits = quantise.quantise(query, key, value, precision, key_lengths=key_lengths, key_order=plan.key_order)
    inputs = (query, key, value) if bits is None else (bits.query, bits.key, bits.value)
    arguments = _tensors(inputs, out, lse, plan, key_lengths) | _quantised(bits) | _extra(query, plan.extra, bits)
    arguments |= {"scale_log2": scale * math.log2(math.e), "queries": queries, "keys": mask.keys, "heads": heads}
    shift = quantise.WEIGHT_SHIFT[precision] if precision else 0
    head = 1 << (head_dim.bit_length() - 1)
    constants = {
        "HEAD": head, "TAIL": head_dim - head, "BLOCK_Q": tile.block_q, "BLOCK_K": tile.block_k,
        "EXTRA_K": min(tile.block_k, triton_table.EXTRA_KEYS), "SHIFT": shift,
        "PARTIAL": tile.block_k if precision == "fp8" else None,
    }  # fmt: skip
    options = {"num_warps": tile.num_warps, "num_stages": tile.num_stages}
    grid = batch * heads * mask.tiles * -(-mask.query_block // tile.block_q)
    kernel = importlib.import_module("vidaccel.kernels.triton_kernel").block_sparse_forward
    return AttentionLaunch(kernel, arguments, constants, options, (grid,), None if bits is None else bits.key_mean)


def _tensors(
    inputs: tuple[Tensor, Tensor, Tensor], out: Tensor, lse: Tensor | None, plan: AttentionPlan,
    key_lengths: Tensor | None,
) -> dict[str, Any]:  # fmt: skip
    """The kernel's arguments for inputs, results, mask and orders."""
    mask = plan.mask
    assert mask is not None
    work, query = Work.of(mask), inputs[0]
    if key_lengths is not None:
        key_lengths = key_lengths.to(query.device, torch.int32).contiguous()
    tensors = dict(zip(("query", "key", "value"), map(_addressable, inputs), strict=True)) | {"out": out}
    orders = {name: None if order is None else order.contiguous()
              for name, order in (("query_order", plan.query_order), ("key_order", plan.key_order))}  # fmt: skip
    return {
        **tensors, **orders, **_strides("qkvo", *tensors.values()), "lse": lse, "offsets": work.offsets,
        "ranges": work.ranges, "order": work.order, "key_lengths": key_lengths, "patterns": mask.patterns,
        "tiles": mask.tiles, "query_block": mask.query_block,
        "query_rows": 1 if plan.query_order is None else len(plan.query_order),
        "key_rows": 1 if plan.key_order is None else len(plan.key_order),
    }  # fmt: skip


def _quantised(bits: Quantised | None) -> dict[str, Any]:
    names = ("query_scale", "key_scale", "value_scale")
    return {name: None if bits is None else getattr(bits, name) for name in names}


def _extra(query: Tensor, extra: ExtraKeys | None, bits: Quantised | None) -> dict[str, Any]:
    """The kernel's arguments for extra keys, which stay in the inputs' type and meet the queries in it."""
    if extra is None:
        nothing = dict.fromkeys(("extra_query", "extra_key", "extra_value", "extra_bias"))
        return {**nothing, **dict.fromkeys(_names_of_strides("xey"), 0), "groups": 0, "bias_patterns": 1}
    key = extra.key if bits is None else bits.centred(extra.key)
    key, value, query = map(_addressable, (key, extra.value, query))
    return {
        "extra_query": None if bits is None else query, "extra_key": key, "extra_value": value,
        "extra_bias": extra.bias.contiguous(), **_strides("xey", query, key, value),
        "groups": extra.groups, "bias_patterns": len(extra.bias),
    }  # fmt: skip


def _strides(letters: str, *tensors: Tensor) -> dict[str, int]:
    """Strides of batch, token and head by the names of the kernel's arguments."""
    strides = (stride for tensor in tensors for stride in tensor.stride()[:3])
    return dict(zip(_names_of_strides(letters), strides, strict=True))


def _names_of_strides(letters: str) -> list[str]:
    return [f"{letter}_{part}" for letter in letters for part in ("batch", "token", "head")]


def _addressable(tensor: Tensor) -> Tensor:
    """The tensor itself, or a copy if the kernel cannot address it."""
    good = tensor.stride(-1) == 1 and 0 <= tensor.stride(1) <= MAX_TOKEN_STRIDE
    return tensor if good else tensor.contiguous()


def _heaviest_first(mask: BlockMask) -> Tensor:
    """Rows of the mask by falling number of keys, so that no long one starts when the others are nearly done.

    Sorted by classes of like work and stable, since neighbours share keys in the cache.
    """
    ends = torch.nn.functional.pad((mask.ranges[:, 1] - mask.ranges[:, 0]).cumsum(0), (1, 0))
    offsets = mask.offsets.long()
    keys = (ends[offsets[:, 1:]] - ends[offsets[:, :-1]]).flatten()
    classes = keys * WORK_CLASSES // keys.max().clamp(min=1)
    return classes.argsort(descending=True, stable=True).int()


@cache
def architecture(device: torch.device) -> str:
    """``"sm_90"`` or ``"gfx942"``; a stand-in for devices that only the interpreter uses."""
    if device.type != "cuda":
        return INTERPRETER_ARCHITECTURE
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        return str(properties.gcnArchName).split(":")[0]
    return f"sm_{properties.major}{properties.minor}"


@cache
def _import_problem() -> str | None:
    """Why the kernel cannot be imported, or None."""
    try:
        importlib.import_module("vidaccel.kernels.triton_kernel")
    except ImportError as error:
        return f"Triton cannot be imported ({error}); install the triton that goes with torch {torch.__version__}"
    return None


def _names(dtypes: tuple[torch.dtype, ...]) -> str:
    return " and ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)

"""Block-sparse attention on GPUs: what the Triton kernel is launched with.

Triton is imported by the first call that needs it, so this module can be imported anywhere. With ``TRITON_INTERPRET=1``
in the environment from the start, the kernel runs on the CPU in Triton's interpreter: slow, for tests.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import os
from dataclasses import dataclass
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from vidaccel.kernels import triton_table
from vidaccel.kernels.triton_table import HEAD_DIMS, Tile
from vidaccel.plan import BlockMask

DTYPES = (torch.bfloat16, torch.float16)
# In the interpreter bf16 is computed on its bits as integers: wrong by many orders of magnitude, without an error.
INTERPRETER_DTYPES = (torch.float32, torch.float16)
INTERPRETER_ARCHITECTURE = "sm_90"
WORK_CLASSES = 16
MAX_TOKEN_STRIDE = 1 << 23
"""Elements; the kernel addresses up to 128 tokens from one pointer with 32 bits."""


def why_not(query: Tensor, precision: str | None = None) -> str | None:
    """The reason this backend cannot run a call with such a query, or None."""
    if not _interpreted() and query.device.type != "cuda":
        return f"it needs a CUDA or ROCm GPU, the query is on {query.device}"
    dtypes = INTERPRETER_DTYPES if _interpreted() else DTYPES
    if query.dtype not in dtypes:
        where = "in Triton's interpreter it has" if _interpreted() else "it has"
        return f"{where} {_names(dtypes)}, not {_names((query.dtype,))}"
    if query.shape[-1] not in HEAD_DIMS:
        return f"it has head dims {' and '.join(map(str, HEAD_DIMS))}, not {query.shape[-1]}"
    if triton_table.row(name := architecture(query.device)) is None:
        return f"it has no kernel for {name}; it needs {', '.join(triton_table.TABLE)} or a successor of these"
    return _import_problem()


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
class Launch:
    """One launch of the kernel: `grid` programs with `arguments` and, fixed at compile time, `constants`."""

    arguments: dict[str, Any]
    constants: dict[str, int]
    options: dict[str, int]
    grid: int

    def run(self) -> None:
        """Start the kernel on the device of its tensors."""
        kernel = importlib.import_module("vidaccel.kernels.triton_kernel").block_sparse_forward
        device = self.arguments["query"].device
        # Triton launches on the current device, which need not be that of the tensors.
        with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
            kernel[(self.grid,)](**self.arguments, **self.constants, **self.options)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: BlockMask,
    *,
    key_lengths: Tensor | None,
    scale: float,
    return_lse: bool,
) -> tuple[Tensor, Tensor | None]:
    """Attention over the pairs that `mask` keeps; see `vidaccel.kernels.attention`. Forward only.

    Inputs may be strided: only one whose head dim is not dense is copied. The first call with a mask sorts its tiles.

    Raises:
        ValueError: shapes, types or a scale that the kernel does not have.
    """
    tile = triton_table.choose(architecture(query.device), query.shape[-1], mask.query_block)
    launch = prepare(
        query, key, value, mask, key_lengths=key_lengths, scale=scale, return_lse=return_lse, tile=tile
    )  # fmt: skip
    if launch.grid:
        launch.run()
    return launch.arguments["out"], launch.arguments["lse"]


def prepare(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: BlockMask,
    *,
    key_lengths: Tensor | None,
    scale: float,
    return_lse: bool,
    tile: Tile,
) -> Launch:
    """The launch that computes a call with the given launch parameters; its ``out`` and ``lse`` are the results.

    Raises:
        ValueError: as `attention`.
    """
    _check(query, key, value, key_lengths, scale)
    batch, queries, heads, head_dim = query.shape
    query, key, value = (_addressable(each) for each in (query, key, value))
    work = Work.of(mask)
    out = query.new_empty(query.shape)
    lse = query.new_empty((batch, heads, queries), dtype=torch.float32) if return_lse else None
    if key_lengths is not None:
        key_lengths = key_lengths.to(query.device, torch.int32).contiguous()
    arguments = {
        "query": query, "key": key, "value": value, "out": out, "lse": lse, "offsets": work.offsets,
        "ranges": work.ranges, "order": work.order, "key_lengths": key_lengths, "scale_log2": scale * math.log2(math.e),
        "queries": queries, "heads": heads, "patterns": mask.patterns, "tiles": mask.tiles,
        "query_block": mask.query_block,
    }  # fmt: skip
    for letter, tensor in zip("qkvo", (query, key, value, out), strict=True):
        names = (f"{letter}_batch", f"{letter}_token", f"{letter}_head")
        arguments.update(zip(names, tensor.stride()[:3], strict=True))
    constants = {"HEAD_DIM": head_dim, "BLOCK_Q": tile.block_q, "BLOCK_K": tile.block_k}
    options = {"num_warps": tile.num_warps, "num_stages": tile.num_stages}
    return Launch(arguments, constants, options, batch * heads * mask.tiles * -(-mask.query_block // tile.block_q))


def _check(query: Tensor, key: Tensor, value: Tensor, key_lengths: Tensor | None, scale: float) -> None:
    """Refuse what the kernel would read out of bounds or compute wrongly."""
    batch, _, heads, head_dim = query.shape
    for name, tensor in (("key", key), ("value", value)):
        expected = (batch, key.shape[1], heads, head_dim)
        if tensor.shape != expected:
            raise ValueError(f"{name} is {list(tensor.shape)}, the query needs {list(expected)}")
        if (tensor.dtype, tensor.device) != (query.dtype, query.device):
            raise ValueError(f"{name} is {tensor.dtype} on {tensor.device}, query {query.dtype} on {query.device}")
    if key_lengths is not None and key_lengths.shape != (batch,):
        raise ValueError(f"key_lengths is one number per batch row, [{batch}], got {list(key_lengths.shape)}")
    # The running maximum is taken before scaling, which a scale that is not positive would turn round.
    if not 0.0 < scale < math.inf:
        raise ValueError(f"scale={scale} is not a positive finite number")


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


def _interpreted() -> bool:
    """Whether kernels run in Triton's interpreter; Triton itself reads this when a kernel is defined."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")


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

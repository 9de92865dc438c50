"""Where a planning operation runs: as a Triton kernel or in torch. Triton is imported by the first launch only."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
from collections.abc import Iterator
from contextvars import ContextVar
from functools import cache
from typing import Any

import torch
from torch import Tensor

from vidaccel.triton_launch import interpreted

IMPLEMENTATIONS = ("triton", "torch")
FLOATS = (torch.float32, torch.bfloat16, torch.float16)

_forced: ContextVar[str | None] = ContextVar("forced implementation of planning operations", default=None)


@contextlib.contextmanager
def forced(implementation: str) -> Iterator[None]:
    """Within this context every planning operation runs as named: for tests and comparisons.

    Raises:
        ValueError: neither "triton" nor "torch". An operation that Triton cannot run raises it, too, saying why.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"unknown implementation {implementation!r}; choose {' or '.join(IMPLEMENTATIONS)}")
    token = _forced.set(implementation)
    try:
        yield
    finally:
        _forced.reset(token)


def uses_triton(*tensors: Tensor, unless: str | None = None) -> bool:
    """Whether an operation on these tensors runs as a Triton kernel.

    It does on CUDA and ROCm devices, and anywhere with ``TRITON_INTERPRET=1``, if all tensors are there, their types
    are ones that the kernels have, and triton is installed.

    Args:
        tensors: the inputs.
        unless: a reason of the operation's own why it cannot, such as a head dim; None if there is none.

    Raises:
        ValueError: Triton is `forced` and cannot run this.
    """
    if _forced.get() == "torch":
        return False
    reason = unless or why_not(*tensors)
    if reason and _forced.get() == "triton":
        raise ValueError(f"Triton cannot run this planning operation: {reason}")
    return reason is None


def why_not(*tensors: Tensor) -> str | None:
    """The reason that kernels cannot read these tensors, or None."""
    for tensor in tensors:
        if not interpreted() and tensor.device.type != "cuda":
            return f"it needs a CUDA or ROCm GPU, a tensor is on {tensor.device}"
        if tensor.is_floating_point() and tensor.dtype not in FLOATS:
            return f"it has {', '.join(map(str, FLOATS))}, not {tensor.dtype}"
        if interpreted() and tensor.dtype == torch.bfloat16:
            return "Triton's interpreter computes bfloat16 on its bits as integers"
    return None if _installed() else "triton is not installed"


def module(name: str) -> Any:
    """The module ``vidaccel.planning.triton_<name>`` that holds an operation's kernels."""
    return importlib.import_module(f"vidaccel.planning.triton_{name}")


@cache
def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None

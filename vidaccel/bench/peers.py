"""What is timed side by side: our kernel, PyTorch's dense attention, compiled FlexAttention, SageAttention."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vidaccel import kernels
from vidaccel.plan import AttentionPlan

Kernel = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Query, key, value ``[batch, tokens, heads, head_dim]`` to an output like the query."""

TOLERANCE = {None: 1e-2, "int8": 3e-2, "fp8": 8e-2}
"""Largest relative error by precision, on random inputs: two bf16 roundings; 8 bits of scores; 3 bits of values."""
OURS = {"cuda": "triton", "cpu": "cpu"}
LOW = {"cuda": "triton", "cpu": "reference"}
"""Our backend by the kind of device, and the one for fewer bits: on a CPU only the reference emulates them."""
SAGE = "sageattention"


class Unavailable(Exception):
    """An implementation that cannot run here; the message says why."""


@dataclass(frozen=True)
class Peer:
    """One implementation.

    Args:
        name: in results.
        make: the kernel that computes a plan, which dense ones ignore, on inputs like the given query; raises
            `Unavailable`.
        tolerance: largest relative error.
        ours: whether it is vidaccel's, whose failure is the run's.
    """

    name: str
    make: Callable[[AttentionPlan, Tensor], Kernel]
    tolerance: float = TOLERANCE[None]
    ours: bool = False


def dense(device: torch.device) -> list[Peer]:
    """PyTorch's dense attention by each of its good backends, then SageAttention, which has fewer bits."""
    if device.type == "cpu":
        return [Peer("sdpa", lambda plan, query: _sdpa())]
    named = {"sdpa-cudnn": "CUDNN_ATTENTION", "sdpa-flash": "FLASH_ATTENTION"}
    return [
        *(Peer(name, lambda plan, query, backend=backend: _sdpa(backend)) for name, backend in named.items()),  # type: ignore[misc]
        Peer(SAGE, lambda plan, query: _sage(), TOLERANCE["int8"]),
    ]


def sparse(device: torch.device) -> list[Peer]:
    """Our kernel, FlexAttention given the same blocks, and our kernel in fewer bits."""
    own, low_bits = OURS[device.type], LOW[device.type]
    low = [
        Peer(f"vidaccel-{each}", lambda plan, query, each=each: _backend(low_bits, plan, query, each),  # type: ignore[misc]
             TOLERANCE[each], True)
        for each in kernels.PRECISIONS
    ]  # fmt: skip
    return [
        Peer("vidaccel", lambda plan, query: _backend(own, plan, query), ours=True),
        Peer("flex", lambda plan, query: _backend("flex", plan, query)),
        *low,
    ]


def _sdpa(backend: str | None = None) -> Kernel:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    def plain(*inputs: Tensor) -> Tensor:
        query, key, value = (each.transpose(1, 2) for each in inputs)
        return torch.nn.functional.scaled_dot_product_attention(query, key, value).transpose(1, 2)

    if backend is None:
        return plain
    chosen = getattr(SDPBackend, backend)

    def run(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        with sdpa_kernel(chosen):
            return plain(query, key, value)

    return run


def _backend(name: str, plan: AttentionPlan, query: Tensor, precision: str | None = None) -> Kernel:
    reason = kernels.backend(name).why_not(query, precision)
    if reason is not None:
        raise Unavailable(reason)

    def run(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return kernels.attention(query, key, value, plan, precision=precision, backend_name=name)[0]

    return run


def _sage() -> Kernel:
    if importlib.util.find_spec(SAGE) is None:
        raise Unavailable(f"{SAGE} is not installed")
    sageattn = importlib.import_module(SAGE).sageattn

    def run(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out: Tensor = sageattn(query, key, value, tensor_layout="NHD", is_causal=False)
        return out

    return run

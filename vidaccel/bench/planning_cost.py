"""What the planning of whole methods costs: floating-point operations and bytes counted, time measured.

Counting needs no memory and no GPU: a method plans on tensors without contents. What is counted are the operations of
torch that its planning calls, the references where a kernel would take their place: the products are the same there,
and the bytes, each operation's inputs and outputs, are the most that planning can move.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from vidaccel.bench.shapes import Shape
from vidaccel.methods import METHODS, Method
from vidaccel.methods.head_profile import HeadProfile
from vidaccel.plan import AttentionPlan
from vidaccel.site import Site

FIRST = 10
"""The first step that is planned; the next one may start from what is remembered."""
REPEATS = 3


@dataclass(frozen=True)
class Cost:
    """What a call of `Method.plan` takes at one shape.

    Args:
        flop: of its matrix products.
        moved: bytes that its operations read and write, at most.
        dense_flop: of dense attention at this shape.
    """

    flop: float
    moved: float
    dense_flop: float

    @property
    def share(self) -> float:
        """Planning's floating-point operations over those of dense attention."""
        return self.flop / self.dense_flop


class _Moved(TorchDispatchMode):
    """Adds up the bytes of what operations read and write; views move nothing."""

    bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            self.bytes += sum(each.numel() * each.element_size() for each in _tensors((args, kwargs, out)))
        return out


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _tensors(each)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def chosen() -> dict[str, type[Method]]:
    """The methods that plan while a model runs and need no profile."""
    return {name: each for name, each in METHODS.items() if not each.static and not issubclass(each, HeadProfile)}


def planned(method: Method, shape: Shape, tensors: Sequence[Tensor], state: dict[str, Any], step: int) -> AttentionPlan:
    """One plan, at a step of a run of 50."""
    query, key, value = tensors
    return method.plan(query, key, value, Site(20, 40, step, 50, "cond", "transformer", shape.layout), state)


def counted(method: Method, shape: Shape, device: str = "meta", dtype: torch.dtype = torch.bfloat16) -> Cost:
    """The cost of a plan of a later step: what is made once for a grid, or at the first step, is left out.

    Args:
        method: which plans at every step, that is with a `refresh` of 1.
        shape: of one call.
        device: "meta"; "cpu" for a method of which only the CPU's planning reads contents (those that sample rows):
            one head is counted, then, on random numbers.
        dtype: of queries, keys and values.
    """
    heads = shape.heads if device == "meta" else 1
    size = (1, shape.tokens, heads, shape.head_dim)
    tensors = [torch.randn(size, dtype=dtype, device=device) for _ in range(3)]
    state: dict[str, Any] = {}
    planned(method, shape, tensors, state, FIRST)
    moved = _Moved()  # type: ignore[no-untyped-call]
    with FlopCounterMode(display=False) as flop, moved:
        planned(method, shape, tensors, state, FIRST + 1)
    times = shape.heads / heads
    return Cost(flop.get_total_flops() * times, moved.bytes * times, shape.dense_flop)


def timed(method: Method, shape: Shape, seed: int = 0) -> dict[str, float]:
    """Milliseconds of a plan of a later step and of dense attention on the CPU, the least of a few, and their ratio."""
    generator = torch.Generator().manual_seed(seed)
    size = (1, shape.tokens, shape.heads, shape.head_dim)
    query, key, value = (torch.randn(size, generator=generator) for _ in range(3))
    steps, state = itertools.count(FIRST), {}  # type: Iterator[int], dict[str, Any]

    def plan() -> AttentionPlan:
        return planned(method, shape, (query, key, value), state, next(steps))

    def dense() -> Tensor:
        return scaled_dot_product_attention(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))

    plan()
    planning, whole = (min(_seconds(each) for _ in range(REPEATS)) * 1e3 for each in (plan, dense))
    return {"plan_ms": planning, "dense_ms": whole, "share_of_dense": planning / whole}


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start

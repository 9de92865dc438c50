"""Times: percentiles of one call, and spans inside a run; by events on a GPU, by the clock on a CPU."""

from __future__ import annotations

import functools
import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")
WARMUP_MS, MEASURE_MS = 100, 500
"""Of calls on a GPU; slow ones run a few times at least."""
CPU_REPEATS = 5
QUANTILES = (0.2, 0.5, 0.8)
FIELDS = ("p20_ms", "p50_ms", "p80_ms")


def percentiles(call: Callable[..., Any], inputs: Sequence[Sequence[Tensor]]) -> dict[str, float]:
    """20th, 50th and 80th percentile of the milliseconds of ``call(*each)``, with the sets of inputs in turn.

    Takes turns so that no call finds its inputs in the cache. Inputs should be random: zeros run faster.
    """
    turns = itertools.cycle(inputs)

    def run() -> None:
        call(*next(turns))

    times = _on_gpu(run) if inputs[0][0].is_cuda else _on_cpu(run)
    return dict(zip(FIELDS, times, strict=True))


def _on_gpu(run: Callable[[], None]) -> list[float]:
    from triton.testing import do_bench

    return list(do_bench(run, warmup=WARMUP_MS, rep=MEASURE_MS, quantiles=list(QUANTILES)))


def _on_cpu(run: Callable[[], None]) -> list[float]:
    times = []
    for _ in range(CPU_REPEATS + 1):
        start = time.perf_counter()
        run()
        times.append((time.perf_counter() - start) * 1e3)
    ordered = sorted(times[1:])
    return [ordered[round(share * (len(ordered) - 1))] for share in QUANTILES]


def synchronize(device: torch.device) -> None:
    """Wait for a GPU; nothing on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Spans:
    """Times of many short parts of a run, without waiting for the GPU in between."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._marks: list[tuple[Any, Any]] = []
        self._open: list[Any] = []

    def begin(self) -> None:
        """A part begins; parts may nest."""
        self._open.append(self._mark())

    def end(self) -> None:
        """The part that began last ends."""
        self._marks.append((self._open.pop(), self._mark()))

    def around(self, function: Callable[..., Result]) -> Callable[..., Result]:
        """`function`, each call of which is a part."""

        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Result:
            self.begin()
            try:
                return function(*args, **kwargs)
            finally:
                self.end()

        # A compiler would drop the clock, or move the call past it.
        wrapped: Callable[..., Result] = torch.compiler.disable(timed)
        return wrapped

    def milliseconds(self) -> list[float]:
        """Of each part, in the order in which they ended; waits for a GPU."""
        synchronize(self.device)
        if self.device.type == "cuda":
            return [first.elapsed_time(last) for first, last in self._marks]
        return [(last - first) * 1e3 for first, last in self._marks]

    def median(self) -> float | None:
        """Milliseconds of the middle part; None without parts."""
        times = self.milliseconds()
        return statistics.median(times) if times else None

    def _mark(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

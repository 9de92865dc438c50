"""Watches what a pipeline's scheduler is given: the outputs after guidance, and the latents they are for."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

PROBES = 4
"""Runs with a held output that a calibration makes by default."""


class Steps:
    """The steps that a scheduler takes in one generation.

    Args:
        hold: a step for which the scheduler is given the output of the step before; None for none.
    """

    def __init__(self, hold: int | None = None) -> None:
        self.hold = hold
        self.outputs: list[Tensor] = []
        self.latents: list[Tensor] = []

    @contextlib.contextmanager
    def watching(self, scheduler: Any) -> Iterator[None]:
        """A block in which the scheduler's steps are noted, on the CPU and in fp32."""
        original = scheduler.step
        own = scheduler.__dict__.get("step")

        @functools.wraps(original)
        def step(model_output: Tensor, *args: Any, **kwargs: Any) -> Any:
            self.outputs.append(_copy(model_output))
            if self.hold is not None and len(self.outputs) == self.hold + 1:
                model_output = self.outputs[-2].to(model_output)
            out = original(model_output, *args, **kwargs)
            self.latents.append(_copy(out[0]))
            return out

        scheduler.step = step
        try:
            yield
        finally:
            if own is None:
                del scheduler.step
            else:
                scheduler.step = own

    def products(self) -> Tensor:
        """Their inner products, ``[steps, steps]``, in units of their mean square.

        Raises:
            ValueError: outputs that are no numbers.
        """
        flat = torch.stack([each.double().flatten() for each in self.outputs])
        inner = flat @ flat.T
        if not inner.isfinite().all():
            raise ValueError("the model's outputs are not finite: a clip of such a run is broken, and nothing can be "
                             "measured in it")  # fmt: skip
        return inner / inner.diagonal().mean()

    def gains(self) -> Tensor:
        """How far each step moves the latents that leave it, for an error of its output, norm by norm: ``[steps]``.

        What a scheduler returns is ``a x + b v`` for latents `x` and an output `v`, exactly for those of one step, so
        that two numbers are found from all elements. The first step's latents are not seen; no error can be there.
        """
        found = [0.0]
        for before, output, after in zip(self.latents, self.outputs[1:], self.latents[1:], strict=False):
            inner = torch.stack([each.double().flatten() for each in (before, output, after)])
            inner = inner @ inner.T
            found.append(abs((torch.linalg.pinv(inner[:2, :2]) @ inner[:2, 2])[1].item()))
        return torch.tensor(found, dtype=torch.float64)


def probed(steps: int, count: int) -> tuple[int, ...]:
    """The steps at which an error is tried: denser at the beginning, where what it does changes most; neither the first
    step, which has none before it, nor the last, of which it is known."""
    if steps < 3:
        return ()
    return tuple(sorted({round(1 + (steps - 3) * (index / count) ** 1.5) for index in range(count)}))


def effects(gains: Sequence[float], measured: dict[int, float]) -> tuple[float, ...]:
    """How far the final latents move for an error of each step's output.

    What it does at once is known (`Steps.gains`); how much of that remains at the end was measured at some steps, is
    all of it in the last step, and its logarithm goes straight between them.

    Args:
        measured: at some steps, how far the final latents moved, norm by norm.
    """
    known = {step: value / gains[step] for step, value in measured.items() if gains[step] > 0 and value > 0}
    places = sorted(known | {len(gains) - 1: 1.0})
    logs = [math.log(known.get(step, 1.0)) for step in places]
    return tuple(gain * math.exp(_between(step, places, logs)) for step, gain in enumerate(gains))


def moved(final: Tensor, probe: Steps) -> float:
    """How far the final latents moved from those of the whole run for what a probe held, norm by norm; 0 where it held
    what was there anyway."""
    assert probe.hold is not None
    error = (probe.outputs[probe.hold] - probe.outputs[probe.hold - 1]).double().norm().item()
    return (probe.latents[-1] - final).double().norm().item() / error if error > 0 else 0.0


def _between(at: int, places: Sequence[int], values: Sequence[float]) -> float:
    """Linear between the places; the nearest one's beyond them."""
    if at <= places[0]:
        return values[0]
    after = next(index for index, place in enumerate(places) if place >= at)
    if places[after] == at:
        return values[after]
    share = (at - places[after - 1]) / (places[after] - places[after - 1])
    return values[after - 1] + share * (values[after] - values[after - 1])


def _copy(states: Tensor) -> Tensor:
    return states.detach().to("cpu", torch.float32, copy=True)

"""A polynomial tells from a cheap signal how much a step will change the output."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from vidaccel.caching.base import CachePolicy, Signals, Turn, Verdict, check_share
from vidaccel.caching.changes import relative_change
from vidaccel.caching.published import TEACACHE

AUTO, TIME, INPUT = "auto", "time", "input"
DISTANCES, BEFORE, SUM, SIGNAL = "distances", "before", "sum", "signal"
DEGREE = 4


@dataclass(frozen=True)
class TeaCache(CachePolicy):
    """TeaCache: steps are reused until the changes that they are expected to make add up to a threshold.

    With ``m`` the signal of a step, ``d = mean|m - m before| / mean|m before|`` and P a polynomial that was fitted to
    the change of the model's output, ``sum += P(d)``: below `threshold` the step is reused, else it is computed and the
    sum starts from 0 again. P counts as 0 where it is negative, and outside the fitted range as at its border.

    The time embedding depends on no prompt and no latents: where the run's timesteps are known, all distances are
    computed when they are first asked for (again where the plan forbids to look back), and no other step waits for
    the device. Else each step that may be reused waits once. The other signal is one tensor ``[batch, tokens, dim]``
    that is kept from step to step.

    Args:
        threshold: of the sum; None for the slow one that the authors give for `model`.
        coefficients: of P, highest power first; ``(1, 0)`` takes distances as they are. None for those of `model`.
        model: whose published numbers to take, see `vidaccel.caching.published.TEACACHE`.
        signal: "time", the model's embedding of the timestep (Wan, CogVideoX); "input", what the first block's
            attention reads (HunyuanVideo); "auto", the one that the coefficients of `model` were fitted to, else
            "time" where the model has it.
        range: smallest and largest distance that P was fitted to; None where that is not known.

    Raises:
        ValueError: a bad value, an unknown model, neither coefficients nor a model, coefficients without a threshold,
            or options that contradict the model's.
    """

    name: ClassVar[str] = "teacache"
    paper: ClassVar[str] = "https://arxiv.org/abs/2411.19108"

    threshold: float | None = None
    coefficients: tuple[float, ...] | None = None
    model: str | None = None
    signal: str = AUTO
    range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.signal not in (AUTO, TIME, INPUT):
            raise ValueError(f"signal {self.signal!r} is not one of {AUTO}, {TIME}, {INPUT}")
        for name in ("coefficients", "range"):
            if (given := getattr(self, name)) is not None:
                object.__setattr__(self, name, _numbers(name, given))
        if self.range is not None and (len(self.range) != 2 or not 0 <= self.range[0] < self.range[1]):
            raise ValueError(f"range {self.range!r} is not a smallest distance from 0 on and a larger one")
        self._fill()
        if self.coefficients is None:
            raise ValueError("teacache needs coefficients, of the model's polynomial, or a model with published ones: "
                             f"{', '.join(TEACACHE)}")  # fmt: skip
        if self.threshold is None:
            raise ValueError("teacache with coefficients needs a threshold, too")
        check_share("threshold", self.threshold)

    def _fill(self) -> None:
        """Take what `model` has; options beside it may only repeat it, but the threshold is the user's."""
        if self.model is None:
            return
        if self.model not in TEACACHE:
            raise ValueError(f"teacache has no published numbers for model {self.model!r}; choose "
                             f"{', '.join(TEACACHE)}, or give coefficients")  # fmt: skip
        known = TEACACHE[self.model]
        if self.coefficients not in (None, known.coefficients) or self.signal not in (AUTO, known.signal):
            raise ValueError(f"model {self.model!r} has its own coefficients, of signal {known.signal!r}: "
                             "leave out model to give others")  # fmt: skip
        object.__setattr__(self, "coefficients", known.coefficients)
        object.__setattr__(self, "signal", known.signal)
        if self.threshold is None:
            object.__setattr__(self, "threshold", known.slow)

    def expected(self, distance: float) -> float:
        """The change of the output that is expected at this distance of the signals: P, clipped; NaN of NaN."""
        assert self.coefficients is not None
        low, high = self.range or (-math.inf, math.inf)
        total, at = 0.0, min(max(distance, low), high)
        for coefficient in self.coefficients:
            total = total * at + coefficient
        return 0.0 if total < 0 else total

    def decide(self, turn: Turn, signals: Signals, state: dict[str, Any]) -> Verdict:
        assert self.threshold is not None
        forced = turn.must_compute or turn.since == 0
        of = _of_time if self._source(turn, signals, state) == TIME else _of_input
        distance = of(turn, signals, state, not forced)
        if distance is None:
            state[SUM] = 0.0
            return Verdict(False)
        total = state.get(SUM, 0.0) + self.expected(distance)
        reuse = not forced and total < self.threshold * turn.allowance
        state[SUM] = total if reuse else 0.0
        return Verdict(reuse, total)

    def _source(self, turn: Turn, signals: Signals, state: dict[str, Any]) -> str:
        """Which signal counts; what "auto" found is remembered."""
        if self.signal != AUTO:
            return self.signal
        if SIGNAL not in state:
            try:
                signals.time_embedding((turn.timestep,))
                state[SIGNAL] = TIME
            except ValueError:
                state[SIGNAL] = INPUT
        found: str = state[SIGNAL]
        return found


def distances(series: Tensor) -> Tensor:
    """Of each row but the first, its relative L1 distance from the one before: fp32 ``[rows - 1]``.

    Args:
        series: ``[rows, dim]``.
    """
    rows = series.detach().float()
    sizes = rows.abs().mean(1).clamp_min_(torch.finfo(torch.float32).tiny)
    return rows.diff(dim=0).abs_().mean(1) / sizes[:-1]


def fit(distances: Sequence[float], changes: Sequence[float]) -> tuple[float, ...]:
    """The coefficients, highest power first, of the polynomial of degree 4 that is nearest by least squares.

    Args:
        distances: of signals, see `TeaCache`.
        changes: of the model's output at the same steps, relative L1, too.

    Raises:
        ValueError: not as many of both, one that is no finite number, or fewer different distances than coefficients.
    """
    pairs = np.asarray(distances, dtype=np.float64), np.asarray(changes, dtype=np.float64)
    if pairs[0].ndim != 1 or pairs[0].shape != pairs[1].shape:
        raise ValueError(f"{pairs[0].shape} distances and {pairs[1].shape} changes are not pairs")
    if not np.isfinite(pairs).all():
        raise ValueError("distances and changes are not all finite")
    if len(np.unique(pairs[0])) <= DEGREE:
        raise ValueError(f"{len(np.unique(pairs[0]))} different distances: a fit needs {DEGREE + 1} or more")
    return tuple(float(each) for each in np.polyfit(*pairs, DEGREE))


def _of_time(turn: Turn, signals: Signals, state: dict[str, Any], needed: bool) -> float | None:
    """The distance of this step's time embedding; None at the first step, or where it is not known for nothing."""
    if turn.timesteps is not None:
        if DISTANCES not in state:
            state[DISTANCES] = signals.agreed(distances(signals.time_embedding(turn.timesteps))).tolist()
        return state[DISTANCES][turn.step - 1] if turn.step else None
    before, state[BEFORE] = state.get(BEFORE), turn.timestep
    if before is None or not needed:
        return None
    return signals.agreed(distances(signals.time_embedding((before, turn.timestep)))).item()


def _of_input(turn: Turn, signals: Signals, state: dict[str, Any], needed: bool) -> float | None:
    """The distance of what the first block's attention reads; None where it has no step before, or is not needed."""
    now = signals.modulated().detach()
    before, state[BEFORE] = state.get(BEFORE), now
    if before is None or not needed:
        return None
    return relative_change(now, before, signals.mean).item()


def _numbers(name: str, given: Any) -> tuple[float, ...]:
    """A list of numbers as a tuple, as a frozen policy is hashed by.

    Raises:
        ValueError: it is something else.
    """
    if isinstance(given, list | tuple) and given:
        good = all(isinstance(each, int | float) and not isinstance(each, bool) and math.isfinite(each)
                   for each in given)  # fmt: skip
        if good:
            return tuple(float(each) for each in given)
    raise ValueError(f"{name} {given!r} is not a list of finite numbers")

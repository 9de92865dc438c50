"""One transformer call on its way through a cache, and what is remembered of those before it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from vidaccel.caching.base import Turn
from vidaccel.caching.changes import Mean, here, relative_change
from vidaccel.caching.log import Decision
from vidaccel.caching.predictors import Kept, Predictor
from vidaccel.caching.signals import Model, Seen
from vidaccel.site import Ranks

Streams = list[Tensor]
Spot = tuple[int, int]
"""Of what is kept: segment and stream."""
OUTPUT: Spot = (0, 0)


@dataclass(frozen=True)
class Arrival:
    """One transformer call, as the session announces it.

    Args:
        expert, branch: the transformer and the guidance pass.
        index: calls of this step before it.
        step, steps, timestep, timesteps: see `Turn`.
        may_reuse: whether the plan leaves this step to the cache.
        regime: of the attention, the weights and the grid: nothing of one stands for another.
        sparse: whether the regime has sparse attention.
        allowance: see `Turn`.
        rows: where the batch rows that decide begin, as a share of the batch.
        call: the arguments of the forward.
        prepare: to be told which blocks will run, before they do.
        every: the processes that compute this clip together, whose blocks get their own tokens; None for one alone.
    """

    expert: str
    branch: str
    index: int
    step: int
    steps: int | None
    timestep: float
    timesteps: tuple[float, ...] | None
    may_reuse: bool
    regime: Hashable
    sparse: bool
    allowance: float
    rows: float
    call: Any
    prepare: Callable[[Sequence[int]], None]
    every: Ranks | None = None


@dataclass
class Difference:
    """What the unconditional pass had that the conditional one had not, of the steps that computed both."""

    kept: dict[Spot, Kept] = field(default_factory=dict)
    guided: int = 0
    """Steps in a row that went by it."""
    _change: Tensor | float | None = None

    def measure(self, predictor: Predictor, spot: Spot, step: int, value: Tensor, mean: Mean = here) -> None:
        """Both passes of a step were computed; `mean` as `Seen.mean`."""
        last = self.kept.get(spot)
        if spot == OUTPUT:
            # Of several segments and streams, the first one's video tokens speak for all, as where policies observe.
            self.guided = 0
            if last is not None:
                self._change = relative_change(value, last.last, mean) / (step - last.step)
        self.kept[spot] = predictor.keep(last, step, value)

    def change(self) -> float | None:
        """Mean absolute change over the last two such steps, relative to the former, for each step between them; None
        before there are two. Waits for a GPU, once for each that was measured."""
        if isinstance(self._change, Tensor):
            self._change = self._change.item()
        return self._change


@dataclass
class Branch:
    """What is remembered of one guidance pass of one transformer in one regime."""

    regime: Hashable
    kept: dict[Spot, Kept] = field(default_factory=dict)
    difference: Difference = field(default_factory=Difference)
    state: dict[str, Any] = field(default_factory=dict)
    step: int | None = None
    """The last computed one."""
    reused: int = 0
    """Steps in a row that were not computed."""


@dataclass
class Pass:
    """One forward on its way."""

    arrival: Arrival
    model: Model
    transformer: nn.Module
    branch: Branch
    segments: tuple[tuple[int, int], ...]
    seen: Seen
    turn: Turn | None = None
    decision: Decision | None = None
    entered: Streams = field(default_factory=list)

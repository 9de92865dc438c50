"""One transformer call on its way through a cache, and what is remembered of those before it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from vidaccel.caching.base import Turn
from vidaccel.caching.log import Decision
from vidaccel.caching.predictors import Kept
from vidaccel.caching.signals import Model, Seen

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
        regime: of the attention and the weights: nothing of one stands for another.
        sparse: whether the regime has sparse attention.
        allowance: see `Turn`.
        rows: where the batch rows that decide begin, as a share of the batch.
        call: the arguments of the forward.
        prepare: to be told which blocks will run, before they do.
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


@dataclass
class Branch:
    """What is remembered of one guidance pass of one transformer in one regime."""

    regime: Hashable
    kept: dict[Spot, Kept] = field(default_factory=dict)
    difference: dict[Spot, Tensor] = field(default_factory=dict)
    """What the unconditional pass had that the conditional one had not, when both were computed last."""
    state: dict[str, Any] = field(default_factory=dict)
    step: int | None = None
    """The last computed one."""
    reused: int = 0
    """Steps in a row that were not computed."""
    guided: int = 0
    """Of the computed steps, those in a row that went by `difference`."""


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

"""What the transformer calls of a run were, and what they took."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from vidaccel.caching.log import COMPUTED
from vidaccel.pipelines import experts
from vidaccel.session import Session


@dataclass(frozen=True)
class Work:
    """The transformer calls of a run by kind.

    Args:
        dense, sparse: computed ones, without and with sparse attention.
        given: those that a cache gave.
        given_cost: what one of these took, over a dense one.
    """

    dense: int
    sparse: int = 0
    given: int = 0
    given_cost: float = 0.0

    def share(self, pace: float) -> float:
        """Time of all calls over that of as many dense ones; `pace` is that of a sparse call."""
        every = self.dense + self.sparse + self.given
        return (self.dense + pace * self.sparse + self.given_cost * self.given) / every


@contextlib.contextmanager
def timed_calls(pipe: Any) -> Iterator[list[float]]:
    """Seconds of each transformer call in the block, planning included; waits for a GPU at both ends of each."""
    seconds: list[float] = []
    began: list[float] = []
    handles: list[Any] = []
    for transformer in experts(pipe).values():
        # Before the session's own hook, which plans.
        start = transformer.register_forward_pre_hook(lambda *_: began.append(_now()), prepend=True)
        handles += [start, transformer.register_forward_hook(lambda *_: seconds.append(_now() - began.pop()))]
    try:
        yield seconds
    finally:
        for handle in handles:
            handle.remove()


def work_of(session: Session, calls: int, steps: int, pace: float) -> Work:
    """What a run that has just ended did.

    Args:
        calls: transformer calls of the run.
        steps: of the run.
        pace: of a sparse call, over a dense one.
    """
    log = session.summary().log
    if log is None or not log.decisions:
        plan = session.setting.schedule.resolve(steps, 1)
        sparse = sum(plan.sparse_step(call * steps // calls) for call in range(calls)) if session.setting.sparse else 0
        return Work(calls - sparse, sparse)
    took, given = [], []
    for seconds, each in zip(log.seconds(), log.decisions, strict=True):
        if each.what == COMPUTED:
            took.append(seconds / pace if each.sparse else seconds)
        else:
            given.append(seconds)
    computed = [each for each in log.decisions if each.what == COMPUTED]
    sparse = sum(each.sparse for each in computed)
    return Work(len(computed) - sparse, sparse, len(given), _ratio(given, took))


def _ratio(given: Sequence[float], took: Sequence[float]) -> float:
    """Of the medians; 0 where one is missing."""
    return statistics.median(given) / statistics.median(took) if given and took else 0.0


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()

"""How long work will still take, from what was measured of it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Task:
    """A piece of work.

    Args:
        kind: tasks of one kind take about as long.
        like: a kind that takes about as long as this one, for as long as nothing is known of its own.
        steps: of denoising; the most, where it is not known how many they will be.
    """

    kind: str
    like: str
    steps: int


@dataclass(frozen=True)
class Pace:
    """What work took so far.

    Args:
        kinds: how many tasks of each kind are done, and the seconds of all of them.
        steps, seconds: of all steps that were taken, those of tasks that are not done too.
    """

    kinds: dict[str, tuple[int, float]] = field(default_factory=dict)
    steps: int = 0
    seconds: float = 0.0

    def expected(self, task: Task) -> float | None:
        """Seconds of a task: the mean of its kind, else of one like it, else by its steps; None before the first."""
        for kind in (task.kind, task.like):
            if kind in self.kinds:
                count, seconds = self.kinds[kind]
                return seconds / count
        return task.steps * self.seconds / self.steps if self.steps else None

    @classmethod
    def merged(cls, paces: Iterable[Pace]) -> Pace:
        """That of several processes together."""
        kinds: dict[str, tuple[int, float]] = {}
        steps, seconds = 0, 0.0
        for pace in paces:
            steps, seconds = steps + pace.steps, seconds + pace.seconds
            for kind, (count, took) in pace.kinds.items():
                before = kinds.get(kind, (0, 0.0))
                kinds[kind] = (before[0] + count, before[1] + took)
        return cls(kinds, steps, seconds)


def seconds_left(waiting: Sequence[Task], pace: Pace, current: Task | None = None, spent: float = 0.0,
                 processes: int = 1) -> float | None:  # fmt: skip
    """Seconds until all is done; None where nothing was measured yet.

    Args:
        waiting: tasks that nobody has finished, apart from `current`.
        pace: of all processes.
        current: the task at work here.
        spent: seconds on it so far.
        processes: that share the work.
    """
    expected = [pace.expected(task) for task in waiting]
    rest = 0.0 if current is None else pace.expected(current)
    if rest is None or None in expected:
        return None
    total = sum(each for each in expected if each is not None) + max(rest - spent, 0.0)
    return total / max(1, min(processes, len(waiting) + (current is not None)))


class Forecast:
    """Follows one process through its share of the tasks.

    Args:
        tasks: of all processes, in the same order for each.
        clock: seconds.
    """

    def __init__(self, tasks: Sequence[Task], clock: Callable[[], float] = time.monotonic) -> None:
        self.tasks, self._clock = tasks, clock
        self._done: set[int] = set()
        self._pace = Pace()
        self._current: int | None = None
        self._began: float | None = None

    def begin(self, index: int | None = None) -> None:
        """A task starts, or work that is none of them."""
        self._current, self._began = index, self._clock()

    def step(self) -> None:
        """A denoising step was taken."""
        self._pace = dataclasses.replace(self._pace, steps=self._pace.steps + 1)

    def end(self, typical: bool = True) -> None:
        """What began is over; `typical` tells whether its time says something about others of its kind."""
        spent, kinds = self._spent(), {}
        if self._current is not None:
            self._done.add(self._current)
            kinds = {self.tasks[self._current].kind: (1, spent)} if typical else {}
        self._pace = Pace.merged([self._pace, Pace(kinds, 0, spent)])
        self._current = self._began = None

    def to_dict(self) -> dict[str, Any]:
        """What other processes need to know, JSON-ready."""
        return {"done": sorted(self._done), "kinds": self._pace.kinds, "steps": self._pace.steps,
                "seconds": self._pace.seconds + self._spent()}  # fmt: skip

    def done(self, others: Sequence[dict[str, Any] | None] = ()) -> set[int]:
        """Indices of the tasks that are over, here or in other processes."""
        return self._done.union(*(each["done"] for each in others if each))

    def left(self, others: Sequence[dict[str, Any] | None] = ()) -> float | None:
        """Seconds until all is done; None where nothing was measured yet.

        Args:
            others: what the `to_dict` of each other process said last; None for those that said nothing yet.
        """
        over = self.done(others) | {self._current}
        waiting = [task for index, task in enumerate(self.tasks) if index not in over]
        known = [Pace({kind: (count, seconds) for kind, (count, seconds) in each["kinds"].items()}, each["steps"],
                      each["seconds"]) for each in others if each]  # fmt: skip
        mine = dataclasses.replace(self._pace, seconds=self._pace.seconds + self._spent())
        current = None if self._current is None else self.tasks[self._current]
        return seconds_left(waiting, Pace.merged([mine, *known]), current, self._spent(), len(others) + 1)

    def _spent(self) -> float:
        return 0.0 if self._began is None else self._clock() - self._began

"""A run that ends in time: the most important first, and what did not fit is named."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

Line = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """One part of a run.

    Args:
        name: for progress, and for the list of what was left out.
        rank: of importance; the lowest runs first.
        lines: makes its results, one by one.
        seconds: about how long it takes on a fast GPU; it is left out if less is left.
    """

    name: str
    rank: int
    lines: Callable[[], Iterator[Line]]
    seconds: float = 10.0


class Budget:
    """Seconds from now on; None is no limit."""

    def __init__(self, minutes: float | None) -> None:
        self._end = None if minutes is None else time.monotonic() + 60 * minutes

    def left(self) -> float:
        """Seconds left, infinity without a limit."""
        return float("inf") if self._end is None else self._end - time.monotonic()

    def run(self, tasks: list[Task], left_out: list[str]) -> Iterator[Line]:
        """Results of the tasks in order of importance; names of those that did not fit are added to `left_out`.

        A task that has begun is ended after the line at which time is up.
        """
        for task in sorted(tasks, key=lambda task: task.rank):
            if self.left() < task.seconds:
                left_out.append(task.name)
                continue
            for count, line in enumerate(task.lines(), 1):
                yield line
                if self.left() < 0:
                    left_out.append(f"{task.name}, whatever comes after its {count}")
                    break

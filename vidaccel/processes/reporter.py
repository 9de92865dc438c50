"""Tells what a job is at and how long it will still take, from all processes that share it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from vidaccel.processes.crew import Crew
from vidaccel.processes.forecast import Forecast, Task

Progress = Callable[[str, int, int, float | None], None]
"""Called after each denoising step with what is at work, the steps done and all steps of its generation, and the
seconds until the whole job is done, None where nothing is known yet. While others are waited for: tasks, not steps."""
ASK = 1.0
"""Seconds between two questions to other processes."""


class Reporter:
    """Follows this process, and hears of the others.

    Args:
        tasks: of all processes.
        progress: told of every step.
    """

    def __init__(self, tasks: Sequence[Task], crew: Crew, progress: Progress) -> None:
        self.crew, self.progress, self._forecast = crew, progress, Forecast(tasks)
        self._label = ""
        self._asked, self._others = time.monotonic(), crew.told()

    def begin(self, label: str, task: int | None = None) -> None:
        """A task starts, or work that is none of them."""
        self._label = label
        self._forecast.begin(task)

    def step(self, done: int, steps: int) -> None:
        """A denoising step of it was taken."""
        self._forecast.step()
        self._listen()
        self.progress(self._label, done, steps, self._forecast.left(self._others))

    def end(self, typical: bool = True) -> None:
        """What began is over; `typical` as for `Forecast.end`."""
        self._forecast.end(typical)
        self.crew.tell(self._forecast.to_dict())

    def waiting(self) -> None:
        """Nothing is left to do here but to wait for the others."""
        if self._listen():
            done = len(self._forecast.done(self._others))
            self.progress("other processes", done, len(self._forecast.tasks), self._forecast.left(self._others))

    def done(self) -> list[int]:
        """The tasks that ended here."""
        return sorted(self._forecast.done())

    def _listen(self) -> bool:
        now = time.monotonic()
        if now - self._asked < ASK:
            return False
        self._asked, self._others = now, self.crew.told()
        return True

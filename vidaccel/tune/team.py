"""The processes of a tuning: the main one leads, and all of them run generations at once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

from vidaccel.processes import Crew, share

Job = dict[str, Any]
"""What a process is to run, of what JSON has."""
JOBS, ALL = "jobs", "all"


class Team:
    """Hands out jobs.

    Args:
        crew: the processes.
        do: runs a job here; returns what JSON has.
    """

    def __init__(self, crew: Crew, do: Callable[[Job], Any]) -> None:
        self.crew, self.do = crew, do

    @property
    def size(self) -> int:
        """How many generations run at once."""
        return self.crew.size

    def run(self, jobs: Sequence[Job]) -> list[Any]:
        """What came of each job, done by one process each; for the main process.

        Raises:
            Exception: what a job raised, in any process.
        """
        if not jobs:
            return []
        self.crew.gather({JOBS: list(jobs)})
        return self._round(jobs)

    def everyone(self, job: Job) -> None:
        """Have the others do a job in which all take part, this one by itself; for the main process."""
        self.crew.gather({ALL: job})

    def serve(self) -> None:
        """Do what the main process asks for, until it ends; for the others.

        Raises:
            Exception: what a job raised, in any process.
        """
        while (said := self.crew.gather(None)[0]) is not None:
            if JOBS in said:
                self._round(said[JOBS])
                continue
            # What all of them refuse is told by the main one.
            with contextlib.suppress(ValueError):
                self.do(said[ALL])

    def end(self) -> None:
        """There is nothing more to do; for the main process."""
        self.crew.gather(None)

    def _round(self, jobs: Sequence[Job]) -> list[Any]:
        done: dict[str, Any] = {}

        def one(index: int) -> None:
            done[str(index)] = self.do(jobs[index])

        share(self.crew, range(len(jobs)), one)
        everyone = self.crew.gather(done)
        merged = {index: each for found in everyone for index, each in found.items()}
        return [merged[str(index)] for index in range(len(jobs))]

"""What a process of a tuning does when the main one asks for it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vidaccel.caching.calibration import CacheCalibration
from vidaccel.eval.runner import attached
from vidaccel.processes import Crew, appears
from vidaccel.tune.final import CLIP, Final
from vidaccel.tune.lab import DENSE_RUN, RUN, Lab
from vidaccel.tune.ready import CALIBRATE, file_of, keep, measured_calibration
from vidaccel.tune.team import Job


class Hand:
    """Runs jobs on the model of its process, which is the one of the others, too.

    Args:
        lab: runs candidates; nothing is written into its journal here.
        final: decodes them.
        crew: the processes.
    """

    def __init__(self, lab: Lab, final: Final, crew: Crew) -> None:
        self.lab, self.final, self.crew = lab, final, crew
        self._kinds: dict[str, Callable[[Job], Any]] = {
            DENSE_RUN: lambda job: lab.dense_run(job["prompt"]), RUN: self._candidate, CLIP: self._decoded,
            CALIBRATE: self._calibrated,
        }  # fmt: skip

    def do(self, job: Job) -> Any:
        """Run a job."""
        return self._kinds[job["kind"]](job)

    def _candidate(self, job: Job) -> dict[str, Any]:
        self._know(job)
        return self.lab.outcome(job["settings"], job["prompt"], job["pace"])

    def _decoded(self, job: Job) -> list[dict[str, Any]]:
        self._know(job)
        return self.final.decoded(job["settings"], job["prompt"])

    def _calibrated(self, job: Job) -> None:
        self._know(job)
        sparse = job["settings"] is not None
        with attached(self.lab.session(job["settings"])) if sparse else contextlib.nullcontext():
            measured_calibration(self.lab, job["name"], self._folder, sparse, lambda: None, self.crew)

    @property
    def _folder(self) -> Path:
        return self.lab.store.out

    def _know(self, job: Job) -> None:
        """Read the calibrations that the main process made since."""
        for name in set(job["calibrations"]) - set(self.lab.base.calibrations):
            path = file_of(self._folder, name)
            appears(path)
            keep(self.lab, name, CacheCalibration.load(path))

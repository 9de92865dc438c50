"""Which step of which run a transformer call belongs to."""

from __future__ import annotations

import itertools
import math

from torch import Tensor


class Clock:
    """Counts steps and guidance passes from the timesteps that the transformers are called with.

    A new run is a new `scheduler.timesteps` object (every pipeline sets its timesteps anew, also after a run that an
    exception ended) or a timestep that rises. Known gap: on a bare transformer, a run of one step that follows another
    run of one step at the same timestep is not seen as new.
    """

    def __init__(self, steps: int | None = None) -> None:
        self._given = steps
        self._source: Tensor | None = None
        self._last = math.inf
        self._fresh = True
        self.step = 0
        """Step of this run, from 0."""
        self.steps = steps
        """Steps of this run, None where unknown."""
        self.timesteps: tuple[float, ...] | None = None
        """The timestep of each step of this run, None where unknown."""
        self.calls = 0
        """Transformer calls of this step before the present one."""

    def tick(self, timestep: float, timesteps: Tensor | None) -> bool:
        """Count one transformer call; True if it opens a new run.

        Args:
            timestep: of this call.
            timesteps: the scheduler's, None for a bare transformer.
        """
        new_run = self._fresh or timesteps is not self._source or timestep > self._last
        if new_run:
            self._fresh, self._source, self.step, self.calls = False, timesteps, 0, 0
            self.timesteps = None if timesteps is None else _remaining(timesteps, timestep)
            self.steps = self._given if self.timesteps is None else len(self.timesteps)
        elif timestep < self._last:
            self.step, self.calls = self.step + 1, 0
        else:
            self.calls += 1
        self._last = timestep
        return new_run


def _remaining(timesteps: Tensor, first: float) -> tuple[float, ...]:
    """Those from timestep `first` on: a video-to-video run starts late, and Heun's schedulers list timesteps twice."""
    values = [float(value) for value, _ in itertools.groupby(timesteps.tolist())]
    return tuple(values[min(range(len(values)), key=lambda index: abs(values[index] - first)) :])

"""Which step of which run a transformer call belongs to."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor


class Clock:
    """Counts steps and guidance passes from the timesteps that the transformers are called with.

    A new run is a new `scheduler.timesteps` object (every pipeline sets its timesteps anew, also after a run that an
    exception ended) or a timestep that goes back. Known gap: on a bare transformer, a run of one step that follows
    another run of one step at the same timestep is not seen as new.

    Args:
        steps: of a run, for bare transformers.
        rising: whether timesteps rise over a run; with nearly all models they fall.
    """

    def __init__(self, steps: int | None = None, rising: bool = False) -> None:
        self._given = steps
        self._onwards = 1 if rising else -1
        self._source: Tensor | None = None
        self._last = 0.0
        self._index: int | None = None
        self._fresh = True
        self.step = 0
        """Step of this run, from 0."""
        self.steps = steps
        """Steps of this run, None where unknown."""
        self.timesteps: tuple[float, ...] | None = None
        """The timestep of each step of this run, None where unknown."""
        self.calls = 0
        """Transformer calls of this step before the present one."""

    def read(self, timestep: Tensor, scheduler: Any, scheduled: Tensor | None = None) -> bool:
        """Count one transformer call with this timestep, of any shape: the largest counts; True if it opens a new run.

        Args:
            scheduler: the pipeline's, None for a bare transformer.
            scheduled: its timesteps as the transformer gets them, where those are others.
        """
        timesteps = getattr(scheduler, "timesteps", None)
        known = timesteps if isinstance(timesteps, Tensor) else None
        index = getattr(scheduler, "_step_index", None)
        return self.tick(float(timestep.max()), known, timestep.dtype, index, scheduled)

    def tick(
        self, timestep: float, timesteps: Tensor | None, dtype: torch.dtype = torch.float32, index: int | None = None,
        scheduled: Tensor | None = None,
    ) -> bool:  # fmt: skip
        """Count one transformer call; True if it opens a new run.

        Args:
            timestep: of this call.
            timesteps: the scheduler's, None for a bare transformer.
            dtype: in which the call had its timestep: HunyuanVideo's pipeline rounds it to bfloat16, and then up to
                three steps in a row have the same.
            index: of the scheduler's own count of steps, if it has one, by which such steps are told apart.
            scheduled: `timesteps` as the transformer gets them, where those are others.
        """
        onwards = (timestep - self._last) * self._onwards
        new_run = self._fresh or timesteps is not self._source or onwards < 0
        if new_run:
            self._fresh, self._source, self.step, self.calls = False, timesteps, 0, 0
            known = timesteps if scheduled is None else scheduled
            self.timesteps = None if known is None else _remaining(known, timestep)
            self.steps = self._given if self.timesteps is None else len(self.timesteps)
        elif onwards > 0 or (index != self._index and self._rounded_alike(timestep, dtype)):
            self.step, self.calls = self.step + 1, 0
        else:
            self.calls += 1
        self._last, self._index = timestep, index
        return new_run

    def _rounded_alike(self, timestep: float, dtype: torch.dtype) -> bool:
        """Whether the next step has this timestep, too, once it is rounded."""
        if self.timesteps is None or self.step + 1 >= len(self.timesteps):
            return False
        return torch.tensor(self.timesteps[self.step + 1]).to(dtype).item() == timestep


def _remaining(timesteps: Tensor, first: float) -> tuple[float, ...]:
    """Those from timestep `first` on: a video-to-video run starts late, and Heun's schedulers list timesteps twice."""
    values = [float(value) for value, _ in itertools.groupby(timesteps.tolist())]
    return tuple(values[min(range(len(values)), key=lambda index: abs(values[index] - first)) :])

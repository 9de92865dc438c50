"""Strides of time that change while a run is on its way: a velocity that is not exact is followed less far."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

EULER = "FlowMatchEulerDiscreteScheduler"
APART = 1e-6
"""Neighbouring sigmas differ by this share at least, which fp32 can tell apart, also as timesteps."""


class TimeScale:
    """The strides of one run of a flow-matching Euler scheduler, of which some are shortened as the run gets there.

    Sigmas to come and their timesteps are written into the scheduler's own tensors, where its next step and the
    pipeline's loop read them, so that the model is always told the noise that its latents have. The run ends where it
    would have, and what is not shortened is not touched.

    Args:
        scheduler: with the timesteps of a run that begins.
        steps: of the run, which may start late in the scheduler's.

    Raises:
        ValueError: see `check`, or timesteps that are not those of the sigmas.
    """

    def __init__(self, scheduler: Any, steps: int) -> None:
        check(scheduler)
        self._scheduler = scheduler
        self._sigmas: Tensor = scheduler.sigmas
        self._timesteps: Tensor = scheduler.timesteps
        self._trained = scheduler.config.num_train_timesteps
        if not _belong(self._sigmas, self._timesteps, self._trained):
            raise ValueError(f"steps of time cannot be adjusted where the timesteps of a {EULER} are not those of its "
                             "sigmas: give a run sigmas= alone, or neither")  # fmt: skip
        self._values: list[float] = self._sigmas.tolist()
        self._before: tuple[Tensor, Tensor] | None = None
        self._offset = len(self._timesteps) - steps
        self._shares: list[float] = []

    def shorten(self, step: int, share: float, until: int, dtype: torch.dtype) -> None:
        """Let a step, whose model call is under way, take a share of its time, and those after it the rest.

        Args:
            step: of the run.
            share: in [0, 1]; somewhat more is taken where the next timestep would otherwise be the same.
            until: the step, or the end of the run, whose start stays where it is.
            dtype: in which the model gets its timesteps.
        """
        at, end = self._offset + step, self._offset + until
        if end <= at + 1:
            return
        start, following = self._values[at : at + 2]
        # Steps are told apart by their timesteps, as the model gets them.
        apart = max(APART, 1.01 * torch.finfo(dtype).eps) * start / (start - following)
        share = min(1.0, max(share, apart))
        self._shares.append(share)
        if share < 1:
            self._write(at + 1, spread(self._values, at, share, end))

    def restore(self) -> None:
        """Give the scheduler back what it had; harmless where it has other timesteps by now, or nothing was changed."""
        if self._before is not None and self._scheduler.timesteps is self._timesteps:
            # Not in place, which tensors of an inference mode that has ended do not allow.
            self._scheduler.sigmas, self._scheduler.timesteps = self._before

    @property
    def note(self) -> str | None:
        """How much was shortened, in words; None where no step was reused."""
        if not self._shares:
            return None
        mean = sum(self._shares) / len(self._shares)
        return f"{len(self._shares)} reused steps took {mean:.0%} of their time, the steps after them the rest"

    def _write(self, first: int, sigmas: list[float]) -> None:
        if self._before is None:
            self._before = self._sigmas.clone(), self._timesteps.clone()
        here = slice(first, first + len(sigmas))
        self._values[here] = sigmas
        self._sigmas[here] = torch.tensor(sigmas, dtype=self._sigmas.dtype)
        self._timesteps[here] = (self._sigmas[here] * self._trained).to(self._timesteps)


def spread(sigmas: Sequence[float], step: int, share: float, until: int) -> list[float]:
    """The sigmas from ``step + 1`` to before `until` once `step` takes a share of its stride; the strides after it
    grow by one factor, so that they still end at ``sigmas[until]``."""
    start, following, end = sigmas[step], sigmas[step + 1], sigmas[until]
    growth = (start - share * (start - following) - end) / (following - end)
    return [end + growth * (each - end) for each in sigmas[step + 1 : until]]


def check(scheduler: Any) -> None:
    """Refuse a scheduler whose strides cannot be changed on the way.

    One of more steps, such as UniPC, extrapolates from the last model outputs by the strides between them: it would
    multiply the error of a reused one by the inverse of its share.

    Raises:
        ValueError: there is none, or not one of Euler steps along given sigmas, without new noise.
    """
    if scheduler is None:
        raise ValueError("steps of time are adjusted in a pipeline's scheduler, and a transformer by itself has none: "
                         "enable on the pipeline, or leave adjust_time out")  # fmt: skip
    name, config = type(scheduler).__name__, scheduler.config
    odd = [key for key in ("stochastic_sampling", "invert_sigmas") if config.get(key)] if name == EULER else []
    if name != EULER or odd:
        kind = f"{name} with {odd[0]}" if odd else f"a {name}"
        raise ValueError(f"steps of time cannot be adjusted in {kind}, only in a plain {EULER}: set that as the "
                         "pipeline's scheduler, or leave adjust_time out")  # fmt: skip


def _belong(sigmas: Tensor, timesteps: Tensor, trained: int) -> bool:
    """Whether timesteps are those of the sigmas, of which there is one more."""
    expected = (sigmas[:-1] * trained).to(timesteps)
    return expected.shape == timesteps.shape and torch.allclose(expected, timesteps, rtol=1e-5, atol=0)

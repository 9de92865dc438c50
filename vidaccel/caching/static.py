"""Steps that are known before the run: given by hand, or the best that a calibration allows."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, ClassVar

from vidaccel.caching.base import Forecast, Signals, Turn, Verdict
from vidaccel.caching.calibration import CacheCalibration
from vidaccel.caching.measured import Measured, count_of
from vidaccel.caching.optimal import best_steps, group_costs
from vidaccel.caching.track import MAX_STEPS

SCHEDULE = "_schedule"


@dataclass(frozen=True)
class Static(Measured):
    """A fixed set of computed steps; each other one is predicted from them.

    Either `compute` says which, or `computed_steps` says how many, and those are chosen for which the clip is expected
    to move least: the best of all sets, found by dynamic programming, where a set costs what its predicted outputs were
    measured to err by, with this predictor and weighted by what an error of each step does to the clip. Where a
    predictor looks back at more than two steps, the third and those before it are left out of this count. Nothing is
    looked at during a run, so that nothing waits for a GPU.

    Args:
        compute: the computed steps, counted from 0 over all experts, rising; 0 is one.
        file: a calibration, see `Measured`; with it `computed_steps`.
        computed_steps: how many steps are computed, a count or a share as a float.
        warmup: steps at the start of each expert that are computed in any case, a count or a share as a float.
        forced: further steps that are computed in any case, such as the first with sparse attention.
        longest: steps at most from one computed step to the next; None for no limit.

    Raises:
        ValueError: both ways or neither, a calibration that cannot be read, a value out of range, or more steps in any
            case than are to be computed.
    """

    name: ClassVar[str] = "static"
    paper: ClassVar[str] = "CacheQuant, Liu and Zhang 2025 (arXiv 2503.01323)"
    last_steps: ClassVar[float] = 0

    compute: Sequence[int] | None = None
    computed_steps: int | float | None = None
    warmup: int | float = 1
    forced: Sequence[int] = ()
    longest: int | None = None

    def __post_init__(self) -> None:
        if (self.compute is None) == (self.file is None):
            raise ValueError("cache policy 'static' needs either 'compute', the steps to compute, or 'file', a "
                             "calibration, with 'computed_steps', how many")  # fmt: skip
        object.__setattr__(self, "forced", _steps("forced", self.forced))
        if self.longest is not None:
            _whole("longest", self.longest, 1)
        if self.file is None:
            self._settle_by_hand()
        else:
            super().__post_init__()
            self._borders(self.known)

    def suited(self, predictor: Forecast) -> Static:
        if self.calibration is None:
            return self
        made = copy(self)
        count, must = made._borders(made.known)
        chosen = best_steps(group_costs(made.known, predictor), made.known.steps, count, must, self.longest)
        object.__setattr__(made, SCHEDULE, chosen)
        return made

    def decide(self, turn: Turn, signals: Signals, state: dict[str, Any]) -> Verdict:
        if self.calibration is not None:
            self._check_steps(turn)
        elif turn.steps is not None and self.schedule[-1] >= turn.steps:
            raise ValueError(f"compute names step {self.schedule[-1]}, and the run has {turn.steps} steps, from 0")
        return Verdict(turn.since > 0 and turn.step not in self.schedule)

    @property
    def schedule(self) -> tuple[int, ...]:
        """The computed steps; of a calibration, once `suited` has told the predictor."""
        found: tuple[int, ...] = self.__dict__[SCHEDULE]
        return found

    def _settle_by_hand(self) -> None:
        for name in ("computed_steps", "longest"):
            if getattr(self, name) is not None:
                raise ValueError(f"{name} is for a calibration; 'compute' names the steps themselves")
        chosen = _steps("compute", self.compute)
        if not chosen or chosen[0] != 0:
            raise ValueError(f"compute {self.compute!r} does not begin with step 0, before which there is nothing "
                             "to reuse")  # fmt: skip
        object.__setattr__(self, "compute", chosen)
        object.__setattr__(self, SCHEDULE, tuple(sorted({*chosen, *self.forced})))

    def _borders(self, made: CacheCalibration) -> tuple[int, set[int]]:
        """How many steps are computed, and which in any case.

        Raises:
            ValueError: an option that does not fit the calibration.
        """
        if self.computed_steps is None:
            raise ValueError("a calibration alone does not say how much to save: give computed_steps, a count or a "
                             "share")  # fmt: skip
        count = count_of("computed_steps", self.computed_steps, made.steps)
        must = {0, *self.forced}
        if max(must) >= made.steps:
            raise ValueError(f"forced names step {max(must)}, and the calibration has {made.steps} steps, from 0")
        for covered in map(made.covered, made.tracks):
            must.update(covered[: count_of("warmup", self.warmup, len(covered))])
        return count, must


def _steps(name: str, given: Any) -> tuple[int, ...]:
    """Numbers of steps, each once and rising.

    Raises:
        ValueError: they are not.
    """
    if not isinstance(given, list | tuple) or len(given) > MAX_STEPS:
        raise ValueError(f"{name} {given!r} is not a list of at most {MAX_STEPS} steps")
    for each in given:
        _whole(f"{name}: step", each, 0)
    if list(given) != sorted(set(given)):
        raise ValueError(f"{name} {given!r} does not rise from step to step")
    return tuple(given)


def _whole(name: str, value: Any, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} {value!r} is not a whole number of at least {least}")

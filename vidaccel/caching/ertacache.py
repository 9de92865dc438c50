"""Steps are reused while the model's whole residual, as measured beforehand, is near the kept one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from vidaccel.caching.base import Place, Signals, Turn, Verdict, check_share
from vidaccel.caching.calibration import CacheCalibration
from vidaccel.caching.measured import Measured, count_of

LIMIT = "_limit"
TINY = 1e-12


@dataclass(frozen=True)
class ErtaCache(Measured):
    """ERTACache: of the model's residual ``r = v - x``, output minus latents, the last computed one is reused while
    the calibration measured it within `threshold` of the step's own, relative L1, mean over the guidance branches.

    Against the calibration's own steps this is the paper's fixed schedule (see `schedule`); where others are computed
    too, errors count from those. With the predictor "affine" the output is corrected by what was measured of its
    error, see `correction`. With `adjust_time` reused steps take less of the run's time, see `stride`.

    Args:
        file: a calibration, see `Measured`.
        threshold: above 0; the paper's 0.08 for Wan 2.1 1.3B, 0.3 for CogVideoX. None with `computed_steps`.
        computed_steps: at most so many computed steps, a count or a share as a float: the least threshold for that.
        adjust_time: the paper's adjusted steps of time, for pipelines with a `FlowMatchEulerDiscreteScheduler`. Off by
            default: phi leaves most reused steps next to nothing, which helps what is held as it is at best (docs).

    Raises:
        ValueError: no calibration, a value out of range, both of the two, or neither.
    """

    name: ClassVar[str] = "ertacache"
    paper: ClassVar[str] = "ERTACache, Peng et al. 2025 (arXiv 2508.21091)"
    place: ClassVar[Place] = Place.OUTPUT
    corrects: ClassVar[bool] = True

    threshold: float | None = None
    computed_steps: int | float | None = None
    adjust_time: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.adjust_time, bool):
            raise ValueError(f"adjust_time {self.adjust_time!r} is neither True nor False")
        if (self.threshold is None) == (self.computed_steps is None):
            raise ValueError("ertacache needs either a threshold or computed_steps")
        if self.threshold is not None:
            check_share("threshold", self.threshold)
            limit = self.threshold
        else:
            count = count_of("computed_steps", self.computed_steps, self.known.steps)
            limit = _least_limit(self.known, count)
        object.__setattr__(self, LIMIT, limit)

    @property
    def limit(self) -> float:
        """The threshold in use."""
        found: float = self.__dict__[LIMIT]
        return found

    @property
    def schedule(self) -> tuple[int, ...]:
        """The steps that are computed where nothing else decides."""
        return _sweep(self.known, self.limit)

    def decide(self, turn: Turn, signals: Signals, state: dict[str, Any]) -> Verdict:
        self._check_steps(turn)
        if turn.since == 0 or turn.since > turn.step - turn.expert_step:
            return Verdict(False)
        error = _error(self.known, turn.expert, turn.step, turn.step - turn.since)
        return Verdict(error < self.limit * turn.allowance, error)

    def correction(self, turn: Turn, kept_step: int) -> tuple[float, float] | None:
        """The measured fit of the output's error to the output, ``(a, b)``: corrected, v is ``v - (a v + b)``."""
        track = self.known.track(turn.expert, turn.branch)
        return track.affine[turn.step - track.first_step][kept_step - track.first_step]

    @property
    def adjusts(self) -> bool:
        return self.adjust_time

    def stride(self, turn: Turn, kept_step: int) -> tuple[float, int]:
        """The paper's phi, and the end of the expert's steps: the next expert begins at the noise that it was made for.

        Phi is 1 minus the error of the reused output relative to what the output changes until the next step, in
        [0, 1]; 1 for an expert's last step. Both as measured, mean over the guidance branches.
        """
        return self._scale(turn.expert, turn.step, kept_step), self.known.covered(turn.expert).stop

    def step_scale(self, step: int) -> float:
        """The phi of a step, see `stride`, where `schedule` is what is computed; 1 for computed steps.

        Raises:
            ValueError: the run has no such step.
        """
        if step not in range(self.known.steps):
            raise ValueError(f"step {step!r} is not one of the {self.known.steps} from 0")
        kept = max(each for each in self.schedule if each <= step)
        expert = next(name for name in self.known.tracks if step in self.known.covered(name))
        return 1.0 if step == kept else self._scale(expert, step, kept)

    def _scale(self, expert: str, step: int, kept: int) -> float:
        """Phi of a step of an expert that reuses an earlier one."""
        if step + 1 == self.known.covered(expert).stop:
            return 1.0
        scales = []
        for track in self.known.tracks[expert].values():
            at, then = step - track.first_step, kept - track.first_step
            error = track.output[at][then] * track.residual_size[at]
            moved = track.change[at + 1] * track.output_size[at]
            scales.append(min(1.0, max(0.0, 1 - error / moved)) if moved else 0.0)
        return sum(scales) / len(scales)


def _error(made: CacheCalibration, expert: str, step: int, kept: int) -> float:
    """Of holding the residual of step `kept`, mean over the guidance branches."""
    tracks = made.tracks[expert].values()
    return sum(each.output[step - each.first_step][kept - each.first_step] for each in tracks) / len(tracks)


def _sweep(made: CacheCalibration, limit: float) -> tuple[int, ...]:
    """The steps that are computed: an expert's first, and each at which the last computed one is not near enough."""
    computed: list[int] = []
    for expert in made.tracks:
        kept = None
        for step in made.covered(expert):
            if kept is None or not _error(made, expert, step, kept) < limit:
                kept = step
                computed.append(step)
    return tuple(sorted(computed))


def _least_limit(made: CacheCalibration, count: int) -> float:
    """The least of all thresholds that tell two schedules apart with which at most `count` steps are computed.

    Raises:
        ValueError: there is none, as each expert's first step is computed.
    """
    errors = {_error(made, expert, step, kept) for expert in made.tracks for step in made.covered(expert)
              for kept in range(made.covered(expert).start, step)}  # fmt: skip
    # Just above an error, as errors must be below the threshold.
    for limit in (TINY, *(each * (1 + 1e-9) + TINY for each in sorted(errors))):
        if len(_sweep(made, limit)) <= count:
            return limit
    raise ValueError(f"computed_steps {count} of {made.steps} cannot be: the first step of each of "
                     f"{len(made.tracks)} experts is computed")  # fmt: skip

"""Steps are reused while the residual's magnitude, as measured beforehand, has hardly changed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from vidaccel.caching.base import Signals, Turn, Verdict, check_share
from vidaccel.caching.measured import Measured
from vidaccel.caching.track import Track


@dataclass(frozen=True)
class MagCache(Measured):
    """MagCache: the magnitude of the stack's residual falls so alike for all prompts that one table of ratios tells
    how far a kept residual is off.

    With ``gamma_s`` the ratio of a step's residual to that of the step before, and the steps since the last computed
    one, ``G`` is the product of their gammas so far, and ``E`` the sum of ``|1 - G|`` over them. A step reuses while
    ``E < threshold`` and no more than `max_skips` steps in a row do.

    Each guidance branch and expert has a table and decides by itself. A run of another number of steps takes the
    nearest entry of the table, as its place in the run is. Nothing is looked at during a run, so that nothing waits
    for a GPU.

    Args:
        file: a calibration, see `Measured`.
        threshold: above 0; how much magnitude may be off in total. The paper's: 0.12 fast, 0.06 for small models.
        max_skips: reused steps in a row at most; the paper's 2 keeps more, 4 saves more.
        retention: share of each expert's steps, at its start, that are always computed, from 0 to below 1.

    Raises:
        ValueError: no calibration, or a value out of range.
    """

    name: ClassVar[str] = "magcache"
    paper: ClassVar[str] = "MagCache, Ma et al. 2025 (arXiv 2506.09045)"
    leads: ClassVar[bool] = False
    any_steps: ClassVar[bool] = True

    threshold: float = 0.12
    max_skips: int = 4
    retention: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("threshold", self.threshold)
        if not isinstance(self.max_skips, int) or isinstance(self.max_skips, bool) or self.max_skips < 1:
            raise ValueError(f"max_skips {self.max_skips!r} is not a whole number of at least 1")
        number = isinstance(self.retention, int | float) and not isinstance(self.retention, bool)
        if not number or not 0 <= self.retention < 1:
            raise ValueError(f"retention {self.retention!r} is not a number from 0 to below 1")

    def decide(self, turn: Turn, signals: Signals, state: dict[str, Any]) -> Verdict:
        # Made anew from the steps since the last computed one: no step that was computed for another reason, or
        # dropped, can leave a sum behind that is not of what is kept.
        track = self.known.track(turn.expert, turn.branch)
        if turn.steps is None:
            raise ValueError("magcache needs the number of steps: give num_inference_steps")
        if turn.since == 0 or turn.step - turn.expert_step < self._retained(turn.steps, turn.expert_step, track):
            return Verdict(False)
        error = self._error(track, turn.steps, turn)
        return Verdict(error < self.threshold * turn.allowance and turn.since <= self.max_skips, error)

    def _retained(self, steps: int, expert_step: int, track: Track) -> int:
        """Steps at an expert's start that are computed."""
        ends = track.covered.stop * steps / self.known.steps
        return int(self.retention * (ends - expert_step) + 1e-9)

    def _error(self, track: Track, steps: int, turn: Turn) -> float:
        product, error = 1.0, 0.0
        for step in range(turn.step - turn.since + 1, turn.step + 1):
            product *= track.ratio[self._entry(track, step, steps)]
            error += abs(1 - product)
        return error

    def _entry(self, track: Track, step: int, steps: int) -> int:
        """Of the table, for a step of a run of `steps` steps; the first is a placeholder that none but step 0 has."""
        nearest = int(step * (self.known.steps - 1) / max(1, steps - 1) + 0.5)
        return min(max(nearest - track.first_step, min(1, track.steps - 1)), track.steps - 1)

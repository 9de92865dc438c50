"""Steps are reused while the residual's magnitude, as measured beforehand, has hardly changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from vidaccel.architecture import Facts
from vidaccel.caching.base import Signals, Turn, Verdict, check_share
from vidaccel.caching.measured import Measured
from vidaccel.caching.published_ratios import MAGCACHE, MagCacheNumbers, Ratios

OPTIONS = ("threshold", "max_skips", "retention")
MEASURED = (0.12, 4, 0.2)
"""Those options with a calibration."""


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
        threshold: above 0; how much magnitude may be off in total. None for the slow one that the authors give for
            `model`; with a file 0.12, their fast one for small models.
        max_skips: reused steps in a row at most. None likewise; with a file 4.
        retention: share of each expert's steps, at its start, that are always computed, from 0 to below 1. None
            likewise; with a file 0.2.
        model: instead of a file: whose published ratios to take, see `vidaccel.caching.published_ratios.MAGCACHE`.
            They are of dense attention, and of the authors' scheduler, shift and guidance.

    Raises:
        ValueError: neither a calibration nor a model, both, an unknown model, or a value out of range.
    """

    name: ClassVar[str] = "magcache"
    paper: ClassVar[str] = "MagCache, Ma et al. 2025 (arXiv 2506.09045)"
    leads: ClassVar[bool] = False
    any_steps: ClassVar[bool] = True

    threshold: float | None = None
    max_skips: int | None = None
    retention: float | None = None
    model: str | None = None

    def __post_init__(self) -> None:
        self._choose()
        published = self.published
        own = MEASURED if published is None else (*published.slow, published.retention)
        for name, value in zip(OPTIONS, own, strict=True):
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        check_share("threshold", self.threshold)
        if not isinstance(self.max_skips, int) or isinstance(self.max_skips, bool) or self.max_skips < 1:
            raise ValueError(f"max_skips {self.max_skips!r} is not a whole number of at least 1")
        number = isinstance(self.retention, int | float) and not isinstance(self.retention, bool)
        if not number or not 0 <= self.retention < 1:  # type: ignore[operator]
            raise ValueError(f"retention {self.retention!r} is not a number from 0 to below 1")

    def _choose(self) -> None:
        """Read the file, if the ratios are to come from one."""
        if self.model is None:
            if self.file is None:
                raise ValueError("magcache needs a calibration, the path of one as 'file' (vidaccel calibrate-cache "
                                 f"makes one), or a model with published ratios: {', '.join(MAGCACHE)}")  # fmt: skip
            self._read(self.file)
        elif self.file is not None:
            raise ValueError(f"magcache has ratios of a file or of a model: leave out file, or model {self.model!r}")
        elif self.model not in MAGCACHE:
            raise ValueError(f"magcache has no published ratios of model {self.model!r}; choose "
                             f"{', '.join(MAGCACHE)}, or calibrate, and give the file")  # fmt: skip

    @property
    def published(self) -> MagCacheNumbers | None:
        """What the authors give for `model`; None with a file."""
        return None if self.model is None else MAGCACHE[self.model]

    def check_models(self, models: Mapping[str, Facts]) -> None:
        if self.published is None:
            return
        of = dict.fromkeys(self.published.experts, self.published.denoiser)
        if of != (given := {expert: facts.name for expert, facts in models.items()}):
            raise ValueError(f"the published ratios of {self.model!r} are for {_told(of)}, not for {_told(given)}")

    def decide(self, turn: Turn, signals: Signals, state: dict[str, Any]) -> Verdict:
        # Made anew from the steps since the last computed one: no step that was computed for another reason, or
        # dropped, can leave a sum behind that is not of what is kept.
        assert self.threshold is not None and self.max_skips is not None
        table = self._table(turn.expert, turn.branch)
        if turn.steps is None:
            raise ValueError("magcache needs the number of steps: give num_inference_steps")
        if turn.since == 0 or turn.step - turn.expert_step < self._retained(turn.steps, turn, table):
            return Verdict(False)
        error = _error(table, turn.steps, turn)
        return Verdict(error < self.threshold * turn.allowance and turn.since <= self.max_skips, error)

    def _table(self, expert: str, branch: str) -> Ratios:
        if self.published is not None:
            return self.published.of(expert, branch)
        track = self.known.track(expert, branch)
        return Ratios(track.first_step, track.ratio, self.known.steps)

    def _retained(self, steps: int, turn: Turn, table: Ratios) -> int:
        """Steps at an expert's start that are computed."""
        assert self.retention is not None
        if self.published is not None and turn.expert in self.published.computed:
            return steps
        ends = (table.first_step + len(table.ratio)) * steps / table.steps
        return int(self.retention * (ends - turn.expert_step) + 1e-9)


def _error(table: Ratios, steps: int, turn: Turn) -> float:
    product, error = 1.0, 0.0
    for step in range(turn.step - turn.since + 1, turn.step + 1):
        product *= table.ratio[_entry(table, step, steps)]
        error += abs(1 - product)
    return error


def _entry(table: Ratios, step: int, steps: int) -> int:
    """Of the table, for a step of a run of `steps` steps; the first is a placeholder that none but step 0 has."""
    nearest = int(step * (table.steps - 1) / max(1, steps - 1) + 0.5)
    last = len(table.ratio) - 1
    return min(max(nearest - table.first_step, min(1, last)), last)


def _told(models: Mapping[str, str]) -> str:
    return " and ".join(f"a {kind} as {expert}" for expert, kind in models.items())

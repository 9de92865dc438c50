"""What policies that go by a calibration have in common."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vidaccel.caching.base import CachePolicy, Turn
from vidaccel.caching.calibration import CacheCalibration

KEY = "_read"


@dataclass(frozen=True)
class Measured(CachePolicy):
    """A policy with a calibration.

    Args:
        file: path of what ``vidaccel calibrate-cache`` wrote, or a `CacheCalibration` at hand; read once, here.

    Raises:
        ValueError: none, or one that cannot be read.
    """

    file: str | CacheCalibration | None = None

    def __post_init__(self) -> None:
        if self.file is None:
            raise ValueError(f"cache policy {self.name!r} needs a calibration: give the path of one as 'file'; "
                             "vidaccel calibrate-cache makes one")  # fmt: skip
        self._read(self.file)

    def _read(self, given: str | CacheCalibration) -> None:
        # Beside the fields: a later change of the file is none of the policy.
        object.__setattr__(self, KEY, CacheCalibration.of(given))

    @property
    def calibration(self) -> CacheCalibration | None:
        return self.__dict__.get(KEY)

    @property
    def known(self) -> CacheCalibration:
        """The calibration of a policy that has one."""
        made: CacheCalibration = self.__dict__[KEY]
        return made

    def to_dict(self) -> dict[str, Any]:
        """Name and options; the calibration by its path, and by the hash of what was in it."""
        options = {item.name: _plain(getattr(self, item.name)) for item in dataclasses.fields(self)}
        made = self.calibration
        extra = {} if made is None else {"calibration": {"file": made.reference, "sha256": made.digest}}
        return {"name": self.name, "options": options, **extra}

    def _check_steps(self, turn: Turn) -> None:
        """Refuse a run of other steps than were measured.

        Raises:
            ValueError: it is one.
        """
        known = self.known
        if turn.steps is not None and turn.steps != known.steps:
            raise ValueError(f"{self.name}'s calibration is of {known.steps} steps, and the run has {turn.steps}")
        covered = known.track(turn.expert, turn.branch).covered
        if turn.step not in covered:
            raise ValueError(f"{self.name}'s calibration has {turn.expert} run the steps {covered.start} to "
                             f"{covered.stop - 1}, and here it runs step {turn.step}")  # fmt: skip


def count_of(name: str, value: Any, total: int) -> int:
    """A whole number as it is, a float as that share of `total`, rounded down but for the last bit; at least 1.

    Raises:
        ValueError: neither a count of 1 to `total` nor a share in (0, 1].
    """
    number = isinstance(value, int | float) and not isinstance(value, bool)
    good = number and (0 < value <= 1 if isinstance(value, float) else 1 <= value <= total)
    if not good:
        raise ValueError(f"{name} {value!r} is neither a count from 1 to {total} nor a share above 0.0 and up to 1.0")
    return max(1, int(value * total + 1e-9)) if isinstance(value, float) else int(value)


def _plain(value: Any) -> Any:
    if isinstance(value, CacheCalibration):
        return value.reference
    if isinstance(value, os.PathLike):
        return str(value)
    if isinstance(value, Mapping):
        return dict(value)
    return list(value) if isinstance(value, tuple) else value

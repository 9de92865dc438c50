"""What a session was asked to do, and where in a run it is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn

from vidaccel.caching.cache import Cache
from vidaccel.caching.calibration import DENSE, shift_of
from vidaccel.compensation import Compensation
from vidaccel.costs import CostModel
from vidaccel.layout import TokenLayout
from vidaccel.methods.base import Method
from vidaccel.patched import Untouched
from vidaccel.pipelines import family_of
from vidaccel.pipelines.base import Family
from vidaccel.schedule import Schedule, StepPlan


@dataclass(frozen=True)
class Moment:
    """What the layers of one transformer call have in common."""

    expert: str
    branch: str
    step: int
    layout: TokenLayout
    plan: StepPlan

    @property
    def call(self) -> tuple[str, str, int]:
        """What tells it from the other transformer calls of its run."""
        return self.expert, self.branch, self.step


@dataclass(frozen=True)
class Setting:
    """What the user chose; see `vidaccel.enable`."""

    method: Method
    schedule: Schedule
    backend: str
    min_tokens: int | None
    """None lets the cost model alone decide which calls are too short; 0 turns it off too."""
    steps: int | None
    precision: str | None = None
    check_finite: bool = False
    compensation: Compensation | None = None
    costs: CostModel | None = None
    """None for the coefficients that are shipped for the device."""
    cache: Cache | None = None
    family: Family | None = None
    """None for that of each transformer's class."""
    measured: Mapping[str, Any] | None = field(default=None, hash=False)
    """Evidence of the profile's point that was chosen: what runs it was measured on; None where none was."""

    def family_of(self, transformer: nn.Module) -> Family:
        """The family of a transformer of this run.

        Raises:
            ValueError: none supports its class.
        """
        return self.family or family_of(transformer)

    @property
    def sparse(self) -> bool:
        """Whether attention is touched at all."""
        return not isinstance(self.method, Untouched)

    @property
    def attention(self) -> str:
        """What of the attention a cache's calibration depends on, as a hash; "dense" where it is left alone."""
        if not self.sparse:
            return DENSE
        options = asdict(self.method)  # type: ignore[call-overload]
        if options.get("digest") is not None:
            # Where its heads were read from does not matter.
            options["profile"] = ""
        chosen = {"method": self.method.name, "options": options,
                  "schedule": asdict(self.schedule), "precision": self.precision,
                  "compensation": self.compensation and self.compensation.to_dict()}  # fmt: skip
        return hashlib.sha256(json.dumps(chosen, sort_keys=True, default=str).encode()).hexdigest()

    @property
    def shared(self) -> dict[str, str]:
        """What processes that compute one clip together must have chosen alike; where files lie does not matter."""
        cache = None if self.cache is None else [
            _without_files(self.cache.to_dict()), [each.digest for each in self.cache.calibrations]
        ]  # fmt: skip
        values = {"attention": self.attention, "cache": cache, "min_tokens": self.min_tokens, "costs": self.costs}
        return {name: json.dumps(value, sort_keys=True, default=str) for name, value in values.items()}

    def check_calibration(self, owner: Any, steps: int | None) -> None:
        """Refuse a run that the cache's calibration is not for, before its first forward.

        Args:
            owner: the pipeline, or a bare transformer, of which neither scheduler nor guidance is known.

        Raises:
            ValueError: what differs.
        """
        scheduler = getattr(owner, "scheduler", None)
        name, shift = (None, None) if scheduler is None else (type(scheduler).__name__, shift_of(scheduler))
        guidance = getattr(owner, "guidance_scale", None)
        for calibration, same_steps in ({} if self.cache is None else self.cache.calibrations).items():
            calibration.check({}, steps, name, shift, guidance, self.attention, same_steps=same_steps)

    def elsewhere(self, owner: Any, steps: int | None) -> str | None:
        """A note for a run of other steps or guidance than the chosen point was measured with; None where none is due.

        Args:
            owner: the pipeline, or a bare transformer, of which the guidance is not known.
        """
        given = {"steps": steps, "guidance": getattr(owner, "guidance_scale", None)}
        known = {name: (self.measured or {}).get(name) for name in given}
        other = [f"{known[name]:g} {name}, not {value:g}" for name, value in given.items()
                 if None not in (value, known[name]) and value != known[name]]  # fmt: skip
        return f"these settings were measured with {' and '.join(other)}: tune for such runs" if other else None

    @property
    def computed(self) -> tuple[float, float] | None:
        """Steps at the start and the end that a cache never reuses; None without one."""
        return None if self.cache is None else self.cache.computed


def _without_files(value: Any) -> Any:
    """A JSON value without the paths that it names."""
    if isinstance(value, Mapping):
        return {name: _without_files(each) for name, each in value.items() if name != "file"}
    return value

"""The user's choice of a cache: a policy, a predictor and their limits."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vidaccel.caching.base import CachePolicy, Place, check_share
from vidaccel.caching.calibration import CacheCalibration
from vidaccel.caching.predictors import Affine, Fitted, Predictor, Taylor, predictor

PLACES = tuple(each.value for each in Place)
FEW_STEPS = 12
"""Runs of fewer steps have little to cache: those that matter most take them all (specs, 4.7)."""

GUIDANCE_INTERVAL = 2
"""Where a limit watches the difference between the passes: every other step may go by it."""


@dataclass(frozen=True)
class Cache:
    """What of a run is reused instead of computed.

    Args:
        policy: which steps.
        predictor: what a reused step is given; None for "fitted" where the policy has a calibration and all blocks are
            reused, else "taylor".
        reuse: what is kept and reused: the residual of the blocks ("stack"), the model's output less its latents
            ("output") or as it is ("prediction"); None for the predictor's or else the policy's own.
        first_steps: steps at the start that are always computed, a count or a fraction as in `Schedule`; None for the
            policy's own.
        last_steps: the same at the end.
        most_reused: reused steps in a row at most; None for no limit but the policy's.
        guidance_interval: of the steps that are computed, every how many at least compute the unconditional pass, too;
            between them it is given the conditional pass and what the predictor makes of the difference that both last
            had. 1 computes it always; None is 2 with a `guidance_change`, else 1.
        guidance_change: the unconditional pass is left out only while this difference's relative L1 change, for each
            step between the last two that computed both passes, is below it; None for no such limit.
        sparse_share: share of the error that attention of density 0 is taken to spend, which sparse steps leave less of
            for caching: a policy's threshold counts ``1 - sparse_share * (1 - density)``.
        min_steps: runs of fewer steps are computed throughout.
        max_memory: gigabytes that kept tensors may take; None for what is free.

    Raises:
        ValueError: a value outside its range, or a predictor that the policy has no numbers for.
    """

    policy: CachePolicy
    predictor: Predictor = None  # type: ignore[assignment]  # settled below
    reuse: str | None = None
    first_steps: float | None = None
    last_steps: float | None = None
    most_reused: int | None = None
    guidance_interval: int | None = None
    guidance_change: float | None = None
    sparse_share: float = 0.3
    min_steps: int = FEW_STEPS
    max_memory: float | None = None

    def __post_init__(self) -> None:
        self._settle()
        for name in ("first_steps", "last_steps"):
            _check_steps(name, getattr(self, name))
        for name, least in (("most_reused", 1), ("guidance_interval", 1), ("min_steps", 1)):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
                raise ValueError(f"{name} {value!r} is not a whole number of at least {least}")
        self._check_guidance()
        if not _number(self.sparse_share) or self.sparse_share >= 1:
            raise ValueError(f"sparse_share {self.sparse_share!r} is not a number from 0 to below 1")
        if self.max_memory is not None and (not _number(self.max_memory) or self.max_memory == 0):
            raise ValueError(f"max_memory {self.max_memory!r} is not a number of gigabytes above 0")
        if isinstance(self.predictor, Affine) and not self.policy.corrects:
            raise ValueError(f"predictor 'affine' needs a policy with calibrated corrections, which "
                             f"{self.policy.name!r} has not: choose ertacache, or another predictor")  # fmt: skip
        if self.reuse not in (None, *PLACES):
            raise ValueError(f"reuse {self.reuse!r} is none of {', '.join(PLACES)}")
        if isinstance(self.predictor, Affine) and self.place is not Place.OUTPUT:
            raise ValueError(f"predictor 'affine' corrects the model's residual, not what reuse={self.reuse!r} keeps")
        if (only := self.predictor.place) is not None and self.place is not only:
            raise ValueError(f"predictor {self.predictor.name!r} is for reuse={only.value!r}, not {self.place.value!r}")

    def _settle(self) -> None:
        """Bring policy and predictor together, as each may go by the other; take from the policy what is not given."""
        own = self.policy.calibration
        if self.predictor is None:
            fits = own is not None and own.guided is not None and self.policy.whole
            fits = fits and self.reuse in (None, Place.PREDICTION.value)
            object.__setattr__(self, "predictor", Fitted() if fits else Taylor())
        object.__setattr__(self, "predictor", self.predictor.bound(own))
        object.__setattr__(self, "policy", self.policy.suited(self.predictor))
        for name in ("first_steps", "last_steps"):
            if getattr(self, name) is None:
                object.__setattr__(self, name, getattr(self.policy, name))

    @property
    def place(self) -> Place:
        """What is kept and reused."""
        if self.reuse is not None:
            return Place(self.reuse)
        return self.predictor.place or self.policy.gives or self.policy.place

    @property
    def calibrations(self) -> dict[CacheCalibration, bool]:
        """Those that policy and predictor go by, and whether a run must have as many steps."""
        found = {}
        if (of_policy := self.policy.calibration) is not None:
            found[of_policy] = not self.policy.any_steps
        if (of_predictor := self.predictor.calibration) is not None:
            found[of_predictor] = True
        return found

    @property
    def computed(self) -> tuple[float, float]:
        """Steps at the start and at the end that are always computed, each as in `Schedule`."""
        assert self.first_steps is not None and self.last_steps is not None
        return self.first_steps, self.last_steps

    @property
    def guided_steps(self) -> int:
        """Steps in a row that may leave out the unconditional pass."""
        usual = 1 if self.guidance_change is None else GUIDANCE_INTERVAL
        return (usual if self.guidance_interval is None else self.guidance_interval) - 1

    @property
    def guidance(self) -> str:
        """What was asked of guidance, for messages."""
        limit = f"guidance_change {self.guidance_change}"
        return limit if self.guidance_interval is None else f"guidance_interval {self.guidance_interval}"

    def _check_guidance(self) -> None:
        if self.guidance_change is None:
            return
        check_share("guidance_change", self.guidance_change)
        if self.guidance_interval == 1:
            raise ValueError(f"guidance_change {self.guidance_change} says when to leave out unconditional calls, and "
                             "guidance_interval 1 leaves out none: give another, or leave it out")  # fmt: skip

    def allowance(self, density: float) -> float:
        """Share of a policy's threshold that a step of this attention density may spend."""
        return 1 - self.sparse_share * (1 - density)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: the policy's name and options, the predictor, and each limit."""
        own = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)[2:]}
        made = self.predictor.calibration
        extra = {} if made is None or made is self.policy.calibration else {"fitted_to": made.digest}
        return {**self.policy.to_dict(), "predictor": self.predictor.to_dict(), "limits": own, **extra}


LIMITS = tuple(item.name for item in dataclasses.fields(Cache))[1:]
"""What stands beside the options of a policy where a cache is given as a mapping."""


def made(policies: Mapping[str, type[CachePolicy]], given: Any) -> Cache | None:
    """What the user gave as a cache; None is none.

    Raises:
        ValueError: no such policy or option, or a bad value.
    """
    if given is None or isinstance(given, Cache):
        return given
    if isinstance(given, CachePolicy):
        return Cache(given)
    values = {"name": given} if isinstance(given, str) else dict(given) if isinstance(given, Mapping) else {}
    name = values.pop("name", None)
    if not isinstance(name, str) or name not in policies:
        raise ValueError(f"unknown cache policy {given!r}; choose {', '.join(policies)}")
    limits: dict[str, Any] = {key: values.pop(key) for key in LIMITS if key in values}
    if "predictor" in limits:
        limits["predictor"] = predictor(limits["predictor"])
    known = [item.name for item in dataclasses.fields(policies[name])]  # type: ignore[arg-type]
    if unknown := sorted(set(values) - set(known)):
        raise ValueError(f"cache policy {name!r} has no option {unknown[0]!r}; it has {', '.join((*known, *LIMITS))}")
    return Cache(policies[name](**values), **limits)


def _check_steps(name: str, value: Any) -> None:
    if not _number(value) or (isinstance(value, float) and value > 1):
        raise ValueError(f"{name} {value!r} is neither a count of at least 0 nor a fraction from 0.0 to 1.0")


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf

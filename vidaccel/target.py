"""What a user wants of a setting: limits on speed and fidelity, such as ``psnr>=30``."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

SPEEDUP = "speedup"
METRICS = {SPEEDUP: True, "psnr": True, "ssim": True, "latent_snr": True, "latent_error": False, "lpips": False,
           "st_lpips": False}  # fmt: skip
"""What a target may name, and whether more of it is better."""
ON_LATENTS = ("latent_snr", "latent_error")
CONDITION = re.compile(r"\s*(\w+)\s*(>=|<=)\s*([-+.\w]+)\s*", re.ASCII)
AND = re.compile(r",|\band\b")
Value = Callable[[str], float | None]
"""What a setting was measured to have of a metric; None where it was not."""


@dataclass(frozen=True)
class Condition:
    """One limit.

    Args:
        metric: of `METRICS`.
        limit: the least of it where more is better, else the most.
    """

    metric: str
    limit: float

    def met(self, value: float | None) -> bool:
        """Whether a measured value is within the limit; what was not measured is not."""
        if value is None:
            return False
        return value >= self.limit if METRICS[self.metric] else value <= self.limit

    def __str__(self) -> str:
        return f"{self.metric}{'>=' if METRICS[self.metric] else '<='}{self.limit:g}"


@dataclass(frozen=True)
class Target:
    """Limits that hold together, each on another metric."""

    conditions: tuple[Condition, ...]

    @classmethod
    def of(cls, text: str | Target) -> Target:
        """A target from its text: conditions with "and" or a comma between them.

        Raises:
            ValueError: not a target; the message says what one is.
        """
        if isinstance(text, Target):
            return text
        if not isinstance(text, str):
            raise ValueError(f"target {text!r} is not a text such as 'psnr>=30' or 'speedup>=2'")
        found = tuple(_condition(part, text) for part in AND.split(text))
        named = [each.metric for each in found]
        if len(set(named)) < len(named):
            raise ValueError(f"target {text!r} limits {max(named, key=named.count)} twice")
        return cls(found)

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics that it limits, without the speedup."""
        return tuple(each.metric for each in self.conditions if each.metric != SPEEDUP)

    def met(self, value: Value) -> bool:
        """Whether all limits hold."""
        return all(each.met(value(each.metric)) for each in self.conditions)

    def __str__(self) -> str:
        return " and ".join(map(str, self.conditions))


def _condition(part: str, text: str) -> Condition:
    match = CONDITION.fullmatch(part)
    if not match:
        raise ValueError(f"target {text!r} is not METRIC>=NUMBER or METRIC<=NUMBER, such as 'psnr>=30' or 'speedup>=2'")
    metric, sign, number = match.groups()
    if metric not in METRICS:
        raise ValueError(f"target {text!r} names {metric!r}; choose {', '.join(METRICS)}")
    if (sign == ">=") is not METRICS[metric]:
        right, best = (">=", "more") if METRICS[metric] else ("<=", "less")
        raise ValueError(f"target {text!r}: of {metric}, {best} is better: write {metric}{right}{number}")
    try:
        limit = float(number)
    except ValueError:
        limit = math.nan
    if not math.isfinite(limit) or (metric == SPEEDUP and limit <= 0):
        raise ValueError(f"target {text!r}: {number!r} is not a finite number" + " above 0" * (metric == SPEEDUP))
    return Condition(metric, limit)

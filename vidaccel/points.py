"""Measured settings of a profile: each with its fidelity, its speed, and where the numbers come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vidaccel import strict
from vidaccel.target import METRICS, SPEEDUP, Target

SETTINGS = ("method", "options", "schedule", "cache", "precision")
SPREAD = ("mean", "low", "high")
MAX_POINTS, MAX_NAME, MAX_VALUE, MAX_SPEEDUP, MAX_STEPS = 64, 256, 1e6, 1e6, 100_000


@dataclass(frozen=True)
class Point:
    """One setting that was measured.

    Args:
        settings: ``method``, ``options``, ``schedule``, ``cache`` and ``precision``, as a profile has them.
        metrics: by name, ``mean`` over clips and its 95 % interval, ``low`` to ``high``.
        speedup: of denoising, dense over this setting: of the median times.
        evidence: what it was measured on: ``steps`` and ``guidance`` of the runs, the hash and number of prompts, seed,
            device, versions and so on.
    """

    settings: Mapping[str, Any]
    metrics: Mapping[str, Mapping[str, float]]
    speedup: float
    evidence: Mapping[str, Any]

    @classmethod
    def read(cls, values: Any, where: str) -> Point:
        """A point from its JSON; `where` names it in errors.

        Raises:
            ValueError: not a point.
        """
        known = ("settings", "metrics", SPEEDUP, "evidence")
        given = strict.names(where, values, known, known)
        settings = strict.names(f"{where}: settings", given["settings"], SETTINGS, SETTINGS)
        metrics = _metrics(f"{where}: metrics", given["metrics"])
        speedup = strict.number(f"{where}: speedup", given[SPEEDUP], MAX_SPEEDUP)
        _check_evidence(f"{where}: evidence", given["evidence"])
        return cls(settings, metrics, speedup, given["evidence"])

    def to_dict(self) -> dict[str, Any]:
        """What `read` reads."""
        metrics = {name: dict(each) for name, each in self.metrics.items()}
        return {"settings": dict(self.settings), "metrics": metrics, SPEEDUP: self.speedup,
                "evidence": dict(self.evidence)}  # fmt: skip

    def assured(self, metric: str) -> float | None:
        """What a target is held against: the speedup as it is, of a metric the worse end of its mean's interval."""
        if metric == SPEEDUP:
            return self.speedup
        spread = self.metrics.get(metric)
        return None if spread is None else spread["low" if METRICS[metric] else "high"]

    @property
    def quality(self) -> float:
        """By which points are ranked: the mean PSNR, or the latents' signal to noise where nothing was decoded."""
        return next(self.metrics[name]["mean"] for name in ("psnr", "latent_snr") if name in self.metrics)

    @property
    def expected(self) -> float:
        """The speedup by which the search counted, from calls whose paces it knew; the measured one where none is
        said."""
        searched = self.evidence.get("searched")
        found = searched.get(SPEEDUP) if isinstance(searched, dict) else None
        return float(found) if isinstance(found, int | float) else self.speedup

    def __str__(self) -> str:
        spreads = (f"{name} {each['mean']:.4g} ({each['low']:.4g} to {each['high']:.4g})"
                   for name, each in self.metrics.items() if name in ("psnr", "ssim", "latent_snr"))  # fmt: skip
        return f"{self.speedup:.2f}x, {', '.join(spreads)}"


def read(values: Any, where: str) -> tuple[Point, ...]:
    """The points of a file.

    Raises:
        ValueError: one that is none, or too many.
    """
    given = strict.listed(where, values, MAX_POINTS)
    return tuple(Point.read(each, f"{where}[{index}]") for index, each in enumerate(given))


def best(points: Sequence[Point], target: Target) -> Point | None:
    """The point for a target: the fastest that meets it, or the most faithful where speed is all that it limits."""
    fit = [each for each in points if target.met(each.assured)]
    if not fit:
        return None
    return max(fit, key=(lambda each: each.speedup) if target.metrics else (lambda each: each.quality))


def front(points: Sequence[Point]) -> list[Point]:
    """Those that no other beats in quality and speed, from the slowest to the fastest.

    In speed both as measured and as expected: points that are a step apart may change places by the noise of a clock,
    and what computes less is then not lost.
    """

    def goods(point: Point) -> tuple[float, float, float]:
        return point.quality, point.speedup, point.expected

    kept: list[Point] = []
    # Whatever beats a point comes before it, as does the first of equal ones.
    for each in sorted(points, key=goods, reverse=True):
        if not any(all(mine <= other for mine, other in zip(goods(each), goods(one), strict=True)) for one in kept):
            kept.append(each)
    return sorted(kept, key=lambda point: point.speedup)


def _metrics(where: str, value: Any) -> dict[str, dict[str, float]]:
    known = [name for name in METRICS if name != SPEEDUP]
    for name, each in strict.names(where, value, known).items():
        strict.names(f"{where}: {name}", each, SPREAD, SPREAD)
        low, mean, high = (strict.signed(f"{where}: {name}", each[part], MAX_VALUE) for part in ("low", "mean", "high"))
        if not low <= mean <= high:
            raise ValueError(f"{where}: {name} is not low <= mean <= high")
    if not {"psnr", "latent_snr"} & set(value):
        raise ValueError(f"{where} has neither 'psnr' nor 'latent_snr'")
    return dict(value)


def _check_evidence(where: str, value: Any) -> None:
    if not isinstance(value, dict):
        raise ValueError(f"{where} is {strict.shown(value)}, not an object")
    if "steps" not in value:
        raise ValueError(f"{where} has no 'steps'")
    strict.whole(f"{where}: steps", value["steps"], 1, MAX_STEPS)
    if value.get("guidance") is not None:
        strict.signed(f"{where}: guidance", value["guidance"], MAX_VALUE)

"""What is searched: attention that is faster here, cache policies, and how a trial becomes a candidate."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from vidaccel import kernels
from vidaccel.caching import cache as make_cache
from vidaccel.caching.cache import FEW_STEPS
from vidaccel.caching.calibration import CacheCalibration
from vidaccel.methods import METHODS
from vidaccel.methods.dynamic import Dynamic
from vidaccel.methods.head_profile import HeadProfile
from vidaccel.patched import DENSE
from vidaccel.tune.candidate import Settings, settings

NONE = "none"
CALIBRATION = "dense"
"""Under which a profile has the calibration of dense runs."""
LEAST, MOST, STEP = 0.1, 0.6, 0.05
"""Densities."""
FIRST = (0.0, 0.1, 0.2, 0.3, 0.4)
"""Shares of a run that stay dense at its start."""
FALL = (1.5, 0.5)
"""A curve starts at so much of its density, and ends at so much."""
THRESHOLDS = {"easycache": (0.005, 0.6), "magcache": (0.005, 0.6)}
FIRST_SHARES, MORE_SHARES = (0.5, 0.65, 0.35, 0.8), (0.25, 0.3, 0.4, 0.45, 0.55, 0.6, 0.7, 0.75, 0.85)
"""Of a run, that static caches compute which are tried first, and later."""
LONGEST = 8
"""Steps from one computed to the next; as many are no limit."""
UNSEARCHED = ("oracle", "random")
"""Methods that are baselines."""


@dataclass(frozen=True)
class Space:
    """All candidates.

    Args:
        steps: of a run.
        attentions: methods whose sparse calls are faster than dense ones here, with options that are no part of the
            search.
        calibrations: of step caching, by the names that candidates have for them; that of dense runs is `CALIBRATION`.
        guided: whether the guidance passes are calls of their own, so that some can be left out.
        precisions: of sparse calls, None among them.
        least: the lowest density of a method here, where that is above `LEAST`.
    """

    steps: int
    attentions: Mapping[str, Mapping[str, Any]]
    calibrations: dict[str, CacheCalibration]
    guided: bool
    precisions: tuple[str | None, ...] = (None,)
    least: Mapping[str, float] = field(default_factory=dict)

    @property
    def policies(self) -> tuple[str, ...]:
        """Of caches, those first that need less."""
        return (NONE, "easycache", *(("static", "magcache", "ertacache") if self._fitted else ()))

    @property
    def _fitted(self) -> bool:
        dense = self.calibrations.get(CALIBRATION)
        return dense is not None and dense.guided is not None

    @property
    def short(self) -> dict[str, int]:
        """What a cache needs beside its own options in runs that are too short for it by default."""
        return {"min_steps": 1} if self.steps < FEW_STEPS else {}

    def candidate(self, trial: Any) -> Settings:
        """What a trial of optuna asks for.

        Raises:
            ValueError: a combination that cannot be.
        """
        method = trial.suggest_categorical("attention", [DENSE, *self.attentions])
        policy = trial.suggest_categorical("cache", list(self.policies))
        sparse = {} if method == DENSE else self._sparse(trial, method)
        cache = None if policy == NONE else self._cache(trial, policy, method != DENSE)
        return settings(method, cache=cache, **sparse)

    def seeds(self) -> Iterator[dict[str, Any]]:
        """Trials to begin with, the most promising first: caches and sparse attention in turns."""
        turns = itertools.zip_longest(self._cached_seeds(), self._sparse_seeds())
        return (each for turn in turns for each in turn if each is not None)

    def statics(self) -> Iterator[tuple[float, Settings]]:
        """Static caches of all numbers of computed steps, and about the share of a dense run's time that each takes."""
        for count in range(2, self.steps) if self._fitted else ():
            cache = {"name": "static", **self.within(count, 1, LONGEST), "computed_steps": count, "file": CALIBRATION,
                     "predictor": {"name": "fitted", "outputs": 2}, **self.short}  # fmt: skip
            yield count / self.steps, settings(cache=cache)

    def _cached_seeds(self) -> Iterator[dict[str, Any]]:
        plain: dict[str, Any] = {"attention": DENSE, "guidance": 1, "outputs": 2, "predictor": "taylor"}
        static = {**plain, "cache": "static", "warmup": 1, "longest": LONGEST}
        counts = {share: max(2, round(share * self.steps)) for share in FIRST_SHARES}
        if self._fitted:
            yield from ({**static, "computed": count} for count in counts.values())
        for threshold in (0.1, 0.05, 0.2):
            yield {**plain, "cache": "easycache", "threshold_easycache": threshold}
        if self._fitted:
            yield {**static, "computed": counts[0.65], "outputs": 3}
            yield {**plain, "cache": "magcache", "threshold_magcache": 0.12}
            yield {**plain, "cache": "ertacache", "computed": counts[0.5]}
            if self.guided:
                yield {**static, "computed": counts[0.65], "guidance": 2}
            rest = sorted({max(2, round(share * self.steps)) for share in MORE_SHARES} - set(counts.values()))
            yield from ({**static, "computed": count} for count in rest)

    def _sparse_seeds(self) -> Iterator[dict[str, Any]]:
        for method in self.attentions:
            sparse = {"attention": method, "density": 0.3, "fall": False, "first": 0.2, "precision": None}
            yield {**sparse, "cache": NONE}
            static = {"cache": "static", "computed": max(2, self.steps // 2), "warmup": 1, "longest": LONGEST}
            easy = {"cache": "easycache", "threshold_easycache": 0.1}
            yield {**sparse, **(static if self._fitted else easy), "predictor": "taylor", "guidance": 1}

    def _sparse(self, trial: Any, method: str) -> dict[str, Any]:
        asked = trial.suggest_float("density", LEAST, MOST, step=STEP)
        density = round(max(asked, self.least.get(method, LEAST)), 4)
        falls = trial.suggest_categorical("fall", [False, True]) and issubclass(METHODS[method], (HeadProfile, Dynamic))
        first = trial.suggest_categorical("first", list(FIRST))
        precision = trial.suggest_categorical("precision", list(self.precisions))
        options = {**self.attentions[method], "density": curve(density) if falls else density}
        return {"options": options, "schedule": scheduled(first), "precision": precision}

    def _cache(self, trial: Any, policy: str, sparse: bool) -> dict[str, Any]:
        made: dict[str, Any] = {"name": policy}
        if policy in THRESHOLDS:
            name = f"threshold_{policy}"
            made["threshold"] = float(f"{trial.suggest_float(name, *THRESHOLDS[policy], log=True):.3g}")
        else:
            made["computed_steps"] = trial.suggest_int("computed", 2, max(2, self.steps - 1))
        if policy == "static":
            made |= self.within(made["computed_steps"], trial.suggest_int("warmup", 1, 4),
                                trial.suggest_int("longest", 2, LONGEST))  # fmt: skip
        if policy != "easycache":
            made["file"] = CALIBRATION
        made["predictor"] = self._predictor(trial, policy, sparse)
        if self.guided and trial.suggest_int("guidance", 1, 3) > 1:
            made["guidance_interval"] = trial.params["guidance"]
        made |= self.short
        return self.apart(made) if sparse else made

    def within(self, count: int, warmup: int, longest: int) -> dict[str, int]:
        """Options of a static cache, as far as so many computed steps allow them."""
        warmup = min(warmup, count)
        least = math.ceil((self.steps - warmup + 1) / (count - warmup + 1))
        return {"warmup": warmup, **({"longest": max(longest, least)} if longest < LONGEST else {})}

    def _predictor(self, trial: Any, policy: str, sparse: bool) -> str | dict[str, Any]:
        if sparse or not self._fitted:
            return str(trial.suggest_categorical("predictor", ["taylor", "hold"]))
        fitted = {"name": "fitted", "outputs": trial.suggest_int("outputs", 2, 4)}
        return {**fitted, "file": CALIBRATION} if policy == "easycache" else fitted

    def apart(self, cache: dict[str, Any]) -> dict[str, Any]:
        """A cache that goes by a calibration of dense runs, for runs that are not: its steps stay, by hand.

        Raises:
            ValueError: a policy that goes by more of it than steps.
        """
        if cache.get("file") is None:
            return cache
        if cache["name"] != "static":
            raise ValueError(f"{cache['name']} goes by a calibration of dense runs, and these are sparse")
        return by_hand(cache, self.calibrations)


def by_hand(cache: Mapping[str, Any], calibrations: Mapping[str, CacheCalibration]) -> dict[str, Any]:
    """A static cache whose steps a calibration chose, with these steps named; a fitted predictor keeps its file."""
    policy: Any = make_cache({**cache, "file": calibrations[cache["file"]]}).policy  # type: ignore[union-attr]
    kept = {name: item for name, item in cache.items() if name not in ("computed_steps", "warmup", "longest", "file")}
    predictor = kept.get("predictor")
    if isinstance(predictor, dict) and predictor["name"] == "fitted":
        kept["predictor"] = {**predictor, "file": cache["file"]}
    return {**kept, "compute": list(policy.schedule)}


def curve(density: float) -> list[list[float]]:
    """A density that falls evenly over the run, its mean about the same."""
    start, end = (round(min(1.0, share * density), 4) for share in FALL)
    return [[0.0, start], [1.0, end]]


def scheduled(first: float) -> dict[str, float]:
    """A schedule that keeps this share of a run dense at its start, and no more."""
    return {"dense_first_steps": first, "dense_last_steps": 0, "dense_first_layers": 0}


def methods(heads: bool, block: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """The methods to look at, each with options that fit a model of this grid: those first that go by its heads."""
    for name, cls in sorted(METHODS.items(), key=lambda item: not issubclass(item[1], HeadProfile)):
        fields = {item.name for item in dataclasses.fields(cls)}  # type: ignore[arg-type]
        profiled = issubclass(cls, HeadProfile)
        if name in UNSEARCHED or "density" not in fields or (profiled and not heads):
            continue
        yield name, {"block": block} if "block" in fields and not profiled else {}


def block_for(tokens: int) -> int:
    """A tile size by which a sequence has about a hundred tiles, from 16 to 128."""
    return next((size for size in (128, 64, 32) if tokens >= 96 * size), 16)


def precisions(probe: Any) -> tuple[str | None, ...]:
    """Those that a backend here has for such queries, None among them."""
    found: list[str | None] = [None]
    for name in kernels.PRECISIONS:
        try:
            kernels.choose("auto", probe, name)
        except ValueError:
            continue
        found.append(name)
    return tuple(found)


def lowest(name: str, options: Mapping[str, Any]) -> Iterator[tuple[float, Settings]]:
    """A method at the densities that it is looked at first: the lowest, and others for what cannot be so low."""
    for density in (LEAST, 0.2, 0.3, 0.5):
        yield density, settings(name, {**options, "density": density}, scheduled(0.0))

"""Settings of cache policies that compute a share of a run, found on prompts of their own: for caching.py."""

from __future__ import annotations

import functools
import itertools
import json
import math
import statistics
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from masks import HERE, evaluate, read_records

from vidaccel.eval.caches import flat, read_cache
from vidaccel.eval.table import RECORDS

CALIBRATION = HERE / "prompts" / "calibration.txt"
TARGETS = {"2/3": 2 / 3, "1/2": 1 / 2}
HALF = TARGETS["1/2"]
"""Shares of the blocks' calls that a run computes: 1.5 and 2 times as fast at best."""
PREDICTORS: dict[str, Any] = {
    "hold": "hold", "taylor": "taylor", "line": {"name": "taylor", "trend": 1.0},
    "parabola": {"name": "taylor", "order": 2}, "fitted": "fitted", "affine": "affine",
}  # fmt: skip
IDENTITY = {"name": "teacache", "coefficients": [1, 0]}
SWEPT: dict[str, tuple[dict[str, Any], str, tuple[float, float]]] = {
    "easycache": ({"name": "easycache"}, "threshold", (1e-3, 3.0)),
    "first_block": ({"name": "first_block"}, "threshold", (1e-3, 3.0)),
    "teacache": (IDENTITY, "threshold", (1e-4, 3.0)),
    "rehash": ({"name": "rehash"}, "threshold", (1e-4, 3.0)),
    "magcache": ({"name": "magcache"}, "threshold", (1e-4, 3.0)),
    "block_profile": ({"name": "block_profile"}, "share", (0.05, 1.0)),
}
"""Policies with a number that is swept, between bounds; more of it computes less."""
COUNTED = ("even", "static", "ertacache")
"""Policies that are told how many steps to compute: spread evenly, or by a calibration."""
NEED_FILE = ("magcache", "block_profile", "static", "ertacache")
WHOLE = ("easycache", "teacache", "rehash", "magcache", *COUNTED)
"""Policies that pass by all blocks or none, so that the model's output can be predicted."""
ROUNDS = 12
"""Values tried for a policy, at most, for both targets together."""
SMALL = {"height": 96, "width": 144}


@dataclass(frozen=True)
class Place:
    """Where DIR has what of a family at a number of steps."""

    family: str
    steps: int
    work: Path

    @property
    def name(self) -> str:
        return f"{self.family}-{self.steps}"

    @property
    def tuned(self) -> Path:
        return self.work / "tuned" / f"{self.name}.json"

    @property
    def calibration(self) -> str:
        return f"miniature:{self.family}/cache-{self.steps}.json"

    @property
    def under_sparse(self) -> Path:
        """The calibration of runs that are sparse, too, where there is one."""
        return self.work / "sparse" / f"{self.name}.json"

    def folder(self, part: str) -> Path:
        return self.work / part / self.name

    def found(self) -> list[dict[str, Any]]:
        """The settings that were tuned."""
        if not self.tuned.exists():
            return []
        made: list[dict[str, Any]] = json.loads(self.tuned.read_text(encoding="utf-8"))
        return made

    def evaluate(self, part: str, values: dict[str, Any], prompts: Path) -> None:
        """An eval of this family at these steps."""
        evaluate(self.folder(part), self.family, {"steps": self.steps, "prompts_file": str(prompts), **values})


@dataclass(frozen=True)
class Only:
    """What to run of all."""

    policies: Collection[str]
    predictors: Collection[str]
    targets: Collection[float]

    def has(self, found: dict[str, Any]) -> bool:
        """Whether a tuned setting is among it."""
        return (found["policy"] in self.policies and found["predictor"] in self.predictors
                and found["target"] in self.targets)  # fmt: skip


@dataclass
class Search:
    """Bisection for one policy and target, in the logarithm of what is swept."""

    policy: str
    target: float
    place: Place
    tried: dict[float, tuple[float, float | None]] = field(default_factory=dict)
    """What was computed, and the latents' SNR, None where identical, by value."""

    def cache(self, value: float) -> dict[str, Any]:
        """Of the cache axis."""
        return swept_cache(self.policy, "hold", value, self.place)

    def next(self) -> float | None:
        """The value to try; None where that is enough."""
        if not self.tried:
            return _middle(*SWEPT[self.policy][2])
        near = abs(self.tried[self.best()][0] - self.target) <= 0.5 / self.place.steps
        low, high = self._bracket()
        return None if near or len(self.tried) >= ROUNDS or high / low < 1.01 else _middle(low, high)

    def best(self) -> float:
        """The value whose share is nearest to the target."""
        return min(self.tried, key=lambda value: abs(self.tried[value][0] - self.target))

    def _bracket(self) -> tuple[float, float]:
        low, high = SWEPT[self.policy][2]
        for value, (share, _) in self.tried.items():
            if share > self.target:
                low = max(low, value)
            else:
                high = min(high, value)
        # Shares need not fall with every rise.
        return (low, high) if low < high else (high, low)


def swept_cache(policy: str, predictor: str, value: float, place: Place) -> dict[str, Any]:
    """A cache of a policy with what is swept."""
    base, knob, _ = SWEPT[policy]
    return with_file(policy, {**base, knob: value}, predictor, place)


def with_file(policy: str, cache: dict[str, Any], predictor: str, place: Place) -> dict[str, Any]:
    """A cache with its predictor, and the calibration that either needs."""
    if policy in NEED_FILE:
        return {**cache, "file": place.calibration, "predictor": PREDICTORS[predictor]}
    own = {"name": "fitted", "file": place.calibration}
    return {**cache, "predictor": own if predictor == "fitted" else PREDICTORS[predictor]}


def counted(policy: str, predictor: str, target: float, place: Place) -> dict[str, Any]:
    """A cache that computes this share of the steps by being told so."""
    count = max(2, round(place.steps * target))
    told: dict[str, Any] = {"name": policy, "computed_steps": count}
    if policy == "even":
        stride = (place.steps - 1) / (count - 1)
        told = {"name": "static", "compute": sorted({round(at * stride) for at in range(count)})}
    return with_file(policy, told, predictor, place)


def goes_with(policy: str, predictor: str) -> bool:
    """Whether a policy takes a predictor."""
    return predictor not in ("affine", "fitted") or policy in (("ertacache",) if predictor == "affine" else WHOLE)


def tune(place: Place, only: Only, prompts: int) -> None:
    """Find the settings, and give them to each predictor."""
    texts = [line for line in CALIBRATION.read_text(encoding="utf-8").splitlines() if line.strip()][:prompts]
    made = {(each["policy"], each["predictor"], each["target"]): each for each in place.found()}
    searches = [Search(name, target, place) for name, target in itertools.product(only.policies, only.targets)
                if name in SWEPT]  # fmt: skip
    swept(place, searches, texts)
    values = {(each.policy, each.target): each.best() for each in searches}
    for name, predictor, target in itertools.product(only.policies, only.predictors, only.targets):
        if not goes_with(name, predictor):
            continue
        value = values.get((name, target))
        cache = (counted(name, predictor, target, place) if value is None
                 else swept_cache(name, predictor, value, place))  # fmt: skip
        made[name, predictor, target] = {"policy": name, "predictor": predictor, "target": target, "cache": cache}
    place.tuned.parent.mkdir(parents=True, exist_ok=True)
    place.tuned.write_text(json.dumps(list(made.values()), indent=1) + "\n", encoding="utf-8")


def swept(place: Place, searches: list[Search], prompts: list[str]) -> None:
    """All searches to their end, round by round."""
    collect(place, searches, prompts)
    while pending := [(each, value) for each in searches if (value := each.next()) is not None]:
        caches = list({json.dumps(each.cache(value)): each.cache(value) for each, value in pending}.values())
        values = {"steps": place.steps, "prompt": prompts, "method": "dense", "cache": caches, "baselines": False}
        evaluate(place.folder("tune"), place.family, {**values, **SMALL, "quick": True})
        collect(place, searches, prompts)
        for each, value in pending:
            if value not in each.tried:
                raise SystemExit(f"{each.policy} failed at {value}: see the error.json files in {place.folder('tune')}")
            share, snr = each.tried[value]
            print(f"{each.policy} at {value}: computes {share:.3f}, latent SNR {snr} dB", flush=True)


def collect(place: Place, searches: list[Search], prompts: list[str]) -> None:
    """Let each search know all that was ever tried for it, for the other target, too."""
    by_setting: dict[str, list[dict[str, Any]]] = {}
    for record in read_records(place.folder("tune")) if (place.folder("tune") / RECORDS).exists() else ():
        if record["cached"] and record["prompt"] in prompts:
            by_setting.setdefault(key_in(record), []).append(record)
    for each, (key, records) in itertools.product(searches, by_setting.items()):
        base, knob, _ = SWEPT[each.policy]
        setting = records[0]["cached"]["setting"]
        if setting["name"] == base["name"] and len(records) == len(prompts):
            value = setting["options"][knob]
            if key_of(each.cache(value)) == key:
                snr = [record["metrics"]["latent_snr"] for record in records]
                each.tried[value] = share_of(records), None if None in snr else statistics.mean(snr)


def key_of(cache: Any) -> str:
    """A cache as it is given, to find it by."""
    return json.dumps(read_cache(cache), sort_keys=True)


@functools.lru_cache(4096)
def _recorded(setting: str) -> str:
    return key_of(flat(json.loads(setting)))


def key_in(record: dict[str, Any]) -> str:
    """The same of the cache that a record had."""
    return _recorded(json.dumps(record["cached"]["setting"]))


def share_of(records: list[dict[str, Any]]) -> float:
    """The mean share of the blocks' calls that ran."""
    return statistics.mean(record["cached"]["blocks_share"] for record in records)


def value_of(record: dict[str, Any]) -> float | None:
    """What was tuned of the policy of a record; None where nothing is."""
    setting = (record["cached"] or {}).get("setting")
    return setting["options"][SWEPT[setting["name"]][1]] if setting and setting["name"] in SWEPT else None


def _middle(low: float, high: float) -> float:
    """Of the logarithms, in three digits, so that a label has all of it."""
    return float(f"{math.sqrt(low * high):.3g}")

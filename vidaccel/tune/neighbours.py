"""Candidates near one that is good already: one step moved, one number a little other."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

from vidaccel.tune.candidate import Settings, is_sparse
from vidaccel.tune.space import LEAST, LONGEST, NONE, Space, by_hand

NEAR = 1.12
"""Factor of a threshold."""
TRIES = 20


def neighbour(candidate: Settings, space: Space, draw: random.Random) -> Settings | None:
    """A candidate that differs in one thing; None where none could be made."""
    changes = _changes(candidate, space)
    for _ in range(TRIES if changes else 0):
        changed = draw.choice(changes)(copy.deepcopy(candidate), space, draw)
        if changed is not None and changed != candidate:
            return changed
    return None


def _changes(candidate: Settings, space: Space) -> list[Callable[..., Settings | None]]:
    cache = candidate["cache"] or {"name": NONE}
    changes: list[Callable[..., Settings | None]] = []
    if cache["name"] == "static":
        # Which steps are computed says most, and nothing else finds them.
        changes += [_moved] * 6 + [_added, _dropped]
    if "computed_steps" in cache:
        # Their calibration knows more of another number than a change by hand does.
        changes += [_recounted] * 4
    if "threshold" in cache:
        changes += [_threshold] * 2
    if isinstance(cache.get("predictor"), dict) and cache["predictor"]["name"] == "fitted":
        changes.append(_outputs)
    if space.guided and cache["name"] != NONE:
        changes.append(_guidance)
    if is_sparse(candidate) and isinstance(candidate["options"].get("density"), float):
        changes += [_density, _first]
    return changes


def _steps(candidate: Settings, space: Space) -> set[int]:
    """The computed steps of a static cache, which is one by hand from now on."""
    if "compute" not in candidate["cache"]:
        candidate["cache"] = by_hand(candidate["cache"], space.calibrations)
    return set(candidate["cache"]["compute"])


def _with(candidate: Settings, steps: set[int]) -> Settings:
    candidate["cache"]["compute"] = sorted(steps)
    return candidate


def _moved(candidate: Settings, space: Space, draw: random.Random) -> Settings | None:
    steps = _steps(candidate, space)
    from_, by = draw.choice(sorted(steps)), draw.choice((-2, -1, 1, 2))
    if from_ == 0 or not 0 < from_ + by < space.steps or from_ + by in steps:
        return None
    return _with(candidate, steps - {from_} | {from_ + by})


def _added(candidate: Settings, space: Space, draw: random.Random) -> Settings | None:
    steps = _steps(candidate, space)
    free = sorted(set(range(space.steps)) - steps)
    return _with(candidate, steps | {draw.choice(free)}) if len(free) > 1 else None


def _dropped(candidate: Settings, space: Space, draw: random.Random) -> Settings | None:
    steps = _steps(candidate, space)
    return _with(candidate, steps - {draw.choice(sorted(steps - {0}))}) if len(steps) > 2 else None


def _recounted(candidate: Settings, space: Space, draw: random.Random) -> Settings | None:
    cache = candidate["cache"]
    cache["computed_steps"] += draw.choice((-2, -1, 1, 2))
    if not 2 <= cache["computed_steps"] < space.steps:
        return None
    if cache["name"] == "static":
        longest = cache.pop("longest", LONGEST)
        cache |= space.within(cache["computed_steps"], cache.get("warmup", 1), longest)
    return candidate


def _threshold(candidate: Settings, space: Space, draw: random.Random) -> Settings | None:
    cache = candidate["cache"]
    cache["threshold"] = float(f"{cache['threshold'] * draw.choice((NEAR, 1 / NEAR)):.3g}")
    return candidate


def _outputs(candidate: Settings, space: Space, draw: random.Random) -> Settings | None:
    predictor = candidate["cache"]["predictor"]
    predictor["outputs"] = draw.choice([count for count in (2, 3, 4) if count != predictor.get("outputs", 2)])
    return candidate


def _guidance(candidate: Settings, space: Space, draw: random.Random) -> Settings | None:
    cache: dict[str, Any] = candidate["cache"]
    interval = cache.pop("guidance_interval", 1) + draw.choice((-1, 1))
    if interval > 1:
        cache["guidance_interval"] = interval
    return candidate if 1 <= interval <= 4 else None


def _density(candidate: Settings, space: Space, draw: random.Random) -> Settings | None:
    density = round(candidate["options"]["density"] * draw.choice((0.8, 0.9, 1.1, 1.25)), 4)
    candidate["options"]["density"] = density
    return candidate if LEAST <= density < 1 else None


def _first(candidate: Settings, space: Space, draw: random.Random) -> Settings | None:
    first = round(candidate["schedule"]["dense_first_steps"] + draw.choice((-0.05, 0.05)), 4)
    candidate["schedule"]["dense_first_steps"] = first
    return candidate if 0 <= first <= 0.6 else None

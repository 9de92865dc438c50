"""A candidate: the settings of one point, as plain values that a profile can have."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from vidaccel.eval.identity import key_of
from vidaccel.patched import DENSE

Settings = dict[str, Any]
"""``method``, ``options``, ``schedule``, ``cache``, ``precision``; see `vidaccel.points`."""
ATTENTION = ("method", "options", "schedule", "precision")
KEY = 16
"""Letters of a key."""


def settings(
    method: str = DENSE,
    options: Mapping[str, Any] | None = None,
    schedule: Mapping[str, Any] | None = None,
    cache: Mapping[str, Any] | None = None,
    precision: str | None = None,
) -> Settings:
    """A candidate, as JSON reads it back: what is equal has one key."""
    values = {"method": method, "options": dict(options or {}), "schedule": dict(schedule or {}),
              "cache": None if cache is None else dict(cache), "precision": precision}  # fmt: skip
    made: Settings = json.loads(json.dumps(values, allow_nan=False))
    return made


def key(candidate: Settings) -> str:
    """What tells a candidate from others."""
    return key_of(candidate)[:KEY]


def attention(candidate: Settings) -> Settings:
    """A candidate without its cache."""
    return {**candidate, "cache": None}


def is_sparse(candidate: Settings) -> bool:
    """Whether its attention is other than the model's own."""
    return bool(candidate["method"] != DENSE)


def words(candidate: Settings) -> str:
    """A candidate for people, on one line."""
    parts = []
    if is_sparse(candidate):
        more = {**candidate["options"], **candidate["schedule"], "precision": candidate["precision"]}
        parts.append(f"{candidate['method']}{_listed(more)}")
    if (cache := candidate["cache"]) is not None:
        parts.append(f"{cache['name']}{_listed({name: item for name, item in cache.items() if name != 'name'})}")
    return " + ".join(parts) or DENSE


def _listed(values: Mapping[str, Any]) -> str:
    texts = [f"{name} {_word(item)}" for name, item in values.items() if item is not None]
    return f" ({', '.join(texts)})" if texts else ""


def _word(item: Any) -> str:
    if isinstance(item, float):
        return f"{item:.3g}"
    if isinstance(item, dict):
        return " ".join(_word(each) for each in item.values() if each is not None)
    if isinstance(item, list):
        return " ".join(map(_word, item))
    return str(item)

"""Ways to reuse what earlier steps computed: one file for each policy, found by themselves."""

from __future__ import annotations

from typing import Any

from vidaccel import registry
from vidaccel.caching import cache as _cache
from vidaccel.caching.base import CachePolicy, Place, Signals, Turn, Verdict
from vidaccel.caching.cache import Cache

POLICIES: dict[str, type[CachePolicy]] = registry.found(__name__, __path__, CachePolicy)
"""Every policy by its name."""


def cache(given: Any) -> Cache | None:
    """What the user gave as a cache: a policy's name; a mapping of ``name``, options of the policy and limits of
    `Cache`; a policy; a `Cache`; None is none.

    Raises:
        ValueError: no such policy or option, or a bad value.
    """
    return _cache.made(POLICIES, given)


__all__ = ["POLICIES", "Cache", "CachePolicy", "Place", "Signals", "Turn", "Verdict", "cache"]

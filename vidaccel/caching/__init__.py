"""Ways to reuse what earlier steps computed: one file for each policy, found by themselves."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from typing import Any

from vidaccel.caching import cache as _cache
from vidaccel.caching.base import CachePolicy, Place, Signals, Turn, Verdict
from vidaccel.caching.cache import Cache


def _find() -> dict[str, type[CachePolicy]]:
    modules = [importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__)]
    classes = [item for module in modules for item in vars(module).values() if isinstance(item, type)]
    found = {item for item in classes if issubclass(item, CachePolicy) and not inspect.isabstract(item)}
    return {item.name: item for item in sorted(found, key=lambda item: item.name)}


POLICIES: dict[str, type[CachePolicy]] = _find()
"""Every policy by its name."""


def cache(given: Any) -> Cache | None:
    """What the user gave as a cache: a policy's name; a mapping of ``name``, options of the policy and limits of
    `Cache`; a policy; a `Cache`; None is none.

    Raises:
        ValueError: no such policy or option, or a bad value.
    """
    return _cache.made(POLICIES, given)


__all__ = ["POLICIES", "Cache", "CachePolicy", "Place", "Signals", "Turn", "Verdict", "cache"]

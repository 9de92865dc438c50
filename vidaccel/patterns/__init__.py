"""The pattern library: where a head's attention lies, as geometry that fits any token grid. One file a kind."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from vidaccel import registry
from vidaccel.patterns.base import Pattern
from vidaccel.patterns.heads import at_density, density_of, mask_of, plan_of

PATTERNS: dict[str, type[Pattern]] = registry.found(__name__, __path__, Pattern)
"""Every pattern by its name."""
NESTED = 8
"""Levels of lists and of patterns within a pattern: a union of bands has two."""


def pattern(values: Mapping[str, Any]) -> Pattern:
    """A pattern from what `Pattern.to_dict` gives; nothing but its own checked fields is accepted.

    Raises:
        ValueError: no such pattern, a field that it does not have, one missing, a bad value, or fields nested
            deeper than any pattern's.
    """
    return _built(values, NESTED)


def _built(values: Mapping[str, Any], levels: int) -> Pattern:
    name = values.get("name")
    if not isinstance(name, str) or name not in PATTERNS:
        raise ValueError(f"unknown pattern {name!r}; choose {', '.join(PATTERNS)}")
    fields = {item.name: item for item in dataclasses.fields(PATTERNS[name])}  # type: ignore[arg-type]
    unknown = sorted(set(values) - set(fields) - {"name"})
    if unknown:
        raise ValueError(f"pattern {name!r} has no {unknown[0]!r}; it has {', '.join(fields) or 'no fields'}")
    missing = [key for key, item in fields.items() if item.default is dataclasses.MISSING and key not in values]
    if missing:
        raise ValueError(f"pattern {name!r} needs {missing[0]!r}")
    return PATTERNS[name](**{key: _value(item, levels) for key, item in values.items() if key != "name"})


def _value(value: Any, levels: int) -> Any:
    """JSON's lists as tuples, so that patterns can be compared and looked up; its objects as patterns."""
    if not isinstance(value, (Mapping, list, tuple)):
        return value
    if not levels:
        raise ValueError(f"the fields of a pattern are nested more than {NESTED} deep")
    if isinstance(value, Mapping):
        return _built(value, levels - 1)
    return tuple(_value(item, levels - 1) for item in value)


__all__ = ["PATTERNS", "Pattern", "at_density", "density_of", "mask_of", "pattern", "plan_of"]

"""The pattern library: where a head's attention lies, as geometry that fits any token grid. One file a kind."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any

from vidaccel.patterns.base import Pattern
from vidaccel.patterns.heads import at_density, density_of, mask_of, plan_of


def _find() -> dict[str, type[Pattern]]:
    modules = [importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__)]
    classes = [item for module in modules for item in vars(module).values() if isinstance(item, type)]
    found = {item for item in classes if issubclass(item, Pattern) and item is not Pattern}
    return {item.name: item for item in sorted(found, key=lambda item: item.name)}


PATTERNS: dict[str, type[Pattern]] = _find()
"""Every pattern by its name."""


def pattern(values: Mapping[str, Any]) -> Pattern:
    """A pattern from what `Pattern.to_dict` gives; nothing but its own checked fields is accepted.

    Raises:
        ValueError: no such pattern, a field that it does not have, one missing, or a bad value.
    """
    name = values.get("name")
    if not isinstance(name, str) or name not in PATTERNS:
        raise ValueError(f"unknown pattern {name!r}; choose {', '.join(PATTERNS)}")
    fields = {item.name: item for item in dataclasses.fields(PATTERNS[name])}  # type: ignore[arg-type]
    given = {key: _frozen(item) for key, item in values.items() if key != "name"}
    unknown = sorted(set(given) - set(fields))
    if unknown:
        raise ValueError(f"pattern {name!r} has no {unknown[0]!r}; it has {', '.join(fields) or 'no fields'}")
    missing = [key for key, item in fields.items() if item.default is dataclasses.MISSING and key not in given]
    if missing:
        raise ValueError(f"pattern {name!r} needs {missing[0]!r}")
    return PATTERNS[name](**given)


def _frozen(value: Any) -> Any:
    """JSON's lists as tuples, so that patterns can be compared and looked up."""
    return tuple(map(_frozen, value)) if isinstance(value, (list, tuple)) else value


__all__ = ["PATTERNS", "Pattern", "at_density", "density_of", "mask_of", "pattern", "plan_of"]

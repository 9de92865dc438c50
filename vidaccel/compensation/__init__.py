"""Ways to make up for skipped keys: one file each, found by themselves."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from vidaccel import registry
from vidaccel.compensation.base import Compensation

COMPENSATIONS: dict[str, type[Compensation]] = registry.found(__name__, __path__, Compensation)
"""Every way by its name."""


def compensation(given: str | Mapping[str, Any] | Compensation | None) -> Compensation | None:
    """What the user gave as such: a name, a mapping with ``name`` and options, or one as it is; None is none.

    Raises:
        ValueError: no such name or option, or a bad value.
    """
    if given is None or isinstance(given, Compensation):
        return given
    values = {"name": given} if isinstance(given, str) else dict(given) if isinstance(given, Mapping) else {}
    name = values.pop("name", None)
    if name not in COMPENSATIONS:
        raise ValueError(f"unknown compensation {given!r}; choose {', '.join(COMPENSATIONS)}")
    fields = [item.name for item in dataclasses.fields(COMPENSATIONS[name])]  # type: ignore[arg-type]
    if unknown := sorted(set(values) - set(fields)):
        known = ", ".join(fields) or "no options"
        raise ValueError(f"compensation {name!r} has no option {unknown[0]!r}; it has {known}")
    return COMPENSATIONS[name](**values)


__all__ = ["COMPENSATIONS", "Compensation", "compensation"]

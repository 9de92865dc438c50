"""Ways to choose attention: one file each, found by themselves."""

from __future__ import annotations

from typing import Any

from vidaccel import registry
from vidaccel.methods.base import Method, ModelFacts

METHODS: dict[str, type[Method]] = registry.found(__name__, __path__, Method)
"""Every method by its name."""


def named(name: str) -> type[Method]:
    """A method's class.

    Raises:
        ValueError: no such method.
    """
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}; choose {', '.join(METHODS)}")
    return METHODS[name]


def method(name: str, family: str, **options: Any) -> Method:
    """A method by name, with the defaults of a model family overridden by `options`.

    Raises:
        ValueError: no such method or option, or a bad value.
    """
    return named(name).for_family(family, **options)


__all__ = ["METHODS", "Method", "ModelFacts", "method", "named"]

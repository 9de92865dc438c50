"""Ways to choose attention: one file each, found by themselves."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from typing import Any

from vidaccel.methods.base import Method, ModelFacts


def _find() -> dict[str, type[Method]]:
    modules = [importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__)]
    classes = [item for module in modules for item in vars(module).values() if isinstance(item, type)]
    found = {item for item in classes if issubclass(item, Method) and not inspect.isabstract(item)}
    return {item.name: item for item in sorted(found, key=lambda item: item.name)}


METHODS: dict[str, type[Method]] = _find()
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

"""Tiny models of every transformer class that is supported: one file for each family or group, found by themselves."""

from __future__ import annotations

import functools
import importlib
import pkgutil

from tests.pipelines.models.model import Model


@functools.cache
def models() -> dict[str, Model]:
    """All of them by name; those whose classes the installed diffusers does not have yet are missing."""
    found: dict[str, Model] = {}
    for info in pkgutil.iter_modules(__path__):
        if info.name == "model":
            continue
        try:
            found |= importlib.import_module(f"{__name__}.{info.name}").MODELS
        except ImportError as error:
            if "diffusers" not in str(error):
                raise
    return found

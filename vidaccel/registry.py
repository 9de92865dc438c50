"""Plug-ins of a folder: one file each, found by themselves."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterable
from typing import Any


def found(package: str, path: Iterable[str], base: Any) -> dict[str, Any]:
    """Every concrete subclass of `base` in the files of a package, by its ``name``, in the order of the alphabet.

    Args:
        package, path: its ``__name__`` and ``__path__``.
        base: an abstract class, which type checkers refuse as ``type[...]``.
    """
    modules = [importlib.import_module(f"{package}.{info.name}") for info in pkgutil.iter_modules(path)]
    classes: list[Any] = [item for module in modules for item in vars(module).values() if isinstance(item, type)]
    chosen = {item for item in classes if issubclass(item, base) and not inspect.isabstract(item)}
    return {item.name: item for item in sorted(chosen, key=lambda item: str(item.name))}

"""Model families: one file each, found by themselves, and imported only when a pipeline is at hand."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any

from torch import nn

from vidaccel.pipelines.base import Family
from vidaccel.pipelines.refused import UNET, refusal

EXPERTS = ("transformer", "transformer_2")
"""Attributes of a pipeline that hold its denoisers."""


@functools.cache
def families() -> dict[str, Family]:
    """Every family by its name."""
    names = sorted(info.name for info in pkgutil.iter_modules(__path__))
    found = [getattr(importlib.import_module(f"{__name__}.{name}"), "FAMILY", None) for name in names]
    return {family.name: family for family in found if family is not None}


def uncompiled(module: nn.Module) -> nn.Module:
    """The module behind `torch.compile`'s wrapper, or the module itself."""
    inner: nn.Module = getattr(module, "_orig_mod", module)
    return inner


def compiled(target: Any) -> str | None:
    """Class of a denoiser that is inside `torch.compile`'s wrapper; None where none is."""
    found: list[Any] = [target] if isinstance(target, nn.Module) else [getattr(target, name, None) for name in EXPERTS]
    return next((type(each._orig_mod).__name__ for each in found if hasattr(each, "_orig_mod")), None)


def experts(target: Any) -> dict[str, nn.Module]:
    """The denoisers of a pipeline by attribute, or a bare transformer under the name "transformer".

    Raises:
        ValueError: `target` is neither.
    """
    if isinstance(target, nn.Module):
        return {EXPERTS[0]: uncompiled(target)}
    found = {name: getattr(target, name, None) for name in EXPERTS}
    present = {name: uncompiled(module) for name, module in found.items() if isinstance(module, nn.Module)}
    if not present:
        unet = f"its {type(target.unet).__name__} is not supported: {UNET}; " if hasattr(target, "unet") else ""
        raise ValueError(f"{type(target).__name__} has no video transformer; {unet}{_supported()}")
    return present


def family_of(transformer: nn.Module) -> Family:
    """The family of a transformer.

    Raises:
        ValueError: none supports its class.
    """
    name = type(transformer).__name__
    found = family_named(name)
    if found is None:
        raise ValueError(unsupported(name))
    return found


def family_named(transformer: str) -> Family | None:
    """The family of a transformer's class, by the name of the class; None where none supports it."""
    return next((family for family in families().values() if transformer in family.transformers), None)


def unsupported(transformer: str) -> str:
    """What to say of a transformer's class that has no family."""
    known = refusal(transformer)
    if known is not None:
        return f"{transformer} is not supported: {known}" + ("" if known.instead else f". {_supported()}")
    return (f"{transformer} is not supported; {_supported()}. For a class that is not known, say what it is by "
            "family=vidaccel.Generic(...): see docs/unknown-models.md")  # fmt: skip


def family_for(asked: Any, transformers: Mapping[str, nn.Module]) -> Family | None:
    """The family that a user asks for by "generic" or a `Generic`; None asks for that of each class.

    Raises:
        ValueError: neither, or nothing that the transformers can be.
    """
    if asked is None:
        return None
    from vidaccel.pipelines.generic import NAME, Generic, GenericFamily

    if asked != NAME and not isinstance(asked, Generic):
        raise ValueError(f'family={asked!r} is none of None, "{NAME}" and a vidaccel.Generic(...)')
    classes = {type(module) for module in transformers.values()}
    if len(classes) > 1:
        raise ValueError(f"one Generic cannot be for {' and '.join(sorted(each.__name__ for each in classes))}")
    return GenericFamily(Generic() if asked == NAME else asked, next(iter(transformers.values())))


def supported_classes() -> dict[type[nn.Module], Family]:
    """The transformer classes of the installed diffusers that have a family."""
    import diffusers

    named = {name: family for family in families().values() for name in family.transformers}
    return {getattr(diffusers, name): family for name, family in named.items() if hasattr(diffusers, name)}


def _supported() -> str:
    classes = [name for family in families().values() for name in family.transformers]
    return f"vidaccel supports pipelines with {', '.join(classes)}"

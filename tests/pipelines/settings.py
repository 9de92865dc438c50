"""Settings of every method that leave pairs out of tiny grids."""

from __future__ import annotations

from typing import Any

from torch import nn

from tests.methods.test_mixed import BLOCK, PATTERNS, layer
from tests.pipelines.cases import NEVER_DENSE
from vidaccel.heads import HeadTable
from vidaccel.methods import METHODS
from vidaccel.pipelines import family_of
from vidaccel.profile import Profile

DROPPING = {"radial": {"decay": 0.0, "split": 16, "sink": False}, "svg": {}, "neighborhood": {"density": 0.4}}
"""Options by which static methods leave pairs out on the tiny grids."""
RESISTS = 3
"""The pattern of heads that no other one fits."""


def options(name: str) -> dict[str, Any]:
    """Of a method, such that it leaves pairs out of tiny grids."""
    fields = METHODS[name].__dataclass_fields__  # type: ignore[attr-defined]
    small = {"density": 0.4, "block": BLOCK, **({"refresh": 2} if "refresh" in fields else {})}
    return DROPPING.get(name, {"block": BLOCK}) | {
        key: each for key, each in small.items() if key in fields and not (name == "radial" and key == "density")
    }


def profile(transformer: nn.Module, *cycles: tuple[int, ...]) -> Profile:
    """Heads of all kinds, in every layer; or patterns that take turns over the heads, and over the layers."""
    family, cycles = family_of(transformer), cycles or ((1, 2),)
    heads, _ = family.heads(transformer)
    kinds = [layer(*(cycle * heads)[:heads]) for cycle in cycles]
    layers = tuple(kinds[index % len(kinds)] for index, _ in enumerate(family.sites(transformer)))
    table = HeadTable(BLOCK, PATTERNS, (1.0,), {"transformer": (layers,)})
    return Profile("head_profile", {"max_error": 1e-3}, NEVER_DENSE, 0, heads=table)


def setting(name: str, transformer: nn.Module) -> tuple[Any, dict[str, Any]]:
    """The method to enable, and its options."""
    if name == "head_profile":
        return profile(transformer), {}
    if name == "mixed":
        # Every other head resists in even layers, and the first one alone in odd ones.
        made = profile(transformer, (1, RESISTS, 2, RESISTS), (RESISTS, *(1, 2) * 20))
        return METHODS["mixed"].of(made, dynamic="nabla", dynamic_density=0.4, refresh=2), {}  # type: ignore[attr-defined]
    return name, options(name)

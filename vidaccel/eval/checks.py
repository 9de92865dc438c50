"""Checks of plain values that a person wrote, with errors that say what was given and what is allowed."""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any


def check_names(values: Mapping[str, Any], known: Iterable[str]) -> None:
    """Refuse names that are not `known`.

    Raises:
        ValueError: there is one.
    """
    for name in values:
        if name not in known:
            raise ValueError(f"an eval has no setting {name!r}; it has {', '.join(known)}")


def check_type(name: str, item: Any, hint: Any) -> Any:
    """`item` if it is of the type `hint`: a whole number is a float, too, but true is not a number.

    Raises:
        ValueError: it is not.
    """
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    kinds: tuple[Any, ...] = typing.get_args(hint) if union else (hint,)
    fits = (*kinds, int) if float in kinds else kinds
    finite = not isinstance(item, float) or math.isfinite(item)
    if isinstance(item, fits) and finite and (bool in kinds or not isinstance(item, bool)):
        return item
    names = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", type(None): "none"}
    raise ValueError(f"{name}: {item!r} is not {' or '.join(names.get(kind, str(kind)) for kind in kinds)}")


def as_list(name: str, item: Any) -> list[Any]:
    """One value, or a list of them, as a list.

    Raises:
        ValueError: it is empty.
    """
    values = list(item) if isinstance(item, (list, tuple)) else [item]
    if not values:
        raise ValueError(f"{name} is an empty list: give at least one, or leave it out")
    return values

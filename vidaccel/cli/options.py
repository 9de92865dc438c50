"""``NAME=VALUE`` options, typed by the fields of a dataclass."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vidaccel import strict

if TYPE_CHECKING:
    from vidaccel.pipelines.generic import Generic

GENERIC = "generic"
NONE = ("none", "null")
NAMES = {type(None): "none", bool: "true or false", int: "a whole number", float: "a number", str: "a text",
         list: "a list as JSON", dict: "a mapping as JSON"}  # fmt: skip
TRUE, FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


def parse(assignments: Iterable[str], cls: Any, what: str) -> dict[str, Any]:
    """The fields of dataclass `cls` that `assignments` such as "decay=0.2" set.

    Args:
        what: the thing that has the fields, for errors.

    Raises:
        ValueError: no "=", an unknown field, a field set twice, or a value that is not of its type.
    """
    hints = typing.get_type_hints(cls)
    return parse_as(assignments, {field.name: hints[field.name] for field in dataclasses.fields(cls)}, what)


def parse_as(assignments: Iterable[str], hints: Mapping[str, Any], what: str) -> dict[str, Any]:
    """What `assignments` set of names with these types; see `parse`."""
    found: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        name = name.strip().replace("-", "_")
        if not equals:
            raise ValueError(f"{assignment!r} is not NAME=VALUE")
        if name not in hints:
            raise ValueError(f"{what} has no option {name!r}; it has {', '.join(hints) or 'none'}")
        if name in found:
            raise ValueError(f"option {name!r} of {what} is set twice")
        found[name] = value(text.strip(), hints[name], name)
    return found


def value(text: str, annotation: Any, name: str) -> Any:
    """`text` as the first type of `annotation` that takes it.

    Raises:
        ValueError: none does.
    """
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    given = typing.get_args(annotation) if union else (annotation,)
    kinds = [list if typing.get_origin(kind) in (Sequence, tuple) else kind for kind in given]
    # "none" before a string, whole numbers before fractions: dense_first_steps=1 is a count, 1.0 all of them.
    order: dict[Any, Callable[[str], Any]] = {
        type(None): _none,
        bool: _bool,
        int: int,
        float: _number,
        list: _list,
        dict: _mapping,
        str: str,
    }
    able = [order[kind] for kind in order if kind in kinds]
    if not able:
        raise ValueError(f"option {name!r} cannot be given on the command line; use vidaccel from Python")
    for read in able:
        try:
            return read(text)
        except ValueError:
            continue
    names = " or ".join(NAMES[kind] for kind in order if kind in kinds)
    raise ValueError(f"{name}={text!r} is not {names}")


def _none(text: str) -> None:
    if text.lower() not in NONE:
        raise ValueError(text)


def _bool(text: str) -> bool:
    if text.lower() not in TRUE + FALSE:
        raise ValueError(text)
    return text.lower() in TRUE


def _number(text: str) -> float:
    """A count if it is written as one: a schedule tells 1 from 1.0."""
    if text.lstrip("+-").isdigit():
        return int(text)
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number


def _list(text: str) -> list[Any]:
    found = strict.parse(text, "the option")
    if not isinstance(found, list):
        raise ValueError(text)
    return found


def _mapping(text: str) -> dict[str, Any]:
    if not text.startswith("{"):
        raise ValueError(text)
    found: dict[str, Any] = strict.parse(text, "the option")
    return found


def cache_options(name: str | None, assignments: Iterable[str]) -> dict[str, Any] | None:
    """A cache as `vidaccel.enable` takes it, from ``--cache`` and ``--cache-set``; None without.

    Raises:
        ValueError: options without a policy, no such policy, or as `parse`.
    """
    from vidaccel.caching import POLICIES, cache
    from vidaccel.caching.cache import LIMITS, Cache

    given = list(assignments)
    if name is None:
        if given:
            raise ValueError(f"--cache-set {given[0]!r} sets an option of a cache: give --cache NAME, too")
        return None
    if name not in POLICIES:
        raise ValueError(f"unknown cache policy {name!r}; choose {', '.join(POLICIES)}")
    own, limits = (typing.get_type_hints(cls) for cls in (POLICIES[name], Cache))
    fields = [item.name for item in dataclasses.fields(POLICIES[name])]  # type: ignore[arg-type]
    hints = {each: own[each] for each in fields} | {each: limits[each] for each in LIMITS} | {"predictor": dict | str}
    made = {"name": name, **parse_as(given, hints, f"cache policy {name!r}")}
    # Only to be refused here, before a model is loaded.
    _ = cache(made)
    return made


def generic(name: str | None, assignments: Iterable[str]) -> Generic | None:
    """What ``--family`` and ``--family-set`` say of a transformer; None without.

    Raises:
        ValueError: another family, what it is without ``--family generic``, or as `parse`.
    """
    given = list(assignments)
    if name is None and given:
        raise ValueError(f"--family-set {given[0]!r} says what a generic transformer is: give --family generic, too")
    if name not in (None, GENERIC):
        raise ValueError(f"--family {name!r} is not {GENERIC!r}: other families are known by the transformer's class")
    if name is None:
        return None
    from vidaccel.pipelines.generic import Generic

    found = parse(given, Generic, "a generic transformer")
    as_given: dict[str, Any] = {key: tuple(each) if isinstance(each, list) else each for key, each in found.items()}
    return Generic(**as_given)


def method_options(name: str, assignments: Iterable[str], **named: Any) -> dict[str, Any]:
    """Options of a method from ``--set`` and from options of their own, such as ``--density``.

    Raises:
        ValueError: no such method, or as `parse`.
    """
    from vidaccel.methods import METHODS

    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}; choose {', '.join(METHODS)}")
    given = [f"{key}={item}" for key, item in named.items() if item is not None]
    return parse([*given, *assignments], METHODS[name], f"method {name!r}")

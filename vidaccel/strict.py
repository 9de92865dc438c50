"""Values from files that anyone may have written: every surprise is one `ValueError` that says where it is."""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

MAX_BYTES = 16 << 20
"""Of a file; a profile of 2 experts x 40 layers x 40 heads with 10 options each takes under 1 MB."""
MAX_DIGITS = 18
"""Of a whole number."""
MAX_DEPTH = 32
"""Of lists and objects in each other: what repeats or copies a value goes down as far."""
SHOWN = 60
"""Letters of a bad value that a message repeats."""


def read(path: str | os.PathLike[str], what: str) -> str:
    """The text of a file; `what` says what it should have been.

    Raises:
        ValueError: no such file, not a plain one, one that is too large, or not UTF-8.
    """
    try:
        # A pipe or a device could be read for ever.
        if not Path(path).is_file():
            raise FileNotFoundError(None, "a folder or device" if Path(path).exists() else "No such file or directory")
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise ValueError(f"{path} is larger than the {MAX_BYTES >> 20} MiB that {what} may have")
        return data.decode("utf-8")
    except OSError as error:
        raise ValueError(f"no {what} at {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not JSON: byte {error.start} is not UTF-8") from error


def parse(text: str, origin: str) -> Any:
    """The value of a JSON text in which every name stands once and every number is finite.

    Raises:
        ValueError: it is not; `origin` is what the message calls it.
    """
    hooks: Any = {"parse_constant": _no_constant, "parse_int": _int, "parse_float": _float}
    try:
        value = json.loads(text, object_pairs_hook=_once, **hooks)
    except RecursionError:
        raise ValueError(f"{origin} is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{origin} is not JSON: {error}") from None
    if _deep(value):
        raise ValueError(f"{origin} is nested too deeply: more than {MAX_DEPTH} levels")
    return value


def shown(value: Any) -> str:
    """A value in a message: on one line, and not all of a long one."""
    text = repr(value)
    return f"{text[:SHOWN]}..." if len(text) > SHOWN else text


def names(where: str, value: Any, known: Collection[str], needed: Collection[str] = ()) -> dict[str, Any]:
    """`value` if it is an object with no name but `known` and with all that are `needed`.

    Raises:
        ValueError: it is not.
    """
    if not isinstance(value, dict):
        raise ValueError(f"{where} is {shown(value)}, not an object")
    for name in value:
        if name not in known:
            raise ValueError(f"{where} has {shown(name)}, which does not belong there; it has {', '.join(known)}")
    for name in needed:
        if name not in value:
            raise ValueError(f"{where} has no {name!r}")
    return value


def listed(where: str, value: Any, most: int, least: int = 1) -> list[Any]:
    """`value` if it is a list of `least` to `most` entries.

    Raises:
        ValueError: it is not.
    """
    if not isinstance(value, list):
        raise ValueError(f"{where} is {shown(value)}, not a list")
    if not least <= len(value) <= most:
        raise ValueError(f"{where} has {len(value)} entries, not {least} to {most:,}")
    return value


def whole(where: str, value: Any, least: int, most: int) -> int:
    """`value` if it is a whole number from `least` to `most`.

    Raises:
        ValueError: it is not.
    """
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ValueError(f"{where} is {shown(value)}, not a whole number from {least} to {most:,}")
    return value


def number(where: str, value: Any, most: float = math.inf) -> float:
    """`value` if it is a finite number from 0 to `most`.

    Raises:
        ValueError: it is not.
    """
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not good or not 0 <= value <= most:
        limit = "of at least 0" if most == math.inf else f"from 0 to {most:g}"
        raise ValueError(f"{where} is {shown(value)}, not a finite number {limit}")
    return float(value)


def signed(where: str, value: Any, most: float) -> float:
    """`value` if it is a finite number of either sign, up to `most` in size.

    Raises:
        ValueError: it is not.
    """
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not good or abs(value) > most:
        raise ValueError(f"{where} has {shown(value)}, not a finite number up to {most:g} either way")
    return float(value)


def string(where: str, value: Any, most: int) -> str:
    """`value` if it is a text of at most `most` letters.

    Raises:
        ValueError: it is not.
    """
    if not isinstance(value, str) or len(value) > most:
        raise ValueError(f"{where} is {shown(value)}, not a text of at most {most:,} letters")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"{shown(twice)} stands twice in one object")
    return values


def _deep(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        inside = (each.values() if isinstance(each, dict) else each for each in level if isinstance(each, (dict, list)))
        level = list(itertools.chain.from_iterable(inside))
        if not level:
            return False
    return True


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is not a number of JSON")


def _int(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"a whole number of {len(text)} digits is too large")
    return int(text)


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{shown(text)} is too large")
    return value

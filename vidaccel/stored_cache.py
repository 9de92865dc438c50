"""The cache of a profile: plain options, with the calibrations that they go by in the same file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from vidaccel import strict
from vidaccel.caching.calibration import CacheCalibration
from vidaccel.miniature import PREFIX

FILE, PREDICTOR = "file", "predictor"
SHIPPED = re.compile(rf"{PREFIX}[\w-]+/[\w-]+\.json", re.ASCII)
MAX_NAME, MAX_OPTIONS, MAX_LIST, MAX_CALIBRATIONS = 256, 64, 100_000, 64
Cached = str | dict[str, Any] | None


def calibrations(where: str, value: Any) -> dict[str, CacheCalibration]:
    """The calibrations of a file, by the names under which its caches ask for them.

    Raises:
        ValueError: one that is none, a bad name, or too many.
    """
    if not isinstance(value, dict) or len(value) > MAX_CALIBRATIONS:
        raise ValueError(f"{where} is {strict.shown(value)}, not an object of at most {MAX_CALIBRATIONS}")
    for name in value:
        strict.string(f"{where}: a name", name, MAX_NAME)
        if name.startswith(PREFIX):
            raise ValueError(f"{where}: {strict.shown(name)} is the name of a miniature's own")
    return {name: CacheCalibration.of_values(each, f"{where}: {strict.shown(name)}") for name, each in value.items()}


def check(where: str, value: Any, known: Mapping[str, CacheCalibration]) -> None:
    """Refuse what is neither a policy's name nor a name with plain options, and calibrations that are not `known`.

    Raises:
        ValueError: what was given; which policies and options there are, `enable` knows.
    """
    if value is None:
        return
    if isinstance(value, str):
        strict.string(where, value, MAX_NAME)
        return
    if not isinstance(value, dict):
        raise ValueError(f"{where} is {strict.shown(value)}, neither a name nor an object")
    _check_options(where, value, known)
    if isinstance(value.get(PREDICTOR), dict):
        _check_options(f"{where}: {PREDICTOR}", value[PREDICTOR], known)


def resolved(value: Cached, known: Mapping[str, CacheCalibration]) -> Cached:
    """A checked cache as `vidaccel.caching.cache` takes it: with calibrations instead of their names."""
    if not isinstance(value, dict):
        return value
    made = {**value, **({FILE: known.get(value[FILE], value[FILE])} if value.get(FILE) is not None else {})}
    if isinstance(made.get(PREDICTOR), dict):
        made[PREDICTOR] = resolved(made[PREDICTOR], known)
    return made


def files_of(value: Cached) -> set[str]:
    """The names of the calibrations that a cache goes by."""
    if not isinstance(value, dict):
        return set()
    inner = value.get(PREDICTOR)
    own = {value[FILE]} if value.get(FILE) is not None else set()
    return own | (files_of(inner) if isinstance(inner, dict) else set())


def _check_options(where: str, value: dict[str, Any], known: Mapping[str, CacheCalibration]) -> None:
    strict.listed(where, list(value), MAX_OPTIONS)
    strict.string(f"{where}: name", value.get("name"), MAX_NAME)
    for name, item in value.items():
        nested = isinstance(item, dict) and name != PREDICTOR
        if nested or (isinstance(item, list) and (len(item) > MAX_LIST or any(map(_nested, item)))):
            raise ValueError(f"{where}: {strict.shown(name)} is {strict.shown(item)}, not a value or a list of them")
    file = value.get(FILE)
    # No path: whoever wrote this file could otherwise have any other one read.
    if file is not None and (not isinstance(file, str) or (file not in known and not SHIPPED.fullmatch(file))):
        names = ", ".join(known) or "which has none"
        raise ValueError(f"{where}: {FILE} is {strict.shown(file)}, not one of the file's calibrations ({names}) nor "
                         f"{PREFIX}NAME/FILE.json")  # fmt: skip


def _nested(item: Any) -> bool:
    return isinstance(item, dict | list)

"""The cache axis of an eval: what a user may write, as plain values, in words, and what a cached run did."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vidaccel.caching import POLICIES, Cache
from vidaccel.caching import cache as make_cache
from vidaccel.caching.predictors import PREDICTORS

NONE = "none"
"""On the axis and in records: no cache."""
GIVEN = ("reused", "predicted", "guidance")
"""Decisions that pass blocks by."""
CacheValues = dict[str, Any] | str
"""As `Cache.to_dict` has it; `NONE` without one."""


SETTING = ("name", "options", "predictor", "limits", "calibration", "fitted_to")
"""What of a summary's cache is its setting."""


def read_cache(item: Any) -> CacheValues:
    """An entry of the axis: `NONE`, a policy's name, or a mapping of ``name``, its options, limits and ``predictor``.

    Raises:
        ValueError: no such policy or option, or a bad value.
    """
    if item == NONE:
        return NONE
    name = item.get("name") if isinstance(item, Mapping) else item
    if not isinstance(name, str) or name not in POLICIES:
        raise ValueError(f"unknown cache policy {name!r}; choose {', '.join((NONE, *POLICIES))}")
    made = make_cache(item)
    assert made is not None
    # As JSON has it, in which cells are compared with those of a folder.
    values: dict[str, Any] = json.loads(json.dumps(made.to_dict()))
    return values


def cache_of(values: CacheValues) -> Cache | None:
    """The cache that plain values are of."""
    if isinstance(values, str):
        return None
    return make_cache(flat(values))


def flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """As `vidaccel.enable` and a settings file have it."""
    return {"name": values["name"], **values["options"], "predictor": values["predictor"], **values["limits"]}


def text_of(values: CacheValues) -> str:
    """A cache in words: the policy, and what differs from what it has without being told."""
    return values if isinstance(values, str) else _text(json.dumps(values))


@functools.lru_cache(256)
def _text(values: str) -> str:
    given = _needed(flat(json.loads(values)))
    name = str(given.pop("name"))
    return name + (f"({', '.join(f'{key}={_word(key, item)}' for key, item in given.items())})" if given else "")


def _needed(given: dict[str, Any]) -> dict[str, Any]:
    """Without what the policy would have anyway, be it a default or what another option brings along."""
    cls: Any = POLICIES[given["name"]]
    usual = {item.name: item.default for part in (cls, Cache) for item in dataclasses.fields(part)}
    given = {name: item for name, item in given.items() if name == "name" or item != _plain(usual[name])}
    whole = make_cache(given)
    for name in [name for name in given if name != "name"]:
        less = {key: item for key, item in given.items() if key != name}
        try:
            if make_cache(less) == whole:
                given = less
        except ValueError:
            continue  # it is needed
    return given


def _word(name: str, item: Any) -> str:
    if isinstance(item, dict):
        usual = dataclasses.asdict(PREDICTORS[item["name"]]())  # type: ignore[call-overload]
        changed = [f"{key}={each}" for key, each in item.items() if key != "name" and each != usual[key]]
        return str(item["name"]) + (f"({', '.join(changed)})" if changed else "")
    if isinstance(item, list):
        return " ".join(map(str, item))
    if isinstance(item, float):
        return f"{item:g}"
    return Path(item).name if name == "file" else str(item)


def _plain(item: Any) -> Any:
    return list(item) if isinstance(item, tuple) else item


def cached_run(summary: Mapping[str, Any], blocks: int, steps: int) -> dict[str, Any] | None:
    """What a run's cache did, of the dictionary of its summary; None where it had none.

    Args:
        blocks: of the transformer.
        steps: of the run.

    Returns:
        ``setting``; ``computed_share`` of the transformer calls of all guidance passes; ``blocks_share`` of the calls
        of blocks that ran, which is more where a policy passes by only some; ``computed_steps``, in which a pass was
        computed; ``decisions``, a letter for each call by expert and pass as in the summary; ``seconds``.
    """
    made = summary["cache"]
    if made is None:
        return None
    decisions = made["decisions"]
    told = {name: made[name] for name in SETTING if name in made}
    calls = len(decisions) * blocks
    # A run that is too short for its cache has no decisions: all of it was computed.
    steps_of = {each["step"] for each in decisions if each["what"] not in GIVEN} if decisions else range(steps)
    return {
        "setting": told, "computed_share": 1.0 if made["computed_share"] is None else made["computed_share"],
        "blocks_share": (calls - summary["calls"]["spared"]) / calls if calls else 1.0,
        "computed_steps": sorted(steps_of), "decisions": _letters(decisions), "seconds": made["seconds"],
    }  # fmt: skip


def _letters(decisions: list[dict[str, Any]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for each in decisions:
        row = f"{each['expert']} {each['branch']}"
        letter = "c" if each["forced"] else "C" if each["what"] == "computed" else each["what"][0]
        found[row] = found.get(row, "") + letter
    return found

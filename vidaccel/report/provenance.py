"""Where the figures of an eval come from: what all its records share, and where they differ, all of what they say."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vidaccel.report.view import plain

Facts = list[tuple[str, str]]
LISTED = 6
"""Different values that are named one by one."""


def provenance(records: Sequence[Mapping[str, Any]]) -> list[tuple[str, Facts]]:
    """Groups of names and values over records of cells."""
    run: Facts = [("records", str(len(records))), ("created", _span(each["created"] for each in records))]
    run += [(name.replace("_", " "), _values(records, name))
            for name in ("vidaccel", "git", "seed", "negative_prompt", "backend")]  # fmt: skip
    made = [("Run", run)]
    made += [(title, _part(records, key)) for title, key in (("Model", "model"), ("Generation", "settings"),
                                                             ("Device", "device"), ("Versions", "versions"))]
    return made


def cases(records: Iterable[Mapping[str, Any]]) -> list[str]:
    """The prompts, each once."""
    return list(dict.fromkeys(str(each["prompt"]) for each in records))


def row_settings(record: Mapping[str, Any]) -> Facts:
    """All that tells a row from others, of one of its records."""
    cached, made_up = record.get("cached") or {}, record.get("compensation") or {}
    parts: list[tuple[str, Any]] = [
        ("method", record["method"].get("name")), *_items(record["method"].get("options")),
        *((f"schedule: {name}", item) for name, item in _items(record["schedule"])),
        *((f"cache: {name}", item) for name, item in _items(cached.get("setting"))),
        *((f"compensation: {name}", item) for name, item in _items(made_up)),
        *((f"baseline: {name}", item) for name, item in _items(record["baseline"])), ("backend", record["backend"]),
    ]  # fmt: skip
    return [(name.replace("_", " "), plain(item)) for name, item in parts]


def _items(values: Any) -> list[tuple[str, Any]]:
    return list(values.items()) if isinstance(values, Mapping) else []


def _part(records: Sequence[Mapping[str, Any]], key: str) -> Facts:
    parts = [each[key] for each in records]
    return [(name.replace("_", " "), _values(parts, name)) for name in dict.fromkeys(n for part in parts for n in part)]


def _values(parts: Sequence[Mapping[str, Any]], name: str) -> str:
    found = list(dict.fromkeys(plain(part.get(name)) for part in parts))
    more = f" and {len(found) - LISTED} more" if len(found) > LISTED else ""
    return "; ".join(found[:LISTED]) + more


def _span(stamps: Iterable[str]) -> str:
    found = sorted(stamps)
    return found[0] if found[0] == found[-1] else f"{found[0]} to {found[-1]}"

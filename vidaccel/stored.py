"""Patterns as a profile's JSON holds them: a long text that several share, such as a map, is written once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vidaccel import strict
from vidaccel.layout import TokenLayout
from vidaccel.patterns import Pattern, orders, pattern

LONG, LONGEST = 64, 1 << 14
"""Letters from which a text is written apart, and that it may have."""
MAX_PATTERNS = 1 << 18
TRIAL = TokenLayout(3, 4, 5)
"""A grid on which a stranger's token orders are tried before they are believed."""
TEXT = "text"


def to_json(patterns: Sequence[Pattern], known: Sequence[str] = ()) -> tuple[list[Any], list[str]]:
    """The patterns, each long text as its place in `known` and the second list after it: ``{"text": place}``."""
    places = {text: place for place, text in enumerate(known)}

    def short(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: short(item) for name, item in value.items()}
        if isinstance(value, list):
            return [short(item) for item in value]
        long = isinstance(value, str) and len(value) >= LONG
        return {TEXT: places.setdefault(value, len(places))} if long else value

    return [short(each.to_dict()) for each in patterns], list(places)[len(known) :]


def from_json(where: str, patterns: Any, texts: Any, known: Sequence[str] = ()) -> tuple[Pattern, ...]:
    """The patterns of `to_json`, or of a stranger's JSON; `where` names it in errors, `known` are read already.

    Raises:
        ValueError: anything that is no pattern, or too much.
    """
    found = [*known, *_texts(f"{where}: texts", texts)]
    here = f"{where}: patterns"
    made = []
    for index, each in enumerate(strict.listed(here, patterns, MAX_PATTERNS)):
        if not isinstance(each, dict):
            raise ValueError(f"{here}[{index}] is {strict.shown(each)}, not an object")
        try:
            made.append(pattern(_full(each, found)))
            orders.sequence(TRIAL, made[-1].order)
        except (TypeError, AttributeError, ValueError, KeyError, IndexError, ArithmeticError) as error:
            raise ValueError(f"{here}[{index}]: {error}") from error
    return tuple(made)


def _texts(where: str, value: Any) -> list[str]:
    texts = strict.listed(where, value, MAX_PATTERNS, least=0)
    for index, text in enumerate(texts):
        if not isinstance(text, str) or len(text) > LONGEST:
            raise ValueError(f"{where}[{index}] is {strict.shown(text)}, not a text of at most {LONGEST} letters")
    return texts


def _full(value: Any, texts: list[str]) -> Any:
    """A value with its texts in their places."""
    if isinstance(value, dict) and set(value) == {TEXT}:
        return texts[strict.whole("the place of a text", value[TEXT], 0, len(texts) - 1)]
    if isinstance(value, dict):
        return {name: _full(item, texts) for name, item in value.items()}
    return [_full(item, texts) for item in value] if isinstance(value, list) else value

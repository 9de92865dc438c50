"""Where the time of a generation goes: its parts, dense and for each row that has them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vidaccel.report.eval_folder import Group

PARTS = {"text": "text encoders", "plan": "planning", "permute": "permuting", "attention": "attention",
         "rest": "the rest", "vae": "decoding"}  # fmt: skip
"""Of a record's split, in the order of drawing."""


@dataclass(frozen=True)
class Bar:
    """The mean seconds of each part of one row, in the order of `PARTS`.

    Args:
        number: of the row; None of the dense runs.
        label: the row's.
    """

    number: int | None
    label: str
    seconds: list[float]

    @property
    def total(self) -> float:
        """Of the whole generation."""
        return sum(self.seconds)


def bars(group: Group) -> list[Bar]:
    """Dense first, then each row whose records have a split; nothing where none has.

    Raises:
        ValueError: a split without one of the parts, or with a time that is none.
    """
    splits = [[split for cell in row if (split := cell.record.get("split")) is not None] for row in group.cells]
    dense = [split["dense"] for row in splits for split in row]
    if not dense:
        return []
    made = [Bar(number, row.label, _mean([split["fast"] for split in own]))
            for number, (row, own) in enumerate(zip(group.rows, splits, strict=True), 1) if own]  # fmt: skip
    return [Bar(None, "dense", _mean(dense)), *made]


def bar_notes(group: Group) -> list[str]:
    """What the records say of their splits, each remark once."""
    splits = [cell.record.get("split") for row in group.cells for cell in row]
    return list(dict.fromkeys(str(split["note"]) for split in splits if split and split.get("note")))


def _mean(splits: Sequence[Mapping[str, Any]]) -> list[float]:
    try:
        means = [statistics.mean(float(split[name] or 0) for split in splits) for name in PARTS]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"a record's split gives seconds of {', '.join(PARTS)}: {error!r}") from error
    if not all(0 <= each < float("inf") for each in means):
        raise ValueError(f"a record's split gives seconds of each part, not {means}")
    return means

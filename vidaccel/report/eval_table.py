"""The table of one model and setting for people: dense first, arrows over what has a better way, the front marked."""

from __future__ import annotations

from dataclasses import dataclass

from vidaccel.eval.settings import DENSE
from vidaccel.eval.table import HEADINGS, SHOWN_METRICS, notes, scored, shown
from vidaccel.report.eval_folder import Group
from vidaccel.report.measures import arrow, metrics_of
from vidaccel.report.points import front_of, points

TITLE = ("model", "setting", "label")
"""Columns that stand elsewhere: over the table, and at the beginning of each line."""
FIRST = ("requested_density", "speedup", *SHOWN_METRICS)
"""Columns that a narrow screen should show without being moved."""


@dataclass(frozen=True)
class Line:
    """One line of a table.

    Args:
        number: of the row, from 1, as in the plots; None of the reference where dense is no row.
        label: the row's method.
        baseline: the kind of baseline that it is, if any.
        front: whether it is on the front of the first plot.
        texts: one for each column.
    """

    number: int | None
    label: str
    baseline: str | None
    front: bool
    texts: list[str]


def columns(group: Group) -> list[tuple[str, str]]:
    """Name and arrow of each column after the method."""
    return [(HEADINGS.get(name, name), arrow(group, name)) for name in _names(group)]


def lines(group: Group) -> list[Line]:
    """The lines, dense first also where it is no row of the eval."""
    names, metrics = _names(group), metrics_of(group)
    best = {point.number for point in front_of(points(group, metrics[0]))} if metrics else set()
    made = [Line(number, row.label, row.baseline, number in best, [_text(row.texts().get(name, "-")) for name in names])
            for number, row in enumerate(group.rows, 1)]  # fmt: skip
    if any(row.label == DENSE for row in group.rows):
        return made
    known = {"video_density": "1", "all_calls": "1", "speedup": "1.00x", "psnr": "∞"}
    return [Line(None, "dense, the reference", None, 0 in best, [known.get(name, "–") for name in names]), *made]


def remarks(group: Group) -> list[str]:
    """What a reader of the table must know."""
    counts = sorted({row.cells for row in group.rows})
    metrics = metrics_of(group)
    said = [f"★ is on the front of {metrics[0].heading} against speed: no other row is at least as good and as fast"
            ] * bool(metrics)  # fmt: skip
    if counts[0] < counts[-1]:
        said.append(f"rows are means over {counts[0]} to {counts[-1]} clips: not all of them over the same ones")
    return said + notes(group.rows)


def _names(group: Group) -> list[str]:
    texts = [row.texts() for row in group.rows]
    names = [name for name in (*shown(group.rows), *scored(group.rows))
             if name not in TITLE and any(each.get(name, "-") != "-" for each in texts)]  # fmt: skip
    return sorted(names, key=lambda name: FIRST.index(name) if name in FIRST else len(FIRST))


def _text(text: str) -> str:
    return {"inf": "∞", "-": "–"}.get(text, text)

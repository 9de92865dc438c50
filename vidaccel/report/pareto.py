"""Quality against speed: every row of a table as a point, the front of the best, and dense with fewer steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from vidaccel.eval.settings import DENSE
from vidaccel.report.measures import Metric
from vidaccel.report.points import FEWER, Interval, Point, front_of
from vidaccel.report.svg import COLOURS, inline_svg, small_png, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKS: dict[str, tuple[str, str, float]] = {
    DENSE: ("*", "ink", 13), "sparse": ("o", "sparse", 7.5), "cached": ("s", "cached", 7),
    "sparse and cached": ("D", "both", 6.5), FEWER: ("v", "quiet", 6.5),
    "the cache's own steps": ("P", "other", 7), "random blocks": ("X", "other", 7),
}  # fmt: skip
"""Shape, colour and size of each kind of point; any other kind is drawn as `OTHER`."""
OTHER = ("h", "other", 7.0)
NUMBERED = 14
"""Points up to which all have their number beside them; of more, only those of the front."""
WIDE = 8.0
"""Ratio of the largest to the least error from which the axis is logarithmic."""


def pareto_svg(found: Sequence[Point], metric: Metric, name: str, title: str) -> Markup:
    """The plot for a page; `name` is a word that no other figure of the page has."""
    label = (f"{metric.heading} against speed for {title}: {len(found)} points, {len(front_of(found))} of them on "
             "the front. The arrow keys go from point to point.")  # fmt: skip
    return inline_svg(_drawn(found, metric), name, label, {_gid(at): point.text for at, point in enumerate(found)})


def pareto_png(found: Sequence[Point], metric: Metric, title: str) -> bytes:
    """The plot for a document, under 60 kB."""
    return small_png(_drawn(found, metric, title))


def _drawn(found: Sequence[Point], metric: Metric, title: str = "") -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with style():
        figure = Figure(figsize=(5.4, 4.3), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot(xlabel="speed over dense ↑", ylabel=metric.title)
        if title:
            axes.set_title(title, fontsize=9)
        scale = _Scale(axes, found, metric)
        _lines(axes, found, scale)
        _bars(axes, found, scale)
        for at, point in enumerate(found):
            first = all(point.kind != before.kind for before in found[:at])
            _mark(axes, point, scale.at(point), _gid(at), point.kind if first else None)
            if point.number and (point.front or len(found) <= NUMBERED):
                axes.annotate(str(point.number), (point.speed, scale.at(point)), xytext=(5, 5), fontsize=8.5,
                              textcoords="offset points", zorder=4)  # fmt: skip
        figure.legend(loc="outside lower center", ncols=2, fontsize=9, handletextpad=0.4, columnspacing=1.2)
    return figure


class _Scale:
    """The vertical axis, better always up: room for the values, and above them a line for identical clips."""

    def __init__(self, axes: Axes, found: Sequence[Point], metric: Metric) -> None:
        ends = [each for point in found if point.quality is not None
                for each in (point.quality, *(point.quality_interval or ()))]  # fmt: skip
        self.down = metric.better == "lower"
        self.log = self.down and bool(ends) and min(ends) > 0 and max(ends) > WIDE * min(ends)
        inner = [self._inner(each) for each in ends] or [0.0, 1.0]
        low, high = min(inner), max(inner)
        room = (high - low) or abs(high) or 1.0
        exact = any(point.quality is None for point in found)
        bottom, top = low - 0.07 * room, high + (0.22 if exact else 0.1) * room
        self.identical = self._outer(high + 0.15 * room)
        axes.set_yscale("log" if self.log else "linear")
        axes.set_ylim(self._outer(bottom), self._outer(top))
        if exact:
            axes.axhline(self.identical, color=COLOURS["line"], linewidth=1)
            axes.annotate("identical", (1, self.identical), xycoords=("axes fraction", "data"), xytext=(0, 3),
                          textcoords="offset points", ha="right", fontsize=8.5, color=COLOURS["quiet"])
        _ticks(axes, self.log, drawn=bool(ends), until=self._outer(high + 0.08 * room))

    def at(self, point: Point) -> float:
        return self.identical if point.quality is None else point.quality

    def _inner(self, value: float) -> float:
        """Where better is up, evenly."""
        value = math.log10(value) if self.log else value
        return -value if self.down else value

    def _outer(self, inner: float) -> float:
        value = -inner if self.down else inner
        return float(10**value) if self.log else value


def _ticks(axes: Axes, log: bool, drawn: bool, until: float) -> None:
    """Plain numbers, and none where the axis has left its values."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    if log:
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_formatter(NullFormatter())
    low, high = sorted((axes.get_ylim()[0], until))

    def text(value: float, _: Any) -> str:
        return f"{value:g}" if drawn and low <= value <= high else ""

    axes.yaxis.set_major_formatter(FuncFormatter(text))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
    axes.grid(color=COLOURS["line"], linewidth=0.6, alpha=0.6)
    axes.set_axisbelow(True)


def _lines(axes: Axes, found: Sequence[Point], scale: _Scale) -> None:
    best = front_of(found)
    axes.plot([point.speed for point in best], [scale.at(point) for point in best], color=COLOURS["ink"],
              linewidth=1.2, drawstyle="steps-pre", label="the front")  # fmt: skip
    fewer = sorted((point for point in found if point.kind in (DENSE, FEWER)), key=lambda point: point.speed)
    if len(fewer) > 1:
        axes.plot([point.speed for point in fewer], [scale.at(point) for point in fewer], color=COLOURS["quiet"],
                  linewidth=1, linestyle=(0, (4, 3)))  # fmt: skip


def _bars(axes: Axes, found: Sequence[Point], scale: _Scale) -> None:
    """Intervals, of each kind at once."""
    for kind in dict.fromkeys(point.kind for point in found):
        _, colour, _ = MARKS.get(kind, OTHER)
        own = [point for point in found if point.kind == kind]
        heights = [scale.at(point) for point in own]
        up = [_bar(point.quality_interval, height) for point, height in zip(own, heights, strict=True)]
        across = [_bar(point.speed_interval, point.speed) for point in own]
        axes.errorbar([point.speed for point in own], heights, list(zip(*up, strict=True)),
                      list(zip(*across, strict=True)), color=COLOURS[colour], elinewidth=0.9, fmt="none",
                      alpha=0.55 if len(found) <= NUMBERED else 0.25)  # fmt: skip


def _mark(axes: Axes, point: Point, height: float, gid: str, label: str | None) -> None:
    shape, colour, size = MARKS.get(point.kind, OTHER)
    axes.plot([point.speed], [height], shape, color=COLOURS[colour], markersize=size, gid=gid, label=label,
              markeredgecolor=COLOURS["paper"], markeredgewidth=0.8, zorder=3)  # fmt: skip


def _bar(interval: Interval | None, middle: float) -> tuple[float, float]:
    """How far an interval reaches down and up; none where there is none."""
    low, high = interval or (middle, middle)
    # The mean of draws can miss the mean by what rounding leaves.
    return max(0.0, middle - low), max(0.0, high - middle)


def _gid(at: int) -> str:
    return f"point-{at}"

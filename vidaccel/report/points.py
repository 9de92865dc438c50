"""The rows of an eval as points of a plot of quality against speed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from vidaccel.eval.caches import NONE
from vidaccel.eval.paired import paired_bootstrap
from vidaccel.eval.settings import DENSE, FEWER_STEPS, OWN_TIMESTEPS, RANDOM, SAME_COMPUTE
from vidaccel.eval.table import Row
from vidaccel.report.eval_folder import Cell, Group
from vidaccel.report.measures import Metric

FEWER = "dense with fewer steps"
KINDS = {FEWER_STEPS: FEWER, SAME_COMPUTE: FEWER, OWN_TIMESTEPS: "the cache's own steps", RANDOM: "random blocks"}
Interval = tuple[float, float]


@dataclass(frozen=True)
class Point:
    """One row of a group's table.

    Args:
        number: of the row, from 1; 0 where dense is no row of the eval but only what it compares with.
        name: the row's method, and its density where one was asked for.
        kind: what it is drawn as.
        speed: mean speed-up over dense.
        quality: mean of the metric; None where every clip is identical to its reference.
        speed_interval, quality_interval: 95 % of the mean over prompts and seeds; None with a single cell.
        front: whether no other row is at least as good and as fast, and better in one of the two.
        text: all of it for people, a line each.
    """

    number: int
    name: str
    kind: str
    speed: float
    quality: float | None
    speed_interval: Interval | None = None
    quality_interval: Interval | None = None
    front: bool = False
    text: str = ""


def points(group: Group, metric: Metric) -> list[Point]:
    """The points of a group, dense first, others by speed; rows without time or metric have none."""
    found = [_point(number, row, cells, metric)
             for number, (row, cells) in enumerate(zip(group.rows, group.cells, strict=True), 1)]  # fmt: skip
    made = [point for point in found if point is not None]
    if not metric.judged and not any(row.label == DENSE for row in group.rows):
        made.append(Point(0, "dense, the reference", DENSE, 1.0, None))
    made.sort(key=lambda point: (point.kind != DENSE, point.speed))
    return [_told(point, _on_front(point, made, metric), metric) for point in made]


def front_of(found: Sequence[Point]) -> list[Point]:
    """The points that no other one beats, by speed."""
    return sorted((point for point in found if point.front), key=lambda point: point.speed)


def _point(number: int, row: Row, cells: Sequence[Cell], metric: Metric) -> Point | None:
    identical = row.identical == row.cells and not metric.judged
    quality = None if identical else row.metrics.get(metric.name)
    if row.speedup is None or (quality is None and not identical):
        return None
    density = "" if row.requested_density is None else f", density {row.requested_density:g}"
    spread = None if identical else _interval([cell.record["metrics"].get(metric.name) for cell in cells])
    if row.label == DENSE:
        # What all speeds are over. What it took when it was run again is how far times can be trusted.
        again = f"run again, {row.speedup:.2f}x; {_about(row)}"
        return Point(number, DENSE, DENSE, 1.0, quality, None, spread, text=again)
    speeds = _interval([cell.record["timing"]["speedup"] for cell in cells])
    return Point(number, row.label + density, _kind(row), row.speedup, quality, speeds, spread, text=_about(row))


def _kind(row: Row) -> str:
    if row.label == DENSE:
        return DENSE
    if row.baseline is not None:
        return KINDS.get(row.baseline, row.baseline)
    sparse, cached = row.video_density is not None, row.cache != NONE
    return "sparse and cached" if sparse and cached else "cached" if cached else "sparse"


def _interval(values: Sequence[float | None]) -> Interval | None:
    found = [value for value in values if value is not None]
    if len(found) < 2:
        return None
    drawn = paired_bootstrap(found, [0.0] * len(found))
    return drawn.low, drawn.high


def _about(row: Row) -> str:
    """What a row is, apart from quality and speed."""
    texts = row.texts()
    parts = [f"realised density {texts['video_density']}"] * (row.video_density is not None)
    parts += [f"{texts['computed_share']} of the blocks' calls computed"] * (row.computed_share is not None)
    return ", ".join([*parts, f"{row.steps:g} steps", f"{row.cells} clip{'s' * (row.cells > 1)}"])


def _on_front(point: Point, every: Sequence[Point], metric: Metric) -> bool:
    def goods(each: Point) -> tuple[float, float]:
        sign = 1 if metric.better == "higher" else -1
        return each.speed, math.inf if each.quality is None else sign * each.quality

    speed, quality = goods(point)
    return not any(a >= speed and b >= quality and (a, b) != (speed, quality) for a, b in map(goods, every))


def _told(point: Point, front: bool, metric: Metric) -> Point:
    """The point with its place and all of it in words."""
    value = "identical" if point.quality is None else f"{_digits(point.quality)}{_range(point.quality_interval)}"
    lines = [f"#{point.number} {point.name}" if point.number else point.name, f"{metric.heading} {value}",
             f"speed {point.speed:.2f}x{_range(point.speed_interval)}", point.text, "on the front" if front else ""]
    return Point(point.number, point.name, point.kind, point.speed, point.quality, point.speed_interval,
                 point.quality_interval, front, "\n".join(filter(None, lines)))  # fmt: skip


def _range(interval: Interval | None) -> str:
    return "" if interval is None else f" ({_digits(interval[0])} to {_digits(interval[1])})"


def _digits(value: float) -> str:
    return f"{value:#.3g}" if abs(value) < 10 else f"{value:.1f}"

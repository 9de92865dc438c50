"""Boxes around each query in any axis order, as rectangles: what windows in space and in time have in common."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from vidaccel.layout import TokenLayout
from vidaccel.patterns import cover

Sizes = tuple[int, int, int]


def box(layout: TokenLayout, axes: str, halves: Sizes, block: int) -> Iterator[Tensor]:
    """The keys that are at most `halves` tokens away along each axis, as `Pattern.covering` gives them.

    Args:
        axes: an axis order such as "HWF".
        halves: half-widths in frames, rows and columns; the box is cut at the clip's ends.
    """
    grid = {"F": layout.frames, "H": layout.height, "W": layout.width}
    half = dict(zip("FHW", halves, strict=True))
    sizes, reach = [grid[axis] for axis in axes], [half[axis] for axis in axes]
    if reach[2] >= sizes[2] - 1:
        # Whole lines side by side are one range: a plane of lines becomes a line of larger steps.
        return _planes(layout, sizes, reach, block)
    return _lines(layout, sizes, reach, block)


def _planes(layout: TokenLayout, sizes: list[int], reach: list[int], block: int) -> Iterator[Tensor]:
    """Boxes that hold the fastest axis whole: a range for each step along the slowest."""
    planes, lines, line = sizes
    start, end = cover.runs(layout, block, lines * line)
    plane = start // (lines * line)
    low = (start % (lines * line) // line - reach[1]).clamp(min=0)
    high = ((end - 1) % (lines * line) // line + reach[1] + 1).clamp(max=lines)
    other = torch.arange(planes)
    run, other = ((plane[:, None] - other).abs() <= reach[0]).nonzero(as_tuple=True)
    first = other * lines
    yield torch.stack([start[run], end[run], (first + low[run]) * line, (first + high[run]) * line], dim=1)


def _lines(layout: TokenLayout, sizes: list[int], reach: list[int], block: int) -> Iterator[Tensor]:
    """Boxes that hold part of each line: a range for each line, in one piece for each step along the slowest axis."""
    planes, lines, line = sizes
    start, end = cover.runs(layout, block, line)
    number = start // line
    low = (start % line - reach[2]).clamp(min=0)
    high = (end - number * line + reach[2]).clamp(max=line)
    other = torch.arange(lines)
    near = ((number % lines)[:, None] - other).abs() <= reach[1]
    for away in range(-min(reach[0], planes - 1), min(reach[0], planes - 1) + 1):
        plane = number // lines + away
        run, other = (near & ((plane >= 0) & (plane < planes))[:, None]).nonzero(as_tuple=True)
        first = (plane[run] * lines + other) * line
        yield torch.stack([start[run], end[run], first + low[run], first + high[run]], dim=1)

"""A space-filling curve over a rectangle of any size: tokens close on the curve are close in the frame."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

Vector = tuple[int, int]
KEPT = 64


@functools.lru_cache(KEPT)
def curve(height: int, width: int) -> Tensor:
    """The cell at each step of a Hilbert curve generalised to any rectangle: int64 ``[height * width]``, row-major.

    It starts in the first cell, and every step goes to one of the four neighbours.
    """
    along, across = (0, width), (height, 0)
    # On a chessboard of odd by even cells the corners along the odd side have one colour, so that no path of an even
    # number of cells joins them: then the curve runs along the even side, else along the longer.
    if (height % 2, width % 2) == (0, 1) or (height > width and height % 2 == width % 2):
        along, across = across, along
    cells = torch.tensor(_walk((0, 0), along, across))
    return cells[:, 0] * width + cells[:, 1]


def _walk(corner: Vector, along: Vector, across: Vector) -> list[Vector]:
    """The cells of the rectangle that two axis vectors span, from its corner to the far end of `along`."""
    length, breadth = _size(along), _size(across)
    step, side = _unit(along), _unit(across)
    if breadth == 1:
        return [_plus(corner, step, at) for at in range(length)]
    if length == 1:
        return [_plus(corner, side, at) for at in range(breadth)]
    half = _half(length)
    first, rest = _times(step, half), _times(step, length - half)
    if 2 * length > 3 * breadth:
        # Long: two rectangles one after the other.
        return _walk(corner, first, across) + _walk(_plus(corner, step, half), rest, across)
    # Three: up beside the start, along the far side, down beside the end.
    rise = _half(breadth)
    up, over = _times(side, rise), _times(side, breadth - rise)
    down = _plus(_plus(corner, step, length - 1), side, rise - 1)
    return (
        _walk(corner, up, first)
        + _walk(_plus(corner, side, rise), along, over)
        + _walk(down, _times(side, -rise), _times(step, half - length))
    )


def _half(size: int) -> int:
    """Half of a side, even where it can be: a walk over an even side ends next to its start's row."""
    half = size // 2
    return half + half % 2 if size > 2 else half


def _size(vector: Vector) -> int:
    return abs(vector[0] + vector[1])


def _unit(vector: Vector) -> Vector:
    return (vector[0] > 0) - (vector[0] < 0), (vector[1] > 0) - (vector[1] < 0)


def _times(vector: Vector, factor: int) -> Vector:
    return vector[0] * factor, vector[1] * factor


def _plus(corner: Vector, step: Vector, times: int) -> Vector:
    return corner[0] + step[0] * times, corner[1] + step[1] * times

"""Temporal flicker: what changes from frame to frame in one clip and not in the other."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidaccel.eval.metrics.score import Frame, Score, pairs

ONE_FRAME = "the clips have one frame: nothing changes in time"


def flicker(reference: NDArray[Any], other: NDArray[Any]) -> Score:
    """Mean over time, pixels and channels of ``|(b[t + 1] - b[t]) - (a[t + 1] - a[t])|``, in units of [0, 1].

    A constant difference between the clips costs nothing; a change in time that the reference does not have, or a
    movement at another place or speed, does.
    """
    if len(reference) < 2:
        return Score.missing(ONE_FRAME)
    return Score(float(np.mean([np.abs(b - a).mean() for a, b in _changes(reference, other)])))


def flicker_ratio(reference: NDArray[Any], other: NDArray[Any]) -> Score:
    """Mean ``|b[t + 1] - b[t]|`` over mean ``|a[t + 1] - a[t]|``: above 1 the other clip changes more."""
    if len(reference) < 2:
        return Score.missing(ONE_FRAME)
    changes = [(np.abs(a).mean(), np.abs(b).mean()) for a, b in _changes(reference, other)]
    of_reference, of_other = np.mean(changes, axis=0)
    if of_reference == 0:
        return Score.missing("the reference stands still: there is no change to compare with")
    return Score(float(of_other / of_reference))


def _changes(reference: NDArray[Any], other: NDArray[Any]) -> Iterator[tuple[Frame, Frame]]:
    """Frame differences of both clips, one pair after the other."""
    return ((c - a, d - b) for (a, b), (c, d) in pairwise(pairs(reference, other)))

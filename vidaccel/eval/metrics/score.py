"""What a metric returns, and the frames that it is given."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Frame = NDArray[np.float64]
"""``[height, width, 3]`` in [0, 1]."""


@dataclass(frozen=True)
class Score:
    """One metric of one pair of clips.

    Args:
        value: of the clip; None where there is none.
        reason: why there is no value.
        frames: a value per frame, for metrics that have one.
    """

    value: float | None
    reason: str | None = None
    frames: list[float | None] | None = None

    @classmethod
    def missing(cls, reason: str) -> Score:
        """No value, and why."""
        return cls(None, reason)

    @classmethod
    def mean(cls, frames: list[float]) -> Score:
        """The mean of the frames' values."""
        return cls(float(np.mean(frames)), None, list(frames))


def unit(frame: NDArray[Any]) -> Frame:
    """A frame as float64 in [0, 1]."""
    scale = 255.0 if frame.dtype == np.uint8 else 1.0
    return frame.astype(np.float64) / scale


def pairs(reference: NDArray[Any], other: NDArray[Any]) -> Iterator[tuple[Frame, Frame]]:
    """Frames at the same time, one pair after the other, so that no whole clip is held as float64."""
    return ((unit(a), unit(b)) for a, b in zip(reference, other, strict=True))


def too_small(frames: NDArray[Any], least: int, what: str) -> str | None:
    """Why frames of this size cannot be measured with `what`, or None if they can."""
    height, width = frames.shape[1:3]
    if min(height, width) >= least:
        return None
    return f"frames of {width}x{height} are smaller than {what} of {least}x{least}"


def check_frames(reference: NDArray[Any], other: NDArray[Any]) -> None:
    """Refuse what are not two clips of one shape.

    Raises:
        ValueError: shapes that differ, are not those of clips, or floats outside [0, 1].
    """
    if reference.shape != other.shape:
        raise ValueError(f"clips to compare have one shape, not {list(reference.shape)} and {list(other.shape)}")
    for frames in (reference, other):
        _check(frames)


def _check(frames: NDArray[Any]) -> None:
    if frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
        raise ValueError(f"a clip is [frames, height, width, 3], got {list(frames.shape)}")
    if frames.dtype == np.uint8:
        return
    if not np.issubdtype(frames.dtype, np.floating):
        raise ValueError(f"a clip is uint8 or floating point, got {frames.dtype}")
    low, high = float(frames.min()), float(frames.max())
    if not (low >= 0 and high <= 1):
        raise ValueError(f"a floating-point clip is in [0, 1], got values from {low:g} to {high:g}")

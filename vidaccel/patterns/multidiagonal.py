"""Diagonals that come back in every frame: the same place, and nearby ones, now, before and later."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vidaccel.layout import TokenLayout
from vidaccel.patterns import cover
from vidaccel.patterns.base import Pattern, Runs, check_share


@dataclass(frozen=True)
class MultiDiagonal(Runs):
    """In each frame within reach, keys at most `width` of a frame from the query's own place, counted along the rows.

    What `Band` keeps in the order "HWF", executed in the natural order; the reach can be shorter than the clip.

    Args:
        width: half-width, as a fraction of a frame's tokens, in [0, 1].
        reach: farthest frame, as a fraction of the clip's frames, in [0, 1].

    Raises:
        ValueError: a value out of range.
    """

    name: ClassVar[str] = "multi_diagonal"
    paper: ClassVar[str] = "Sparse-vDiT, arXiv 2506.03065"

    width: float
    reach: float = 1.0

    def __post_init__(self) -> None:
        check_share("width", self.width)
        check_share("reach", self.reach)

    @classmethod
    def scaled(cls, share: float) -> Pattern:
        return cls(share)

    def covering(self, layout: TokenLayout, block: int) -> Iterator[Tensor]:
        size = layout.frame_tokens
        half, reach = int(self.width * size), int(self.reach * layout.frames)
        start, end = cover.runs(layout, block, size)
        frame, other = start // size, torch.arange(layout.frames)
        low = (start % size - half).clamp(min=0)
        high = (end - frame * size + half).clamp(max=size)
        near = (frame[:, None] - other).abs() <= reach
        run, other = near.nonzero(as_tuple=True)
        yield torch.stack([start[run], end[run], other * size + low[run], other * size + high[run]], dim=1)

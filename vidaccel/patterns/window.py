"""Windows in space: places near the query's, in its own frame and in those next to it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from vidaccel.layout import TokenLayout
from vidaccel.patterns.base import Pattern, Runs, check_share
from vidaccel.patterns.boxes import box
from vidaccel.patterns.orders import NATURAL


@dataclass(frozen=True)
class Window(Runs):
    """Keys at most so many rows, columns and frames away; the window is cut at the edges of the clip.

    Args:
        rows, columns: half-widths, as fractions of a frame's rows and columns, in [0, 1].
        frames: half-width in time, as a fraction of the clip's frames; 0 is the query's own frame alone.

    Raises:
        ValueError: a value out of range.
    """

    name: ClassVar[str] = "window"
    paper: ClassVar[str] = "Sparse VideoGen, arXiv 2502.01776; GNA without a stride, arXiv 2504.16922"

    rows: float
    columns: float
    frames: float = 0.0

    def __post_init__(self) -> None:
        for name in ("rows", "columns", "frames"):
            check_share(name, getattr(self, name))

    @classmethod
    def scaled(cls, share: float) -> Pattern:
        """Wide in space before it is long in time: its root of the frame's sides."""
        side = math.sqrt(share)
        return cls(side, side, share)

    def covering(self, layout: TokenLayout, block: int) -> Iterator[Tensor]:
        halves = (int(self.frames * layout.frames), int(self.rows * layout.height), int(self.columns * layout.width))
        return box(layout, NATURAL, halves, block)

"""The same place in all frames: what heads that follow time attend to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from vidaccel.layout import TokenLayout
from vidaccel.patterns.base import Pattern, Runs, check_share
from vidaccel.patterns.boxes import box

FRAMES_FASTEST = "HWF"


@dataclass(frozen=True)
class Temporal(Runs):
    """Keys of all frames at the query's own place and at most so many rows and columns from it.

    Executed in the order "HWF", in which the frames of one place are side by side.

    Args:
        rows, columns: half-widths, as fractions of a frame's rows and columns, in [0, 1].

    Raises:
        ValueError: a value out of range.
    """

    name: ClassVar[str] = "temporal"
    paper: ClassVar[str] = "Sparse VideoGen, arXiv 2502.01776"

    rows: float = 0.0
    columns: float = 0.0

    def __post_init__(self) -> None:
        check_share("rows", self.rows)
        check_share("columns", self.columns)

    @property
    def order(self) -> str:
        return FRAMES_FASTEST

    @classmethod
    def scaled(cls, share: float) -> Pattern:
        return cls(share, share)

    def covering(self, layout: TokenLayout, block: int) -> Iterator[Tensor]:
        halves = (layout.frames, int(self.rows * layout.height), int(self.columns * layout.width))
        return box(layout, FRAMES_FASTEST, halves, block)

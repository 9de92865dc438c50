"""A static mask in coarse cells, in any token order: what PAROAttention stores for each head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vidaccel.layout import TokenLayout
from vidaccel.patterns import bits, cover, orders
from vidaccel.patterns.base import Pattern, Rule
from vidaccel.patterns.orders import NATURAL

MOST = 128
SCALED = 64


@dataclass(frozen=True)
class Cells(Rule):
    """Blocks whose cell is set in a square map: positions of the order are cut in `size` equal segments.

    A block is kept where the bit of the segments in which the middles of its queries and of its keys lie is set, so
    the map serves any grid and any block; cells much smaller than a block may fall between middles.

    Args:
        axes: the order; PAROAttention chooses among the six axis orders.
        size: segments, 1 to 128.
        cells: base64 of ``size * size`` bits, row by row, filled up with zeros to whole bytes; see `Cells.of`.

    Raises:
        ValueError: a value out of range, no such order, or bits that do not fit.
    """

    name: ClassVar[str] = "cells"
    paper: ClassVar[str] = "PAROAttention, arXiv 2506.16054"

    axes: str
    size: int
    cells: str

    def __post_init__(self) -> None:
        orders.check(self.axes)
        bits.check_side("size", self.size, MOST)
        bits.from_base64(self.cells, self.size, self.size)

    @property
    def order(self) -> str:
        return self.axes

    @classmethod
    def of(cls, kept: Tensor, axes: str = NATURAL) -> Cells:
        """The mask of a bool map ``[size, size]`` of query by key segments.

        Raises:
            ValueError: a map that is not square, or too large.
        """
        if kept.ndim != 2 or kept.shape[0] != kept.shape[1]:
            raise ValueError(f"a map of cells is [size, size], got {list(kept.shape)}")
        return cls(axes, len(kept), bits.to_base64(kept))

    @classmethod
    def scaled(cls, share: float) -> Pattern:
        """A band of cells along the diagonal."""
        segment = torch.arange(SCALED)
        return cls.of((segment[:, None] - segment).abs() <= share * SCALED)

    def blocks(self, layout: TokenLayout, block: int) -> Tensor:
        placed = orders.placed(layout, self.axes)
        segment = self._segments(placed, block)
        kept = bits.from_base64(self.cells, self.size, self.size)[segment][:, segment]
        return cover.with_text(kept.fill_diagonal_(True), placed, block)

    def _segments(self, layout: TokenLayout, block: int) -> Tensor:
        """The segment in which the middle of each tile's video lies: int64 ``[tiles]``; any for tiles of text."""
        edge = torch.arange(-(-layout.tokens // block)) * block - layout.video_start
        tokens = layout.video_tokens
        twice = edge.clamp(0, tokens) + (edge + block).clamp(0, tokens)
        return (twice * self.size // (2 * tokens)).clamp(max=self.size - 1)

"""Windows around each query in time, height and width: neighbourhood attention, with a stride, and sliding tiles."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vidaccel.layout import TokenLayout
from vidaccel.patterns import orders
from vidaccel.patterns.base import Pattern, check_share

TOKEN = (1, 1, 1)
"""A tile of one token: each query has a window of its own."""
Sizes = tuple[int, int, int]
"""Frames, height and width."""


@dataclass(frozen=True)
class Neighborhood(Pattern):
    """A window of the grid around each query, moved inside the clip where it would leave it.

    So every query keeps equally many keys, at the edges too. With a `tile` the queries of a tile share one window of
    whole tiles, which is the stride of generalised neighbourhood attention and, as windows are then multiples of the
    tile, sliding tile attention; it is executed in an order in which a tile's tokens are side by side. Where the grid
    is no multiple of the tile, the last tiles are smaller.

    Args:
        frames, height, width: the window as fractions of the clip's frames and of a frame's rows and columns, in
            [0, 1], rounded to whole tiles and to one at least; 1 is the whole axis.
        tile: queries that share a window, in tokens.

    Raises:
        ValueError: a value out of range.
    """

    name: ClassVar[str] = "neighborhood"
    paper: ClassVar[str] = "GNA, arXiv 2504.16922; Sliding Tile Attention, arXiv 2502.04507"

    frames: float
    height: float
    width: float
    tile: Sizes = TOKEN

    def __post_init__(self) -> None:
        for name in ("frames", "height", "width"):
            check_share(name, getattr(self, name))
        check_tile(self.tile)

    @property
    def order(self) -> str:
        return orders.NATURAL if self.tile == TOKEN else "tile:" + "x".join(map(str, self.tile))

    @classmethod
    def scaled(cls, share: float) -> Pattern:
        return cls(share, share, share)

    def tiles(self, layout: TokenLayout) -> Sizes:
        """Tiles of a grid along each axis, smaller ones at the far ends included."""
        t, h, w = ((_axes(layout)[axis] + self.tile[axis] - 1) // self.tile[axis] for axis in range(3))
        return t, h, w

    def window(self, layout: TokenLayout) -> Sizes:
        """The window on a grid, in tiles: what every query keeps."""
        shares = (self.frames, self.height, self.width)
        # Half rounds up: a window of k of n tiles given as the fraction k / n comes back as k.
        t, h, w = (max(1, int(share * n + 0.5)) for share, n in zip(shares, self.tiles(layout), strict=True))
        return t, h, w

    def rectangles(self, layout: TokenLayout) -> Iterator[Tensor]:
        frames, height, _ = self.tiles(layout)
        starts = self._starts(layout)[2]
        begins = torch.cat([torch.ones(1, dtype=torch.bool), starts.diff() != 0])
        yield from self._pieces(layout, begins.repeat(frames * height), self._loops(layout, 1))

    def covering(self, layout: TokenLayout, block: int) -> Iterator[Tensor]:
        if self.tile != TOKEN:
            return self.rectangles(layout)
        # Windows of neighbours in a row overlap: what those in one block keep together is one rectangle. Rows and
        # frames with less than a block between them make one, too, as no block lies in the gap.
        token = torch.arange(layout.video_tokens)
        begins = (token % layout.width == 0) | ((token + layout.video_start) % block == 0)
        return self._pieces(layout, begins, self._loops(layout, block))

    def _pieces(self, layout: TokenLayout, begins: Tensor, loops: Sizes) -> Iterator[Tensor]:
        """Rectangles of runs of tiles, each within one row of tiles: bool ``[tiles]`` says where a run begins.

        One tensor for each of the window's frames and rows that `loops` takes one by one, see `_loops`: none is larger
        than the number of runs.
        """
        (_, height, width), window, edges = self.tiles(layout), self.window(layout), self._edges(layout)
        first = begins.nonzero().flatten()
        last = torch.cat([first[1:], torch.tensor([len(begins)])]) - 1
        in_frames, in_height, in_width = self._starts(layout)
        top = in_frames[first // (height * width)] * height + in_height[first // width % height]
        left, right = in_width[first % width], in_width[last % width] + window[2]
        frames, rows, together = loops
        for frame, row in itertools.product(range(frames), range(rows)):
            start = (top + frame * height + row) * width
            end = start + (together - 1) * width + right
            yield torch.stack([edges[first], edges[last + 1], edges[start + left], edges[end]], dim=1)

    def _loops(self, layout: TokenLayout, least: int) -> Sizes:
        """Frames and rows of the window that are taken one by one, and rows that are taken as one range of tiles.

        Those with a gap of fewer than `least` tiles are taken as one: of 1, those of a whole axis.
        """
        (frames, rows, columns), (_, height, width) = self.window(layout), self.tiles(layout)
        if width - columns >= least:
            return frames, rows, 1
        if (height - rows) * width + width - columns >= least:
            return frames, 1, rows
        return 1, 1, (frames - 1) * height + rows

    def _starts(self, layout: TokenLayout) -> list[Tensor]:
        """Along each axis the first tile of every tile's window, int64."""
        sizes = zip(self.tiles(layout), self.window(layout), strict=True)
        return [(torch.arange(n) - k // 2).clamp(0, n - k) for n, k in sizes]

    def _edges(self, layout: TokenLayout) -> Tensor:
        """The position at which each tile begins, and the end of the last: int64 ``[tiles + 1]``."""
        pairs = zip(_axes(layout), self.tile, strict=True)
        t, h, w = ((size - torch.arange(0, size, tile)).clamp(max=tile) for size, tile in pairs)
        tokens = (t[:, None, None] * h[:, None] * w).flatten()
        return torch.nn.functional.pad(tokens.cumsum(0), (1, 0))


def check_tile(tile: Sizes) -> None:
    """Refuse what is no size of a tile.

    Raises:
        ValueError: not three whole numbers of at least 1.
    """
    whole = isinstance(tile, tuple) and all(isinstance(n, int) and not isinstance(n, bool) and n >= 1 for n in tile)
    if not whole or len(tile) != 3:
        raise ValueError(f"tile={tile!r} is not three whole numbers of tokens (frames, height, width) of at least 1")


def _axes(layout: TokenLayout) -> Sizes:
    return layout.frames, layout.height, layout.width

"""Vertical stripes: keys that every query attends to, chosen on a coarse grid of the clip."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vidaccel.layout import TokenLayout
from vidaccel.patterns import bits
from vidaccel.patterns.bands import Band
from vidaccel.patterns.base import Pattern, Runs, check_share

MOST = 64
SCALED = 16


@dataclass(frozen=True)
class Stripes(Runs):
    """Keys in chosen cells of the clip, for every query, beside a local window.

    The clip's frames are cut in equal parts, and so are the rows of a frame; a row of tokens belongs to the cell that
    its middle lies in.

    Args:
        frames, rows: cells along each axis, 1 to 64.
        cells: which are kept: hexadecimal digits, a bit for each cell, the rows of the first part of the clip first,
            filled up with zeros to whole bytes; see `Stripes.of`.
        window: half-width of the local window, as a fraction of the video tokens, in [0, 1].

    Raises:
        ValueError: a value out of range, or bits that do not fit.
    """

    name: ClassVar[str] = "stripes"
    paper: ClassVar[str] = "Sparse-vDiT, arXiv 2506.03065"

    frames: int
    rows: int
    cells: str
    window: float = 0.0

    def __post_init__(self) -> None:
        bits.check_side("frames", self.frames, MOST)
        bits.check_side("rows", self.rows, MOST)
        bits.from_hex(self.cells, self.frames, self.rows)
        check_share("window", self.window)

    @classmethod
    def of(cls, kept: Tensor, window: float = 0.0) -> Stripes:
        """The stripes whose cells are set in a bool map ``[frames, rows]``."""
        frames, rows = kept.shape
        return cls(frames, rows, bits.to_hex(kept), window)

    @classmethod
    def scaled(cls, share: float) -> Pattern:
        """Cells spread evenly over the clip: each of 16 x 16 has its turn."""
        number = torch.arange(SCALED * SCALED)
        # An odd step of about the golden ratio visits all, each far from those before it.
        turn = number * 159 % len(number)
        return cls.of((turn < share * len(number)).view(SCALED, SCALED))

    def covering(self, layout: TokenLayout, block: int) -> Iterator[Tensor]:
        tokens = layout.video_tokens
        row = self._rows(layout).flatten().nonzero().flatten() * layout.width
        whole = torch.zeros_like(row)
        yield torch.stack([whole, whole + tokens, row, row + layout.width], dim=1)
        yield from Band(self.window).covering(layout, block)

    def _rows(self, layout: TokenLayout) -> Tensor:
        """The rows of tokens that are kept: bool ``[frames, height]``."""
        kept = bits.from_hex(self.cells, self.frames, self.rows)
        frame = (2 * torch.arange(layout.frames) + 1) * self.frames // (2 * layout.frames)
        row = (2 * torch.arange(layout.height) + 1) * self.rows // (2 * layout.height)
        return kept[frame][:, row]

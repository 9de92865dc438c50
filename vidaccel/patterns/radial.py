"""Bands whose width decays with the distance in time (Radial Attention, arXiv 2506.19852).

Implemented from the paper and from the behaviour of its published code, whose block map it reproduces exactly: token
pairs of frames ``i`` and ``j`` are kept where ``|p_q - p_k| <= width(|i - j|)``, and a block is kept where more than
60 % of its non-empty key columns are filled by more than a third.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vidaccel.layout import TokenLayout
from vidaccel.patterns import cover
from vidaccel.patterns.base import Pattern, Rule, check_share

SPLIT = 128
NARROW = 0.25
"""Share of the way to dense on which the band to adjacent frames widens; then the decay slows down."""
SLOWEST = 20
"""Binary digits of the decay that keeps everything: more than those of any clip's frames."""


@dataclass(frozen=True)
class Shape:
    """The numbers behind one radial mask: what a density target is solved for."""

    decay: float
    window: float = 1.0
    """Width of the adjacent frames' band, as a fraction of the frame."""
    sink: float = 1.0
    """Width of the first frame's key band, as a fraction of the frame; 0 is no sink."""


@dataclass(frozen=True)
class Radial(Rule):
    """All of the query's own frame, and of others a band that halves in width with each doubling of the distance.

    The farther bands are a block wide at least, so that their share of the clip depends on the block.

    Args:
        decay: factor on the width at frame distance 2 and more, at least 0.
        window: half-width of the band to the adjacent frames, as a fraction of the frame, in [0, 1].
        sink: half-width of the band to the first frame, as a fraction of the frame, in [0, 1]; 1 keeps all its keys.
        split: tokens under which a frame pair's share of the band is too thin, so that only some distances are kept.

    Raises:
        ValueError: a value out of range.
    """

    name: ClassVar[str] = "radial"
    paper: ClassVar[str] = "Radial Attention, arXiv 2506.19852"

    decay: float
    window: float = 1.0
    sink: float = 0.0
    split: int = SPLIT

    def __post_init__(self) -> None:
        number = isinstance(self.decay, (int, float)) and not isinstance(self.decay, bool)
        if not number or not 0 <= self.decay < math.inf:
            raise ValueError(f"decay={self.decay!r} is not a number of at least 0")
        check_share("window", self.window)
        check_share("sink", self.sink)
        if not isinstance(self.split, int) or isinstance(self.split, bool) or self.split < 1:
            raise ValueError(f"split={self.split!r} is not a positive number of tokens")

    @classmethod
    def scaled(cls, share: float) -> Pattern:
        if share < NARROW:
            return cls(0.0, share / NARROW)
        return cls(2 ** (SLOWEST * (share - NARROW) / (1 - NARROW)) - 1)

    def blocks(self, layout: TokenLayout, block: int) -> Tensor:
        return radial_blocks(layout, Shape(self.decay, self.window, self.sink), block, self.split)


def frame_widths(layout: TokenLayout, shape: Shape, block: int, split: int = SPLIT) -> Tensor:
    """Half-width in tokens of the band between query frame and key frame: int64 ``[frames, frames]``, -1 where none.

    At distance ``d >= 2`` the band is ``decay * 2**(bits(frame_tokens) - bits(d))`` wide and never under one block;
    where ``share = 2**(bits(frame_tokens) - bits(d))`` falls under `split` tokens, only every ``split / share``-th
    distance is kept.
    """
    size = layout.frame_tokens
    power = 2 ** size.bit_length()
    widths = []
    for distance in range(layout.frames):
        share = power / 2 ** distance.bit_length()
        width = min(int(max(shape.decay * share, block)), size)
        on = share >= split or distance % int(split / share) == 0 or width >= size
        widths.append(width if on else -1)
    widths[0] = size
    if layout.frames > 1:
        widths[1] = max(int(shape.window * size), min(block, size))
    frame = torch.arange(layout.frames)
    table = torch.tensor(widths)[(frame[:, None] - frame[None]).abs()]
    if shape.sink > 0:
        table[:, 0] = torch.maximum(table[:, 0], torch.tensor(int(shape.sink * size)))
    return table


def radial_blocks(layout: TokenLayout, shape: Shape, block: int, split: int = SPLIT) -> Tensor:
    """The boolean block map ``[blocks, blocks]`` of the whole sequence; blocks with text are kept whole.

    The columns of a block that a band fills beyond a threshold form an interval, so that nothing of the size
    of a frame squared is ever built.
    """
    tokens, size = layout.tokens, layout.frame_tokens
    count = -(-tokens // block)
    kept = torch.zeros(count, count, dtype=torch.bool)
    widths = frame_widths(layout, shape, block, split)
    starts = layout.video_start + torch.arange(layout.frames) * size
    span = torch.arange(-(-size // block) + 1)
    # Blocks that a frame touches, [frames, blocks of a frame], and the part of the frame inside each: [low, high).
    touched = starts[:, None] // block + span
    low = (touched * block - starts[:, None]).clamp(0, size)
    high = ((touched + 1) * block - starts[:, None]).clamp(0, size)
    valid_rows = (tokens - touched * block).clamp(0, block)
    for frame in range(layout.frames):
        width = widths[frame][:, None, None]
        row = (low[frame][None, :, None], high[frame][None, :, None])
        column = (low[:, None], high[:, None])
        filled = _columns(row, column, width, torch.zeros(1, dtype=torch.int64))
        dense = _columns(row, column, width, (valid_rows[frame] // 3)[None, :, None])
        on = (filled > 0) & (dense * 10 > filled * 6)
        other, rows, columns = on.nonzero(as_tuple=True)
        kept[touched[frame][rows], touched[other, columns]] = True
    return cover.with_text(kept.fill_diagonal_(True), layout, block)


def _columns(row: tuple[Tensor, Tensor], column: tuple[Tensor, Tensor], width: Tensor, threshold: Tensor) -> Tensor:
    """How many key columns of a block hold more than `threshold` kept rows: ``[frames, row blocks, column blocks]``."""
    (low, high), (first, last) = row, column
    start = torch.maximum(first, low + threshold - width)
    stop = torch.minimum(last, high + width - threshold)
    possible = (high - low > threshold) & (2 * width + 1 > threshold) & (width >= 0)
    return torch.where(possible, (stop - start).clamp(min=0), 0)

"""Patterns made of patterns: what several keep together, and no fewer keys than a share of the clip."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vidaccel.layout import TokenLayout
from vidaccel.patterns import cover, orders
from vidaccel.patterns.base import Pattern, Rule, check_share

MOST_PARTS = 16
ROUNDING = 1e-6
"""Tokens by which a share of them may exceed a whole number for want of digits."""


@dataclass(frozen=True)
class Union(Rule):
    """Every block that any of its parts keeps.

    Args:
        parts: patterns of one token order, 1 to 16.

    Raises:
        ValueError: no part, too many, something that is no pattern, or parts of several orders.
    """

    name: ClassVar[str] = "union"

    parts: tuple[Pattern, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.parts, tuple) or not all(isinstance(part, Pattern) for part in self.parts):
            raise ValueError("the parts of a union are a list of patterns")
        if not 1 <= len(self.parts) <= MOST_PARTS:
            raise ValueError(f"a union has 1 to {MOST_PARTS} parts, not {len(self.parts)}")
        names = sorted({part.order for part in self.parts})
        if len(names) > 1:
            raise ValueError(f"the parts of a union are executed in one token order, not in {' and '.join(names)}")

    @property
    def order(self) -> str:
        return self.parts[0].order

    def blocks(self, layout: TokenLayout, block: int) -> Tensor:
        return functools.reduce(torch.logical_or, [part.blocks(layout, block) for part in self.parts])


@dataclass(frozen=True)
class AtLeast(Rule):
    """A pattern in which each query tile keeps a share of the video tokens at least.

    A tile that has fewer gets the blocks nearest to the diagonal, on both sides alike, until it has enough.

    Args:
        part: the pattern.
        keys: the share, in [0, 1].

    Raises:
        ValueError: a value out of range, or no pattern.
    """

    name: ClassVar[str] = "at_least"

    part: Pattern
    keys: float

    def __post_init__(self) -> None:
        if not isinstance(self.part, Pattern):
            raise ValueError(f"part={self.part!r} is not a pattern")
        check_share("keys", self.keys)

    @property
    def order(self) -> str:
        return self.part.order

    def blocks(self, layout: TokenLayout, block: int) -> Tensor:
        placed = orders.placed(layout, self.order)
        kept = self.part.blocks(layout, block)
        tile = torch.arange(len(kept))
        away = (tile[:, None] - tile).abs()
        video = cover.video_in_tiles(placed, block)
        new = torch.where(kept, 0.0, video)
        had = video.sum() - new.sum(1, keepdim=True)
        within = torch.zeros_like(new).scatter_add_(1, away, new).cumsum(1) + had
        least = math.ceil(self.keys * placed.video_tokens - ROUNDING)
        enough = (within >= least).int().argmax(1, keepdim=True)
        return cover.with_text(kept | ((had < least) & (away <= enough)), placed, block)

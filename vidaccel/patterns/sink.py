"""Frames that every query attends to, at the ends of the clip."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vidaccel.layout import TokenLayout
from vidaccel.patterns import orders
from vidaccel.patterns.base import Pattern, check_share, count
from vidaccel.patterns.orders import NATURAL


@dataclass(frozen=True)
class Sink(Pattern):
    """All keys of the first frames, and of the last ones: mostly a part of a `Union`.

    Args:
        first, last: frames, as fractions of the clip in [0, 1]; what is not 0 is one frame at least.
        axes: the order, one with frames slowest.

    Raises:
        ValueError: a value out of range, or another order.
    """

    name: ClassVar[str] = "sink"
    paper: ClassVar[str] = "Radial Attention, arXiv 2506.19852"

    first: float
    last: float = 0.0
    axes: str = NATURAL

    def __post_init__(self) -> None:
        check_share("first", self.first)
        check_share("last", self.last)
        orders.check(self.axes)
        orders.check_sink(self.axes)

    @property
    def order(self) -> str:
        return self.axes

    @classmethod
    def scaled(cls, share: float) -> Pattern:
        return cls(share)

    def rectangles(self, layout: TokenLayout) -> Iterator[Tensor]:
        tokens, size = layout.video_tokens, layout.frame_tokens
        first, last = (count(share, layout.frames) * size for share in (self.first, self.last))
        yield torch.tensor([[0, tokens, 0, first], [0, tokens, tokens - last, tokens]])

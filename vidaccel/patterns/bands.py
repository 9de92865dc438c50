"""Bands along the diagonal of a token order: spatial in the natural order, temporal where frames run fastest."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vidaccel.layout import TokenLayout
from vidaccel.patterns import cover, orders
from vidaccel.patterns.base import Pattern, Runs, check_share, count
from vidaccel.patterns.orders import NATURAL


@dataclass(frozen=True)
class Band(Runs):
    """A diagonal band: keys at most `width` of all video tokens away, in positions of `axes`.

    In the natural order that is a window of nearby frames (the spatial head of Sparse VideoGen); in "HWF" it holds the
    same place, and nearby ones, in all frames (its temporal head).

    Args:
        width: half-width, as a fraction of the video tokens, in [0, 1].
        axes: the order, any that `vidaccel.patterns.orders` has.
        sink: frames at the start of the clip whose keys all queries attend to, as a fraction of the clip; only in
            orders with frames slowest.

    Raises:
        ValueError: a value out of range, or a sink in another order.
    """

    name: ClassVar[str] = "band"
    paper: ClassVar[str] = "Sparse VideoGen, arXiv 2502.01776"

    width: float
    axes: str = NATURAL
    sink: float = 0.0

    def __post_init__(self) -> None:
        check_share("width", self.width)
        check_share("sink", self.sink)
        orders.check(self.axes)
        if self.sink:
            orders.check_sink(self.axes)

    @property
    def order(self) -> str:
        return self.axes

    @classmethod
    def scaled(cls, share: float) -> Pattern:
        return cls(share)

    def covering(self, layout: TokenLayout, block: int) -> Iterator[Tensor]:
        tokens = layout.video_tokens
        half = int(self.width * tokens)
        start, end = cover.runs(layout, block, tokens)
        yield torch.stack([start, end, (start - half).clamp(min=0), (end + half).clamp(max=tokens)], dim=1)
        if self.sink:
            yield torch.tensor([[0, tokens, 0, count(self.sink, layout.frames) * layout.frame_tokens]])

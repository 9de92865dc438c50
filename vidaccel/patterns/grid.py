"""The grid of MMInference: keys at multiples of a stride from the query, and whole boundaries."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vidaccel.layout import TokenLayout
from vidaccel.patterns import orders
from vidaccel.patterns.base import Pattern, check_share, count

UNITS = ("row", "frame")


@dataclass(frozen=True)
class Grid(Pattern):
    """Keys whose number is equal to the query's modulo a stride, in an order in which equal phases are side by side.

    A stride of one row is a column of all frames, one of a frame is the same place in all frames; what it keeps is
    blocks along the diagonal then. Around it are the boundaries: frames at both ends of the clip that attend to
    everything and that everything attends to, and all text.

    Args:
        stride: in the unit, rounded to whole tokens, above 0.
        unit: "row" or "frame": what the stride is a multiple of.
        reach: phases next to the query's own that are kept too, as a fraction of the stride, in [0, 1].
        edge: frames of each boundary, as a fraction of the clip's frames in [0, 1]; what is not 0 is one at least.

    Raises:
        ValueError: a value out of range, or no such unit.
    """

    name: ClassVar[str] = "grid"
    paper: ClassVar[str] = "MMInference, arXiv 2504.16083"

    stride: float = 1.0
    unit: str = "row"
    reach: float = 0.0
    edge: float = 0.0

    def __post_init__(self) -> None:
        if self.unit not in UNITS:
            raise ValueError(f"unit {self.unit!r} is not one of {', '.join(UNITS)}")
        number = isinstance(self.stride, (int, float)) and not isinstance(self.stride, bool)
        if not number or not 0 < self.stride < float("inf"):
            raise ValueError(f"stride={self.stride!r} is not a number above 0")
        check_share("reach", self.reach)
        check_share("edge", self.edge)
        orders.check(self.order)

    @property
    def order(self) -> str:
        return f"phase:{self.stride}{self.unit}"

    @classmethod
    def scaled(cls, share: float) -> Pattern:
        return cls(reach=share)

    def rectangles(self, layout: TokenLayout) -> Iterator[Tensor]:
        edges = _phases(layout, orders.stride(layout, self.order))
        start, end = edges[:-1], edges[1:]
        near, phase = int(self.reach * len(start)), torch.arange(len(start))
        low, high = start[(phase - near).clamp(min=0)], end[(phase + near).clamp(max=len(start) - 1)]
        yield torch.stack([start, end, low, high], dim=1)
        if self.edge:
            yield from _boundaries(layout, start, end, count(self.edge, layout.frames) * layout.frame_tokens)


def _phases(layout: TokenLayout, stride: int) -> Tensor:
    """Where each phase begins, and the end: int64 ``[phases + 1]``."""
    tokens = layout.video_tokens
    members = (tokens - torch.arange(min(stride, tokens)) + stride - 1) // stride
    return torch.nn.functional.pad(members.cumsum(0), (1, 0))


def _boundaries(layout: TokenLayout, start: Tensor, end: Tensor, edge: int) -> Iterator[Tensor]:
    """Rows and columns of the first and the last `edge` tokens, which are at the two ends of every phase."""
    stride, tokens = len(start), layout.video_tokens
    phase = torch.arange(stride)
    first = start + ((edge - phase + stride - 1) // stride).clamp(min=0)
    last = start + ((tokens - edge - phase + stride - 1) // stride).clamp(min=0)
    whole = torch.zeros_like(start)
    for low, high in ((start, torch.minimum(first, end)), (torch.minimum(last, end), end)):
        yield torch.stack([low, high, whole, whole + tokens], dim=1)
        yield torch.stack([whole, whole + tokens, low, high], dim=1)

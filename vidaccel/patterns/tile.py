"""Whole frames: a frame's own, its group's, and a few that all others refer to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vidaccel.layout import TokenLayout
from vidaccel.patterns.base import Pattern, check_share, count


@dataclass(frozen=True)
class Tile(Pattern):
    """Tiles along the diagonal and evenly spaced reference frames, whose keys every query attends to.

    With a fixed number of reference frames the work grows with the clip's length, not with its square.

    Args:
        references: reference frames, as a fraction of the clip's in [0, 1]; the first frame is one if there is any.
        group: frames of one tile of the diagonal, as a fraction of the clip's; 0 is each frame alone.

    Raises:
        ValueError: a value out of range.
    """

    name: ClassVar[str] = "tile"
    paper: ClassVar[str] = "Efficient-vDiT, arXiv 2502.06155"

    references: float
    group: float = 0.0

    def __post_init__(self) -> None:
        check_share("references", self.references)
        check_share("group", self.group)

    @classmethod
    def scaled(cls, share: float) -> Pattern:
        return cls(share)

    def rectangles(self, layout: TokenLayout) -> Iterator[Tensor]:
        frames, size, tokens = layout.frames, layout.frame_tokens, layout.video_tokens
        group = max(1, count(self.group, frames)) * size
        start = torch.arange(0, tokens, group)
        end = (start + group).clamp(max=tokens)
        yield torch.stack([start, end, start, end], dim=1)
        number = count(self.references, frames)
        first = torch.arange(number) * frames // max(1, number) * size
        whole = torch.zeros_like(first)
        yield torch.stack([whole, whole + tokens, first, first + size], dim=1)

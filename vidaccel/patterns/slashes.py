"""Chosen lines of the attention map: vertical ones, slanting ones, and slanting ones at powers of two."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vidaccel.layout import TokenLayout
from vidaccel.patterns import cover
from vidaccel.patterns.base import Pattern, Runs, check_share

MOST_LINES = 1024


@dataclass(frozen=True)
class VerticalSlash(Runs):
    """Keys at chosen places of the clip, and keys at chosen distances from the query, each a line of some width.

    Args:
        verticals: places of the keys, as fractions of the video tokens in [0, 1].
        slashes: distances from query to key, as fractions of the video tokens in [-1, 1]; positive is a later key.
            ``k / frames`` is the same place `k` frames on.
        width: half-width of each line, as a fraction of the video tokens, in [0, 1].

    Raises:
        ValueError: a value out of range, or more lines than 1024 of a kind.
    """

    name: ClassVar[str] = "vertical_slash"
    paper: ClassVar[str] = "MInference, arXiv 2407.02490"

    verticals: tuple[float, ...]
    slashes: tuple[float, ...]
    width: float = 0.0

    def __post_init__(self) -> None:
        for name, least in (("verticals", 0), ("slashes", -1)):
            lines = getattr(self, name)
            if not isinstance(lines, tuple) or len(lines) > MOST_LINES:
                raise ValueError(f"{name} are a list of at most {MOST_LINES} fractions")
            for line in lines:
                check_share(name, line, least)
        check_share("width", self.width)

    @classmethod
    def scaled(cls, share: float) -> Pattern:
        """The first keys and the diagonal, wider and wider."""
        return cls((0.0,), (0.0,), share)

    def covering(self, layout: TokenLayout, block: int) -> Iterator[Tensor]:
        tokens = layout.video_tokens
        half = int(self.width * tokens)
        place = torch.tensor([min(int(line * tokens), tokens - 1) for line in self.verticals], dtype=torch.int64)
        low, high = (place - half).clamp(min=0), (place + half + 1).clamp(max=tokens)
        whole = torch.zeros_like(place)
        yield torch.stack([whole, whole + tokens, low, high], dim=1)
        yield from diagonals(layout, [round(line * tokens) for line in self.slashes], half, block)


@dataclass(frozen=True)
class LogSpaced(Runs):
    """A local window, and keys at distances that double: 1, 2, 4, ... frames away, and half, a quarter, ... of a frame.

    Whatever the length of the clip, any two tokens are a few hops apart.

    Args:
        window: half-width of the local window, as a fraction of the video tokens, in [0, 1].
        width: half-width around each farther distance, as a fraction of a frame's tokens, in [0, 1].

    Raises:
        ValueError: a value out of range.
    """

    name: ClassVar[str] = "log_spaced"
    paper: ClassVar[str] = "PowerAttention, arXiv 2503.03588"

    window: float
    width: float = 0.0

    def __post_init__(self) -> None:
        check_share("window", self.window)
        check_share("width", self.width)

    @classmethod
    def scaled(cls, share: float) -> Pattern:
        return cls(share, share)

    def covering(self, layout: TokenLayout, block: int) -> Iterator[Tensor]:
        size = layout.frame_tokens
        yield from diagonals(layout, [0], int(self.window * layout.video_tokens), block)
        far = [int(size * 2.0**power) for power in range(-int(math.log2(size)), layout.frames.bit_length())]
        yield from diagonals(layout, [sign * step for step in far for sign in (-1, 1)], int(self.width * size), block)


def diagonals(layout: TokenLayout, offsets: list[int], half: int, block: int) -> Iterator[Tensor]:
    """Keys at most `half` tokens from ``query + offset``, for each offset, as `Pattern.covering` gives them."""
    tokens = layout.video_tokens
    start, end = cover.runs(layout, block, tokens)
    for offset in offsets:
        low, high = (start + offset - half).clamp(min=0), (end + offset + half).clamp(max=tokens)
        yield torch.stack([start, end, low, high], dim=1)

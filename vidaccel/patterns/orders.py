"""Token orders by name: in which sequence a pattern's video tokens are executed.

- Three letters, the slowest axis first (the six axis orders of PAROAttention, arXiv 2506.16054): "FHW" is the natural
  order, "HWF" puts equal places of all frames side by side.
- "tile:6x8x8": tiles of 6 frames, 8 rows and 8 columns one after the other (Sliding Tile Attention, arXiv 2502.04507).
- "phase:80": tokens whose numbers are equal modulo 80 side by side (the grid of MMInference, arXiv 2504.16083);
  relative to the grid, "phase:1row" and "phase:0.5frame".
- "hilbert": frame by frame along a space-filling curve, there and back.
"""

from __future__ import annotations

import functools
import math
import re
from itertools import permutations

import torch
from torch import Tensor

from vidaccel.layout import TokenLayout
from vidaccel.patterns import hilbert

NATURAL = "FHW"
AXES = tuple("".join(each) for each in permutations("FHW"))
"""The axis orders."""
HILBERT = "hilbert"
TILE = re.compile(r"tile:([1-9]\d{0,8})x([1-9]\d{0,8})x([1-9]\d{0,8})")
PHASE = re.compile(r"phase:(?:([1-9]\d{0,8})|(\d{1,9}(?:\.\d{1,18})?)(row|frame))")
KEPT = 64


def check(name: str) -> None:
    """Refuse what is no order.

    Raises:
        ValueError: no such order.
    """
    known = isinstance(name, str) and (name in (*AXES, HILBERT) or TILE.fullmatch(name) or PHASE.fullmatch(name))
    if not known:
        allowed = (*AXES, HILBERT, "tile:FRAMESxROWSxCOLUMNS", "phase:TOKENS", "phase:NUMBERrow", "phase:NUMBERframe")
        raise ValueError(f"unknown token order {name!r}; choose {', '.join(allowed)}")


def check_sink(name: str) -> None:
    """Refuse an order in which a sink of frames is no range.

    Raises:
        ValueError: its slowest axis is not frames.
    """
    if not frames_slowest(name):
        raise ValueError(f"a sink of frames needs an order with frames slowest, not {name!r}")


def frames_slowest(name: str) -> bool:
    """Whether an order holds the frames one after the other: each is a range of its positions."""
    return name == HILBERT or name.startswith("F")


def placed(layout: TokenLayout, name: str) -> TokenLayout:
    """The layout of an order's positions: in all but the natural order video comes first and all text after it.

    So tiles of video start at position 0, and padding, which ends a sequence, still ends it.
    """
    if name == NATURAL:
        return layout
    text = layout.text_before + layout.text_after
    return TokenLayout(layout.frames, layout.height, layout.width, 0, text)


@functools.lru_cache(KEPT)
def sequence(layout: TokenLayout, name: str) -> Tensor | None:
    """The token at each position of the whole sequence, as `AttentionPlan` takes it: int32 ``[tokens]``.

    None for the natural order.

    Raises:
        ValueError: no such order.
    """
    if name == NATURAL:
        return None
    video = video_order(layout, name) + layout.video_start
    before, after = torch.arange(layout.video_start), torch.arange(layout.video_end, layout.tokens)
    return torch.cat([video, before, after]).int()


def video_order(layout: TokenLayout, name: str) -> Tensor:
    """The video token at each position, 0 to ``video_tokens - 1``: int64 ``[video_tokens]``.

    Raises:
        ValueError: no such order.
    """
    check(name)
    tokens = torch.arange(layout.video_tokens)
    if name in AXES:
        grid = tokens.view(layout.frames, layout.height, layout.width)
        return grid.permute(*("FHW".index(axis) for axis in name)).flatten()
    if PHASE.fullmatch(name):
        return _sorted(tokens % stride(layout, name))
    if tile := TILE.fullmatch(name):
        return _tiles(layout, *map(int, tile.groups()))
    return _hilbert(layout)


def stride(layout: TokenLayout, name: str) -> int:
    """The number of tokens that a "phase:" order counts modulo, at least 1.

    Raises:
        ValueError: no such order.
    """
    match = PHASE.fullmatch(name)
    if not match:
        raise ValueError(f"token order {name!r} has no phases; those that do are named phase:TOKENS, phase:1row, ...")
    tokens, number, unit = match.groups()
    if tokens:
        return int(tokens)
    return max(1, round(float(number) * (layout.width if unit == "row" else layout.frame_tokens)))


def compact_tile(layout: TokenLayout, block: int) -> tuple[int, int, int]:
    """A tile of at most `block` tokens, its sides as equal as powers of two and the grid allow, the longest in time.

    In natural order a block is a piece of a row or two: what its queries keep together is far wider than the window of
    each. In a compact tile all queries are near, so that a window of the same density reaches further.
    """
    grid, tile = (layout.frames, layout.height, layout.width), [1, 1, 1]
    while free := [axis for axis in range(3) if 2 * tile[axis] <= grid[axis] and 2 * math.prod(tile) <= block]:
        tile[min(free, key=lambda axis: tile[axis])] *= 2
    return tile[0], tile[1], tile[2]


def _tiles(layout: TokenLayout, *sizes: int) -> Tensor:
    """Tiles in raster order, raster inside; those at the far ends are what is left of the grid."""
    number = torch.zeros(1, 1, 1, dtype=torch.int64)
    for axis, (length, size) in enumerate(zip((layout.frames, layout.height, layout.width), sizes, strict=True)):
        place = (torch.arange(length) // size).view([-1 if each == axis else 1 for each in range(3)])
        number = number * -(-length // size) + place
    return _sorted(number.flatten())


def _hilbert(layout: TokenLayout) -> Tensor:
    """The same curve in every frame, backwards in every other one: a frame begins where the one before it ended."""
    there = hilbert.curve(layout.height, layout.width)
    frames = torch.arange(layout.frames)[:, None]
    return (torch.where(frames % 2 == 0, there, there.flip(0)) + frames * layout.frame_tokens).flatten()


def _sorted(keys: Tensor) -> Tensor:
    return keys.argsort(stable=True)

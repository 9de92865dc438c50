"""From what a pattern keeps to blocks, and how dense blocks are: all without a tokens x tokens mask."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from vidaccel.layout import TokenLayout


def covered(rectangles: Iterable[Tensor], layout: TokenLayout, block: int) -> Tensor:
    """Blocks that any rectangle touches: bool ``[tiles, tiles]`` of the whole sequence.

    Args:
        rectangles: int64 ``[n, 4]`` each, query start and end, key start and end, in video positions.
        layout: of the positions: where video begins, and how long the sequence is.
    """
    tiles = -(-layout.tokens // block)
    side = tiles + 1
    # Steps up and down at the corners, summed along both axes: each rectangle costs four additions, whatever its size.
    corners = torch.zeros(side * side, dtype=torch.int32)
    for piece in rectangles:
        piece = piece[(piece[:, 0] < piece[:, 1]) & (piece[:, 2] < piece[:, 3])] + layout.video_start
        top, left = piece[:, 0] // block, piece[:, 2] // block
        bottom, right = (piece[:, 1] - 1) // block + 1, (piece[:, 3] - 1) // block + 1
        one = torch.ones_like(top, dtype=torch.int32)
        for row, column, step in ((top, left, one), (bottom, right, one), (top, right, -one), (bottom, left, -one)):
            corners.index_add_(0, row * side + column, step)
    depth = corners.view(side, side).cumsum(0, dtype=torch.int32).cumsum(1, dtype=torch.int32)
    return (depth > 0)[:tiles, :tiles].clone()


def runs(layout: TokenLayout, block: int, line: int) -> tuple[Tensor, Tensor]:
    """The pieces of the video that lie in one tile and in one line: first and last positions, one past, int64 ``[n]``.

    Args:
        layout: of the positions: where video begins in the tiles.
        line: positions of a line; the video is a whole number of lines.
    """
    tokens = layout.video_tokens
    tiles = torch.arange(-(-layout.tokens // block) + 1) * block - layout.video_start
    edges = torch.cat([torch.arange(tokens // line + 1) * line, tiles[(tiles > 0) & (tiles < tokens)]]).unique()
    return edges[:-1], edges[1:]


def text_blocks(layout: TokenLayout, block: int) -> Tensor:
    """Blocks that hold any text: bool ``[tiles]``."""
    edge = torch.arange(-(-layout.tokens // block)) * block
    return (edge < layout.video_start) | ((edge + block).clamp(max=layout.tokens) > layout.video_end)


def with_text(kept: Tensor, layout: TokenLayout, block: int) -> Tensor:
    """Blocks as given, those with text kept whole, rows and columns."""
    text = text_blocks(layout, block)
    return kept | text[:, None] | text


def video_in_tiles(layout: TokenLayout, block: int) -> Tensor:
    """Video tokens in each tile: float64 ``[tiles]``."""
    edge = torch.arange(-(-layout.tokens // block)) * block
    return ((edge + block).clamp(max=layout.video_end) - edge.clamp(min=layout.video_start)).clamp(min=0).double()


def video_density(blocks: Tensor, layout: TokenLayout, block: int) -> float:
    """Share of the video-video pairs that a block map ``[tiles, tiles]`` keeps."""
    video = video_in_tiles(layout, block)
    return float(video @ (blocks.double() @ video)) / layout.video_tokens**2

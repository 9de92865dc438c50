"""Token orders by name: in which sequence a pattern's video tokens are executed.

The six axis orders (PAROAttention, arXiv 2506.16054) are three letters, the slowest axis first: "FHW" is the natural
order, "HWF" puts equal places of all frames side by side.
"""

from __future__ import annotations

import functools
from itertools import permutations

import torch
from torch import Tensor

from vidaccel.layout import TokenLayout

NATURAL = "FHW"
AXES = tuple("".join(each) for each in permutations("FHW"))
"""The axis orders."""
KEPT = 64


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
    if name in AXES:
        grid = torch.arange(layout.video_tokens).view(layout.frames, layout.height, layout.width)
        return grid.permute(*("FHW".index(axis) for axis in name)).flatten()
    raise ValueError(f"unknown token order {name!r}; choose {', '.join(AXES)}")

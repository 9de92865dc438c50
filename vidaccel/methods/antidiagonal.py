"""XAttention: blocks scored by sums along antidiagonals of the attention map (arXiv 2503.16428).

Implemented from the paper.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from vidaccel.methods.blocks import Blocks, Tiles
from vidaccel.methods.presets import Preset
from vidaccel.planning.antidiagonal import block_scores
from vidaccel.site import Site

STRIDES = (2, 4, 8, 16)

PRESETS: Mapping[str, Preset] = {
    "hunyuanvideo-0.9": Preset({"top_p": 0.9, "stride": 8, "block": 128}, dense_steps=5),
    "hunyuanvideo-0.95": Preset({"top_p": 0.95, "stride": 8, "block": 128}, dense_steps=5),
}
"""The two thresholds that are published for HunyuanVideo, after five dense steps of a run."""


@dataclass(frozen=True)
class Antidiagonal(Blocks):
    """Queries and keys meet along the antidiagonals of small cells; blocks of the highest sums are kept.

    Every vertical and every diagonal of a map crosses some antidiagonal of a block, which the mean of a block can miss.
    Blocks are of the natural order. Each tile keeps its own block, and text is kept whole.

    Args:
        stride: tokens of a cell: 2, 4, 8 or 16, at most `block`. Scores cost 1 / stride of all.
        preset: "hunyuanvideo-0.9" or "hunyuanvideo-0.95", the published settings: `top_p`, stride, block, dense steps.
    """

    presets = PRESETS
    name: ClassVar[str] = "antidiagonal"
    paper: ClassVar[str] = "XAttention, arXiv 2503.16428"
    alternatives: ClassVar[tuple[str, ...]] = ("density", "top_p", "preset")

    stride: int = 8
    preset: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.stride, bool) or self.stride not in STRIDES:
            raise ValueError(f"stride {self.stride!r} is not one of {', '.join(map(str, STRIDES))}")

    def scores(
        self, query: Tensor, key: Tensor, value: Tensor, tiles: Tiles, site: Site, state: dict[str, Any]
    ) -> Tensor:  # fmt: skip
        # Text after the video may be padding: the video's rows are scored as if it were not there.
        lengths = torch.full((len(key),), site.layout.video_end, dtype=torch.int32, device=key.device)
        scale = query.shape[-1] ** -0.5
        return block_scores(query, key, self.block, self.block, self.stride, scale=scale, key_lengths=lengths)

"""DraftAttention: blocks that a low-resolution draft of the attention map chooses (arXiv 2505.14708).

Implemented from the paper.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from vidaccel.layout import TokenLayout
from vidaccel.methods.blocks import Blocks, Tiles, patch_order, pooled
from vidaccel.methods.presets import Preset
from vidaccel.planning import select
from vidaccel.site import Dealt, Site

PRESETS: Mapping[str, Preset] = {
    "wan": Preset({"density": 0.25, "block": 128, "per_head": True}, 0.25, dense_layers=1),
    "hunyuanvideo": Preset({"density": 0.1, "block": 128, "per_head": True}, 0.25, dense_layers=2),
}


@dataclass(frozen=True)
class Draft(Blocks):
    """Patches of each frame are averaged to one query and one key each; their attention map says which blocks count.

    Tokens are put in an order in which a patch is a block. With a density the highest entries of the maps of all heads
    of a batch row are kept together. Each tile keeps its own block, and text is kept whole.

    Args:
        per_head: each head has the density, as in the paper, instead of all heads of a batch row together.
        preset: "wan" or "hunyuanvideo", the published settings: density, block, `per_head`, dense steps and layers.
    """

    presets = PRESETS
    name: ClassVar[str] = "draft"
    paper: ClassVar[str] = "DraftAttention, arXiv 2505.14708"
    alternatives: ClassVar[tuple[str, ...]] = ("density", "top_p", "preset")

    per_head: bool = False
    preset: str | None = None

    def order_of(self, layout: TokenLayout) -> str:
        return patch_order(self.block)

    def scores(
        self, query: Tensor, key: Tensor, value: Tensor, tiles: Tiles, site: Site, state: dict[str, Any]
    ) -> Tensor:  # fmt: skip
        return pooled(query, key, tiles, self.block)

    def pick(
        self, scores: Tensor, keep: Tensor, tiles: Tiles, batch: int, density: float | None, heads: Dealt | None = None
    ) -> Tensor:
        if density is None or not self.per_head:
            return super().pick(scores, keep, tiles, batch, density, heads)
        return select.budgeted(scores, density, weights=tiles.weights[None], groups=len(scores), keep=keep)

"""What methods have in common that give every block of a token order a score and keep the best."""

from __future__ import annotations

import functools
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vidaccel.layout import TokenLayout
from vidaccel.mask import BlockMask
from vidaccel.methods.dynamic import Dynamic
from vidaccel.patterns import cover, orders
from vidaccel.plan import AttentionPlan
from vidaccel.planning import select
from vidaccel.site import Site

KEPT = 64


@dataclass(frozen=True, eq=False)
class Tiles:
    """What a token grid decides of blocks in an order, on a device.

    Args:
        order: int32 ``[1, tokens]``, or None for the natural order.
        video: bool ``[1, tiles]``, tiles without text: only these are chosen among.
        keep: bool ``[tiles, tiles]``, what is always kept: the diagonal, and all pairs with a tile that has text.
        weights: int32 ``[tiles, tiles]``, video-video pairs of each block.
        video_length: positions from there on, in an order where video comes first, are text.
    """

    order: Tensor | None
    video: Tensor
    keep: Tensor
    weights: Tensor
    video_length: int


@functools.lru_cache(KEPT)
def tiles_of(layout: TokenLayout, name: str, block: int, device: torch.device) -> Tiles:
    """The tiles of a grid in an order; made once, as copying them to a GPU in each call would wait for it."""
    placed = orders.placed(layout, name)
    sequence = orders.sequence(layout, name)
    text = cover.text_blocks(placed, block)
    keep = cover.with_text(torch.eye(len(text), dtype=torch.bool), placed, block)
    tokens = cover.video_in_tiles(placed, block).int()
    order = None if sequence is None else sequence[None].to(device)
    weights = (tokens[:, None] * tokens).to(device)
    return Tiles(order, ~text[None].to(device), keep.to(device), weights, placed.video_end)


@dataclass(frozen=True)
class Blocks(Dynamic):
    """A method of square blocks in a token order: subclasses write `scores`, and `order_of` and `always` if need be.

    Blocks are kept by the budget: with a density those of the highest scores over all heads of a batch row, so that
    scores must mean the same in all rows; with `top_p` in each row as few as hold that share of its scores. The
    diagonal and all text are kept in any case.
    """

    def order_of(self, layout: TokenLayout) -> str:
        """The token order in which blocks are cut, see `vidaccel.patterns.orders`."""
        return orders.NATURAL

    @abstractmethod
    def scores(
        self, query: Tensor, key: Tensor, value: Tensor, tiles: Tiles, site: Site, state: dict[str, Any]
    ) -> Tensor:  # fmt: skip
        """Scores of all blocks: fp32 ``[batch * heads, tiles, tiles]``, at least 0; those of text do not matter."""

    def always(self, query: Tensor, key: Tensor, tiles: Tiles, site: Site) -> Tensor:
        """What is kept in any case: bool, broadcast to the scores' shape."""
        return tiles.keep

    def choose(self, query: Tensor, key: Tensor, value: Tensor, site: Site, state: dict[str, Any]) -> AttentionPlan:
        tiles = tiles_of(site.layout, self.order_of(site.layout), self.block, query.device)
        scores = self.scores(query, key, value, tiles, site, state)
        keep, density = self.always(query, key, tiles, site), self.density_at(site)
        if density is None:
            assert self.top_p is not None
            kept = select.top_p(scores, self.top_p, keep=keep)
        else:
            kept = select.budgeted(scores, density, weights=tiles.weights[None], groups=len(query), keep=keep)
        tokens = site.layout.tokens
        mask = BlockMask.from_blocks(kept, self.block, self.block, tokens, tokens)
        return AttentionPlan(mask, tiles.order, tiles.order)

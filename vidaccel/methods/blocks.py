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
from vidaccel.planning import pool, select
from vidaccel.site import Dealt, Site

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

    def pick(
        self, scores: Tensor, keep: Tensor, tiles: Tiles, batch: int, density: float | None, heads: Dealt | None = None
    ) -> Tensor:
        """The blocks that the budget pays for: bool, of the scores' shape.

        Args:
            scores: fp32 ``[batch * heads, tiles, tiles]``, free to be overwritten.
            keep: bool, broadcast to them: what is kept in any case.
            tiles: of the grid.
            batch: rows of the batch, each of which has a budget.
            density: of this step; None where `top_p` is the budget.
            heads: which these are, where other processes have others that share the budget.
        """
        if density is not None:
            return select.budgeted(scores, density, weights=tiles.weights[None], groups=batch, keep=keep, heads=heads)
        assert self.top_p is not None
        return select.top_p(scores, self.top_p, keep=keep)

    def choose(self, query: Tensor, key: Tensor, value: Tensor, site: Site, state: dict[str, Any]) -> AttentionPlan:
        tiles = tiles_of(site.layout, self.order_of(site.layout), self.block, query.device)
        keep = self.always(query, key, tiles, site)
        # Without a name, as the scores should not stay while ranges are made.
        kept = self.pick(
            self.scores(query, key, value, tiles, site, state), keep, tiles, len(query), self.density_at(site),
            site.heads,
        )  # fmt: skip
        tokens = site.layout.tokens
        mask = BlockMask.from_blocks(kept, self.block, self.block, tokens, tokens)
        return AttentionPlan(mask, tiles.order, tiles.order)


def pooled(query: Tensor, key: Tensor, tiles: Tiles, block: int) -> Tensor:
    """The map that means of tiles predict: fp32 ``[batch * heads, tiles, tiles]``, rows that sum to 1.

    Tiles with text, some of which may be padding, get nothing and are in no row's softmax.
    """
    means = [pool.block_mean(each, block, order=tiles.order) for each in (query, key)]
    return pool.pooled_scores(means[0], means[1], query.shape[-1] ** -0.5, allowed=tiles.video)


def patch(block: int) -> tuple[int, int, int]:
    """Frames, rows and columns of `block` tokens of one frame, at most twice as wide as high: of 128, 1 x 8 x 16."""
    rows = 1 << ((block.bit_length() - 1) // 2)
    return 1, rows, block // rows


def patch_order(block: int) -> str:
    """The order of such patches one after the other. Where they do not fill a frame, blocks reach over two or more."""
    return "tile:" + "x".join(map(str, patch(block)))

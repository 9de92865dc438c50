"""SpargeAttn's choice of blocks: means that are trusted where a block's tokens are alike (arXiv 2502.18137).

Implemented from the paper; its kernels, with quantised scores and products of values that are skipped within a tile,
are no part of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from vidaccel.layout import TokenLayout
from vidaccel.methods.blocks import Blocks, Tiles
from vidaccel.methods.presets import Preset
from vidaccel.patterns import orders
from vidaccel.planning import pool, select
from vidaccel.site import Dealt, Site

SIMILARITY = 0.6
"""The published threshold beside `top_p`."""
FIRST = 2.0
"""Added to the score of a block that the gate keeps: all other scores are at most 1."""
HEADS = 8
"""Heads whose keys are copied at once, less their mean: 155 MB at 75,600 tokens of 128 in bf16."""

PRESETS: Mapping[str, Preset] = {
    "cdf": Preset({"top_p": 0.98, "similarity": SIMILARITY}),
    "demo": Preset({"top_p": 0.96, "similarity": 0.3}),
}
"""Settings that are published as defaults and with a demonstration."""


@dataclass(frozen=True)
class MeanSim(Blocks):
    """Blocks are chosen by the attention of their means; those whose tokens are not alike are kept instead.

    A block's tokens are alike where the mean cosine similarity of all pairs is above a threshold; of keys, after their
    mean over the video is taken off. With `top_p` blocks that are not alike are kept whole, queries' rows and keys'
    columns, and such keys are left out of the softmax. With a density they come first, the best of them by their means
    if there are too many. Each tile keeps its own block, and text is kept whole.

    Args:
        similarity: the threshold, in [-1, 1]; a negative one trusts all blocks. By default 0.6 with `top_p`, and none
            with a density, as published for a fixed number of blocks.
        order: of the tokens that blocks are cut in, see `vidaccel.patterns.orders`.
        preset: "cdf" or "demo": a published `top_p` and similarity.
    """

    presets = PRESETS
    name: ClassVar[str] = "meansim"
    paper: ClassVar[str] = "SpargeAttn, arXiv 2502.18137"
    alternatives: ClassVar[tuple[str, ...]] = ("density", "top_p", "preset")

    similarity: float | None = None
    order: str = orders.NATURAL
    preset: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        orders.check(self.order)
        number = isinstance(self.similarity, (int, float)) and not isinstance(self.similarity, bool)
        if self.similarity is not None and not (number and -1 <= self.similarity <= 1):
            raise ValueError(f"similarity {self.similarity!r} is not a number from -1 to 1")

    @property
    def threshold(self) -> float:
        """What the similarity of a trusted block exceeds; no block has one below 0."""
        if self.similarity is not None:
            return self.similarity
        return -1.0 if self.top_p is None else SIMILARITY

    def order_of(self, layout: TokenLayout) -> str:
        return self.order

    def scores(
        self, query: Tensor, key: Tensor, value: Tensor, tiles: Tiles, site: Site, state: dict[str, Any]
    ) -> Tensor:  # fmt: skip
        """What the means predict; of a block that the gate keeps, `FIRST` more."""
        scale = query.shape[-1] ** -0.5
        if self.threshold < 0:
            means = [pool.block_mean(each, self.block, order=tiles.order) for each in (query, key)]
            return pool.pooled_scores(means[0], means[1], scale, allowed=tiles.video)
        queries = pool.summary(query, self.block, order=tiles.order)
        keys = centred(key, site.layout, self.block, tiles.order)
        rows, columns = (each.similarity > self.threshold for each in (queries, keys))
        allowed = tiles.video if self.top_p is None else tiles.video & columns
        predicted = pool.pooled_scores(queries.mean, keys.mean, scale, allowed=allowed)
        return predicted.add_(~(rows[:, :, None] & columns[:, None]), alpha=FIRST)

    def pick(
        self, scores: Tensor, keep: Tensor, tiles: Tiles, batch: int, density: float | None, heads: Dealt | None = None
    ) -> Tensor:
        if density is not None:
            return super().pick(scores, keep, tiles, batch, density, heads)
        assert self.top_p is not None
        gated = scores >= FIRST
        return select.top_p(scores.masked_fill_(gated, 0.0), self.top_p, keep=gated.logical_or_(keep))


def centred(key: Tensor, layout: TokenLayout, block: int, order: Tensor | None) -> pool.Summary:
    """`pool.summary` of keys less their mean over the video, some heads at a time.

    The mean shifts all scores of a query alike and so no softmax; what it changes is how alike keys are.
    """
    mean = key[:, layout.video_start : layout.video_end].mean(1, keepdim=True, dtype=torch.float32).to(key.dtype)
    parts = [pool.summary(key[:, :, at : at + HEADS] - mean[:, :, at : at + HEADS], block, order=order)
             for at in range(0, key.shape[2], HEADS)]  # fmt: skip
    # Lanes of a summary are of its own heads: batch rows come together again head by head.
    alike = torch.cat([each.similarity.unflatten(0, (len(key), -1)) for each in parts], dim=1)
    return pool.Summary(torch.cat([each.mean for each in parts], dim=2), alike.flatten(0, 1))

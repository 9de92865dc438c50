"""The blocks that hold the most attention, known from all of it: what any choice of position blocks can be at best."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from vidaccel.layout import TokenLayout
from vidaccel.methods.blocks import Blocks, Tiles
from vidaccel.patterns import orders
from vidaccel.planning.mass import block_mass
from vidaccel.site import Site

WORKING_BYTES = 256 << 20
"""Scores that are held at once."""


@dataclass(frozen=True)
class Oracle(Blocks):
    """A baseline, not for use: every call computes dense attention's weights and keeps the blocks that hold the most.

    Each tile keeps its own block, and text is kept whole.

    Args:
        order: of the tokens that blocks are cut in, see `vidaccel.patterns.orders`.
    """

    name: ClassVar[str] = "oracle"
    paper: ClassVar[str] = "baseline, not for use: the blocks of most attention weight, known from all of it"

    order: str = orders.NATURAL

    def __post_init__(self) -> None:
        super().__post_init__()
        orders.check(self.order)

    def order_of(self, layout: TokenLayout) -> str:
        return self.order

    def scores(
        self, query: Tensor, key: Tensor, value: Tensor, tiles: Tiles, site: Site, state: dict[str, Any]
    ) -> Tensor:  # fmt: skip
        """The mean weight that a tile's queries give to a block; text after the video, as it may be padding, has none.

        Text before the video has its weight, so that a head that looks at text needs less video.
        """
        # In any order text after the video comes last.
        valid = site.layout.tokens - site.layout.text_after
        lengths = torch.full((len(key),), valid, dtype=torch.int32, device=key.device)
        scale = query.shape[-1] ** -0.5
        lse = log_sum_exp(query, key[:, :valid], scale)
        return block_mass(query, key, lse, self.block, self.block, scale=scale, key_lengths=lengths,
                          query_order=tiles.order, key_order=tiles.order)  # fmt: skip


def log_sum_exp(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """LSE of each query's scaled scores over all keys, fp32 ``[batch, heads, queries]``, a part of them at a time."""
    batch, queries, heads, _ = query.shape
    lse = query.new_empty(batch, heads, queries, dtype=torch.float32)
    step = max(1, WORKING_BYTES // (8 * key.shape[1]))
    for row in range(batch):
        for head in range(heads):
            keys = key[row, :, head].float().T
            for first in range(0, queries, step):
                part = slice(first, first + step)
                lse[row, head, part] = (query[row, part, head].float() @ keys * scale).logsumexp(1)
    return lse

"""The mask of Video-BLADE's Adaptive Sparse Attention, without its training (arXiv 2508.10774).

Implemented from the paper's description: attention between a few tokens of each block, its largest value per block.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from vidaccel.layout import TokenLayout
from vidaccel.methods.blocks import Blocks, Tiles
from vidaccel.methods.candidates import GOLDEN, LAYERS
from vidaccel.patterns import orders
from vidaccel.site import Site

WORKING_BYTES = 256 << 20
"""Memory for scores: sampled queries are worked on in groups."""
KEPT = 64
LEAST = 4
"""Samples of small blocks."""


@dataclass(frozen=True)
class Asa(Blocks):
    """Blocks by the largest attention weight between some of their tokens, in an order that keeps neighbours together.

    Args:
        density, top_p, block, refresh, drift: see `Dynamic`.
        samples: tokens of each block that are looked at, at most `block`; by default an eighth, at least 4.
        order: token order in which blocks are cut, see `vidaccel.patterns.orders`.

    Raises:
        ValueError: a value out of range.
    """

    name: ClassVar[str] = "asa"
    paper: ClassVar[str] = "Video-BLADE, arXiv 2508.10774"

    samples: int | None = None
    order: str = orders.HILBERT

    def __post_init__(self) -> None:
        super().__post_init__()
        orders.check(self.order)
        if not 1 <= self.sampled <= self.block:
            raise ValueError(f"samples {self.samples} is not from 1 to the {self.block} tokens of a block")

    @property
    def sampled(self) -> int:
        """Tokens of each block that are looked at."""
        return max(LEAST, self.block // 8) if self.samples is None else self.samples

    def order_of(self, layout: TokenLayout) -> str:
        return self.order

    def scores(
        self, query: Tensor, key: Tensor, value: Tensor, tiles: Tiles, site: Site, state: dict[str, Any]
    ) -> Tensor:  # fmt: skip
        place = drawn(site, self.block, self.sampled, query.device)
        inside = place.clamp(max=query.shape[1] - 1)
        video = video_at(site.layout, self.order, query.device)[inside] & (place < query.shape[1])
        token = inside if tiles.order is None else tiles.order[0, inside].long()
        return sampled_maxima(query, key, token, video, self.sampled)


def drawn(site: Site, block: int, samples: int, device: torch.device) -> Tensor:
    """Positions in the order, `samples` in a row for each block: int64 ``[tiles * samples]``, past the end in a last
    block of fewer tokens.

    One from each of equal stretches of a block, at another place in each block, layer and step. Numbers alone, made
    where the queries are, as a copy from the CPU would wait for a GPU.
    """
    tiles = -(-site.layout.tokens // block)
    start = random.Random(site.step * LAYERS + site.layer).random()
    at = torch.arange(tiles * samples, device=device)
    inside = (at * GOLDEN + start).frac()
    return at // samples * block + ((at % samples + inside) * (block / samples)).long().clamp(max=block - 1)


@functools.lru_cache(KEPT)
def video_at(layout: TokenLayout, order: str, device: torch.device) -> Tensor:
    """Positions of an order that hold video: bool ``[tokens]``; made once."""
    placed, position = orders.placed(layout, order), torch.arange(layout.tokens)
    return ((position >= placed.video_start) & (position < placed.video_end)).to(device)


def sampled_maxima(query: Tensor, key: Tensor, token: Tensor, video: Tensor, samples: int) -> Tensor:
    """The largest weight between sampled queries and keys of each pair of blocks, rows made to sum to 1.

    The softmax of a query runs over all sampled keys of the video. It takes 2 * (N * samples / block)^2 * head_dim
    operations per head.

    Args:
        query, key: ``[batch, tokens, heads, head_dim]``.
        token: int64 ``[tiles * samples]``, the sampled tokens, block by block.
        video: bool, as `token`: others are left out.
        samples: of a block.

    Returns:
        fp32 ``[batch * heads, tiles, tiles]``; zeros where a block has no sample.
    """
    heads, tiles = query.shape[2], len(token) // samples
    found = query.new_zeros(len(query) * heads, tiles, tiles, dtype=torch.float32)
    for lane in range(len(found)):
        rows, columns = (each[lane // heads, token, lane % heads].float() for each in (query, key))
        for part in _groups(tiles, samples):
            scores = rows[part.start * samples : part.stop * samples] @ columns.T * query.shape[-1] ** -0.5
            weights = scores.masked_fill(~video, float("-inf")).softmax(-1)
            weights = weights * video[part.start * samples : part.stop * samples, None]
            found[lane, part] = weights.unflatten(1, (tiles, samples)).amax(2).unflatten(0, (-1, samples)).amax(1)
    return found / found.sum(-1, keepdim=True).clamp(min=1e-30)


def _groups(tiles: int, samples: int) -> Iterator[slice]:
    """Tiles whose scores fit in memory together."""
    step = max(1, WORKING_BYTES // (12 * tiles * samples * samples))
    return (slice(first, min(first + step, tiles)) for first in range(0, tiles, step))

"""What a head attends to along each axis of the clip, learned: how its attention falls off with distance."""

from __future__ import annotations

import base64
import binascii
import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from vidaccel.layout import TokenLayout
from vidaccel.patterns import cover, orders
from vidaccel.patterns.base import Pattern, Rule, check_share
from vidaccel.patterns.bits import check_side

PLACES = 8
"""Parts of an axis in which a query has a fall-off of its own, at most: borders and first frames differ."""
NEAR = 8
"""Distances up to this have a bin each."""
GROWTH = 1.4
"""From one bin to the next beyond `NEAR`."""
MOST = 4096
"""Tokens along an axis."""
OCTAVE = 8
"""Levels to a factor of two: a byte spans 32 factors of two below the largest weight."""
LEAST_SAMPLED, MOST_SAMPLED, SAMPLED = 4, 8, 2048
"""Tokens of a tile whose weights stand for all of its tokens', and of all tiles together, between these limits."""
KEPT = 16
TOKENS, FRAME = "tokens", "frame"
"""Units of distances along rows and columns; frames are always counted."""
SCALED, HALVED = (16, 16, 16), 4.0
"""Grid of `Decay.scaled`, and the distance at which its weight halves."""


@functools.cache
def starts() -> tuple[int, ...]:
    """The first distance of each bin."""
    found = list(range(NEAR + 2))
    while found[-1] < MOST:
        found.append(int(found[-1] * GROWTH))
    return tuple(found)


def reach(size: int) -> int:
    """Bins on one side of an axis of `size` tokens, distance 0 not counted."""
    return int(np.searchsorted(starts(), size - 1, side="right")) - 1


def shape(size: int) -> tuple[int, int]:
    """Places and bins of the table of an axis of `size` tokens."""
    return min(size, PLACES), 2 * reach(size) + 1


def expand(table: Tensor, size: int, learned: int) -> Tensor:
    """The weight of each key for each query of an axis of any size: ``[size, size]``, queries first.

    Args:
        table: ``[places, bins]``. A query's place is the part of the axis that it is in; distances are those of an axis
            of `learned` tokens, and those farther than the table's have its last bins.
    """
    places, most = len(table), table.shape[1] // 2
    at = torch.arange(size)
    away = at - at[:, None]
    there = (2 * learned * away.abs() + size) // (2 * size)
    bins = torch.searchsorted(torch.tensor(starts()), there, right=True) - 1
    place = (2 * at + 1) * places // (2 * size)
    return table[place[:, None], bins.clamp(max=most) * away.sign() + most]


def fitted(weights: Tensor) -> Tensor:
    """The table of an axis: mean weights of its places and bins, ``[places, bins]``.

    Args:
        weights: fp64 ``[size, size]``, of each key for each query.
    """
    size = len(weights)
    places, bins = shape(size)
    cell = expand(torch.arange(places * bins).view(places, bins), size, size).flatten()
    mass = torch.zeros(places * bins, dtype=torch.float64).index_add_(0, cell, weights.flatten())
    pairs = torch.bincount(cell, minlength=places * bins).double()
    mass, pairs = mass.view(places, bins), pairs.view(places, bins)
    # A place near a border has no keys beyond it; on a larger grid it may have some: as the other places have.
    everywhere = mass.sum(0) / pairs.sum(0)
    return torch.where(pairs > 0, mass / pairs.clamp(min=1), everywhere)


@dataclass(frozen=True)
class Decay(Rule):
    """The blocks with most weight, where a pair's weight is the product of one factor for each axis of the clip.

    A factor depends on the distance between query and key, as attention with rotary embeddings does, and on the part
    of the axis that the query is in. Measured are the mean attention of a frame's queries to each frame, of a
    row's to each row and of a column's to each column: their product is the nearest to a head's attention, in
    Kullback-Leibler divergence, of all products of such factors.

    Args:
        axes: the token order in which it is executed.
        grid: frames, rows and columns where it was learned, 1 to 4096 each.
        weights: base64 of a byte for each place and bin (see `shape`), frames first, then rows, then columns: eight
            levels to a factor of two.
        unit: of distances along rows and columns on other grids: "tokens", or "frame" for models whose embeddings give
            every size of frame the same coordinates, such as CogVideoX 1.0.
        density: video density, in [0, 1]; the diagonal and blocks with text are always kept, and count.

    Raises:
        ValueError: a value out of range, no such order, or weights of another length.
    """

    name: ClassVar[str] = "decay"

    axes: str
    grid: tuple[int, ...]
    weights: str
    density: float
    unit: str = TOKENS

    def __post_init__(self) -> None:
        orders.check(self.axes)
        check_share("density", self.density)
        if self.unit not in (TOKENS, FRAME):
            raise ValueError(f"unit={self.unit!r} is neither {TOKENS} nor {FRAME}")
        if not isinstance(self.grid, tuple) or len(self.grid) != 3:
            raise ValueError(f"grid={self.grid!r} is not frames, rows and columns")
        for size in self.grid:
            check_side("grid", size, MOST)
        _levels(self.weights, self.grid)

    @property
    def order(self) -> str:
        return self.axes

    @classmethod
    def of(cls, weights: Sequence[Tensor], axes: str, density: float, unit: str = TOKENS) -> Decay:
        """From each axis's mean weights, fp64 ``[size, size]``, at least 0 and of any scale, queries first."""
        return cls(axes, tuple(map(len, weights)), _text(fitted(each) for each in weights), density, unit)

    @classmethod
    def scaled(cls, share: float) -> Pattern:
        """A weight that halves every four tokens along each axis."""
        away = [torch.arange(size).double() - torch.arange(size)[:, None] for size in SCALED]
        return cls.of([torch.exp2(-each.abs() / HALVED) for each in away], orders.NATURAL, share)

    def blocks(self, layout: TokenLayout, block: int) -> Tensor:
        placed = orders.placed(layout, self.axes)
        # One ranking serves every density.
        ranked, share = _ranked(replace(self, density=1.0), layout, block)
        kept = torch.zeros(len(ranked), dtype=torch.bool)
        kept[ranked[: int((share <= self.density + 1e-9).sum())]] = True
        tiles = math.isqrt(len(ranked))
        return cover.with_text(kept.view(tiles, tiles).fill_diagonal_(True), placed, block)


@functools.lru_cache(KEPT)
def _ranked(each: Decay, layout: TokenLayout, block: int) -> tuple[Tensor, Tensor]:
    """The blocks by falling weight, those first that are always kept, and the density of each with all before it."""
    placed = orders.placed(layout, each.axes)
    video = cover.video_in_tiles(placed, block)
    always = cover.with_text(torch.eye(len(video), dtype=torch.bool), placed, block)
    score = scores(each, layout, block).masked_fill_(always, float("inf"))
    ranked = score.flatten().argsort(descending=True, stable=True)
    return ranked, (video[:, None] * video).flatten()[ranked].cumsum(0) / layout.video_tokens**2


def scores(each: Decay, layout: TokenLayout, block: int) -> Tensor:
    """Mean weight of the sampled pairs of each pair of tiles: fp32 ``[tiles, tiles]``."""
    places, sizes = _sampled(layout, each.axes, block), (layout.frames, layout.height, layout.width)
    learned = sizes if each.unit == TOKENS else (layout.frames, *each.grid[1:])
    tiles = -(-layout.tokens // block)
    found = torch.zeros((), dtype=torch.int32)
    for table, size, there, place in zip(_levels(each.weights, each.grid), sizes, learned, places, strict=True):
        found = found + expand(table.int(), size, there)[place][:, place]
    # Levels add up exactly: pairs of equal weight are equal here on every machine.
    found = torch.exp2((torch.arange(3 * 255 + 1) - 3 * 255) / OCTAVE)[found]
    return found.view(tiles, -1, tiles, found.shape[1] // tiles).mean((1, 3))


def _sampled(layout: TokenLayout, axes: str, block: int) -> tuple[Tensor, ...]:
    """Frames, rows and columns of the tokens that stand for each tile: int64 ``[tiles * samples]`` each."""
    tiles, start = -(-layout.tokens // block), orders.placed(layout, axes).video_start
    samples = min(max(SAMPLED // tiles, LEAST_SAMPLED), MOST_SAMPLED)
    edge = torch.arange(tiles) * block - start
    low, high = edge.clamp(0, layout.video_tokens - 1), (edge + block).clamp(1, layout.video_tokens)
    part = 2 * torch.arange(samples) + 1
    position = low[:, None] + (high - low)[:, None] * part // (2 * samples)
    token = orders.video_order(layout, axes)[position.flatten()]
    return token // layout.frame_tokens, token // layout.width % layout.height, token % layout.width


def _text(tables: Iterable[Tensor]) -> str:
    levels = []
    for table in tables:
        top = table.max().clamp(min=torch.finfo(table.dtype).tiny)
        level = 255 + OCTAVE * (table / top).clamp(min=1e-30).log2()
        levels.append(level.round().clamp(0, 255).to(torch.uint8).flatten())
    return base64.b64encode(torch.cat(levels).numpy().tobytes()).decode("ascii")


@functools.lru_cache(KEPT)
def _levels(text: str, grid: tuple[int, ...]) -> tuple[Tensor, ...]:
    """The table of each axis: uint8 ``[places, bins]``.

    Raises:
        ValueError: weights of another length or alphabet.
    """
    shapes = [shape(size) for size in grid]
    counts = [places * bins for places, bins in shapes]
    try:
        data = base64.b64decode(text, validate=True) if isinstance(text, str) else b""
    except (binascii.Error, ValueError):
        data = b""
    if len(data) != sum(counts) or base64.b64encode(data).decode("ascii") != text:
        raise ValueError(f"weights of a grid of {'x'.join(map(str, grid))} are {sum(counts)} bytes as base64")
    parts = torch.from_numpy(np.frombuffer(data, np.uint8).copy()).split(counts)
    return tuple(part.view(each) for part, each in zip(parts, shapes, strict=True))

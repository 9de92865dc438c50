"""Candidates of single heads, made from where the attention of some prompts lies.

Decay keeps the blocks with most attention by distance along the clip's axes, which is alike at every resolution. Cells
keep the densest cells of the attention map in an axis order, the best of the six orders for each head, as PAROAttention
(arXiv 2506.16054) does; stripes keep the rows of the clip that most queries attend to, as Sparse-vDiT (arXiv
2506.03065) does, alone or beside a local window.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vidaccel.layout import TokenLayout
from vidaccel.patterns import Pattern, orders
from vidaccel.patterns.cells import Cells
from vidaccel.patterns.decay import Decay
from vidaccel.patterns.stripes import MOST, Stripes

if TYPE_CHECKING:
    from vidaccel.calibration.grid import Grid

LEVELS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7)
BEST_ORDERS = 2
"""Orders of a head that are tried at each level: those in which it keeps most of its attention."""
TINY = torch.finfo(torch.float64).tiny
WINDOWED = 0.5
"""Share of a stripes pattern's density that its local window has, where it has one."""


def decay(mass: Tensor, grid: Grid) -> list[Pattern]:
    """The blocks with most attention by distance at each level, in all orders.

    Args:
        mass: fp64, of `measure.by_axis`.
    """
    layout = grid.layout
    sizes = (layout.frames, layout.height, layout.width)
    parts = zip(mass.split([size * size for size in sizes]), sizes, strict=True)
    weights = [part.view(size, size) / part.view(size, size).sum(1, keepdim=True).clamp(min=TINY)
               for part, size in parts]  # fmt: skip
    return at_levels(Decay.of(weights, orders.NATURAL, 1.0, grid.unit), grid)


def at_levels(weights: Decay, grid: Grid) -> list[Pattern]:
    """A head's weights, wherever they were learned, at each level in all orders of a grid, 3-D tiles among them.

    Args:
        weights: of any order and density.
    """
    # All of them: what the weights say is kept does not rank orders as errors do, and measuring costs little.
    names = (*orders.AXES, "tile:{}x{}x{}".format(*orders.compact_tile(grid.layout, grid.block)))
    return [dataclasses.replace(weights, axes=name, density=level) for level in LEVELS for name in names]


def cells(mass: Tensor, grid: Grid) -> list[Pattern]:
    """The densest cells of a head's map at each level, in the best orders.

    Args:
        mass: fp64 ``[orders, side, side]``, the mean share of a query in a cell that goes to the keys of another.
    """
    side = mass.shape[-1]
    area = _weights(grid.layout, grid.block, side)
    found: list[Pattern] = []
    kept_of = [_densest(each, area) for each in mass]
    for level in LEVELS:
        kept = [each(level) for each in kept_of]
        held = [float((each * keep).sum()) for each, keep in zip(mass, kept, strict=True)]
        best = sorted(range(len(held)), key=lambda at: -held[at])[:BEST_ORDERS]
        found += [Cells.of(kept[at], orders.AXES[at]) for at in best]
    return found


def stripes(mass: Tensor, grid: Grid) -> list[Pattern]:
    """The rows of the clip with most mass at each level, without and with a local window.

    Args:
        mass: fp64 ``[frames, rows]``, what all queries attend to.
    """
    share = _stripe_density(mass, grid.layout, grid.block)
    order = mass.flatten().argsort(descending=True, stable=True)
    found: list[Pattern] = []
    for level, window in itertools.product(LEVELS, (0.0, WINDOWED)):
        kept = torch.zeros(mass.numel(), dtype=torch.bool)
        kept[order[: max(1, int((share <= level * (1 - window)).sum()))]] = True
        found.append(Stripes.of(kept.view(mass.shape), round(level * window / 2, 5)))
    return found


def elsewhere(made: Sequence[Pattern], grid: Grid) -> tuple[Pattern, ...]:
    """A head's candidates of one size for another: its weights on that grid, others as they are.

    Args:
        made: of the makers here, from one head's maps.
        grid: of the other size.
    """
    weights = [each for each in made if isinstance(each, Decay)]
    levels = at_levels(weights[0], grid) if weights else []
    return (*levels, *(each for each in made if not isinstance(each, Decay)))


def key_rows(mass: Tensor, layout: TokenLayout) -> Tensor:
    """The mass on each cell of `Stripes` from that on each key: fp64 ``[frames, rows]``, as fine as stripes can be.

    Args:
        mass: fp64 ``[video_tokens]``.
    """
    rows = mass.view(layout.frames, layout.height, layout.width).sum(-1)
    for axis, size in enumerate(rows.shape):
        parts = min(size, MOST)
        cell = (2 * torch.arange(size) + 1) * parts // (2 * size)
        ones = (cell[:, None] == torch.arange(parts)).double()
        rows = torch.tensordot(rows, ones, dims=([axis], [0])).movedim(-1, axis)
    return rows


MAKERS: Mapping[str, tuple[str, Callable[[Tensor, Grid], list[Pattern]]]] = {
    "cells": ("mass", cells),
    "decay": ("axes", decay),
    "stripes": ("keys", stripes),
}
"""By name: which map of a head it is made from, and how. Each makes as many for every head."""


def _densest(mass: Tensor, area: Tensor) -> Callable[[float], Tensor]:
    """From a density to the cells of most mass whose blocks have it together."""
    side = len(mass)
    ranked = mass.flatten().argsort(descending=True, stable=True)
    density = (area[:, None] * area).flatten()[ranked].cumsum(0)

    def kept(level: float) -> Tensor:
        chosen = torch.zeros(side * side, dtype=torch.bool)
        chosen[ranked[: int((density <= level).sum())]] = True
        return chosen.view(side, side)

    return kept


def _weights(layout: TokenLayout, block: int, side: int) -> Tensor:
    """The share of the video whose blocks follow each segment of `Cells`, those with their middle in it: ``[side]``."""
    edge = torch.arange(0, layout.video_tokens, block)
    end = (edge + block).clamp(max=layout.video_tokens)
    segment = ((edge + end) * side // (2 * layout.video_tokens)).clamp(max=side - 1)
    return torch.zeros(side, dtype=torch.float64).index_add_(0, segment, (end - edge).double()) / layout.video_tokens


def _stripe_density(mass: Tensor, layout: TokenLayout, block: int) -> Tensor:
    """Share of the key blocks that the ``n + 1`` rows of most mass touch, for each n: fp64 ``[cells]``."""
    frames, rows = mass.shape
    rank = torch.empty(mass.numel(), dtype=torch.int64)
    rank[mass.flatten().argsort(descending=True, stable=True)] = torch.arange(mass.numel())
    cell = ((2 * torch.arange(layout.frames) + 1) * frames // (2 * layout.frames))[:, None] * rows
    cell = cell + (2 * torch.arange(layout.height) + 1) * rows // (2 * layout.height)
    tile = torch.arange(layout.video_tokens) // block
    of_token = rank[cell][..., None].expand(layout.frames, layout.height, layout.width).flatten()
    # A block is kept as soon as the best row that touches it is.
    first = torch.full((int(tile[-1]) + 1,), mass.numel()).scatter_reduce_(0, tile, of_token, "amin")
    tokens = torch.bincount(tile).double()
    return torch.zeros(mass.numel(), dtype=torch.float64).index_add_(0, first, tokens).cumsum(0) / layout.video_tokens

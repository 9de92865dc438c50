"""How the cpu backend joins query tiles: runs of tiles, each computed with the union of their keys.

Joining saves calls and gathers and makes larger matrix products, but computes pairs that are masked away again; a
shortest path over the tiles, with a measured cost for each of these, picks the runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from vidaccel.kernels.cpu_patterns import TileKeys

MAX_BIAS = 1 << 20
"""Elements that the bias of one run may have (4 MiB): one that leaves the cache costs three times as much to add."""

# Measured as processor time of one thread on a Zen 5 EPYC, fp32, 4 heads of 64; only their relation matters.
RUN_US = 10.0
"""Fixed cost of a run: its entry in a call, the copy of its output."""
GATHER_BYTES_PER_US = 44_000.0
"""Gathering keys and values that are not contiguous."""
EXPAND_PER_US = 15_000.0
ADD_PER_US = 6_000.0
"""Elements of a bias that are expanded to rows, and added in one head."""
FLOP_PER_US = 95_000.0
RATES = ((768, 1.0), (192, 0.97), (128, 0.9), (32, 0.85), (0, 0.66))
"""In large products, and from how many query rows on which share of that is reached."""


@dataclass(frozen=True)
class Shape:
    """What the cost of a run depends on beside its rows and keys; lanes are the heads that it computes together."""

    lanes: int
    head_dim: int
    element_size: int


def spans(tiles: TileKeys, tile: int, queries: int, shape: Shape) -> list[tuple[int, int]]:
    """The runs ``[first, last)`` that cover all tiles with keys most cheaply; tiles without keys are in none.

    Args:
        tile: query rows of a tile.
        queries: query rows in all; the last tile may be short.
    """
    count = len(tiles.kept)
    sizes = _sizes(count)
    costs = [cost.tolist() for cost in _costs(tiles, tile, queries, shape, sizes)]
    best, taken = [0.0], [0]
    for end in range(1, count + 1):
        fitting = ((best[end - size] + costs[i][end - size], size) for i, size in enumerate(sizes) if size <= end)
        total, size = min(fitting)
        best.append(total)
        taken.append(size)
    cuts = [count]
    while cuts[-1]:
        cuts.append(cuts[-1] - taken[cuts[-1]])
    return [(first, last) for first, last in pairwise(reversed(cuts)) if bool(tiles.kept[first].any())]


def _sizes(count: int) -> list[int]:
    """Lengths of runs to consider: about two per doubling, and all tiles."""
    sizes = {size << power for power in range(count.bit_length()) for size in (1, 3)}
    return sorted({size for size in sizes if size < count} | {count})


def _costs(tiles: TileKeys, tile: int, queries: int, shape: Shape, sizes: list[int]) -> Iterator[Tensor]:
    """For each size, the microseconds of the run from each tile: ``[tiles - size + 1]``; inf where there is none."""
    widths, count = tiles.widths.float(), len(tiles.kept)
    any_tile = every_tile = tiles.kept
    empty = torch.nn.functional.pad((~tiles.kept.any(dim=1)).cumsum(0), (1, 0))
    have = 1
    for size in sizes:
        # Two overlapping runs of the size before make one of this: sizes at most double.
        runs, shift = count - size + 1, size - have
        any_tile = any_tile[:runs] | any_tile[shift : shift + runs]
        every_tile = every_tile[:runs] & every_tile[shift : shift + runs]
        have = size
        first = torch.arange(runs)
        rows = ((first + size) * tile).clamp(max=queries) - first * tile
        segments = torch.nn.functional.pad(any_tile, (1, 0)).int().diff(dim=1).clamp(min=0).sum(1)
        cost = _cost(rows, any_tile.float() @ widths, segments > 1,
                     (any_tile != every_tile).any(dim=1), shape)
        empties = empty[size:] - empty[:runs]
        cost[(empties > 0) & (empties < size)] = float("inf")
        cost[empties == size] = 0.0
        yield cost


def _cost(rows: Tensor, keys: Tensor, gathered: Tensor, biased: Tensor, shape: Shape) -> Tensor:
    """Microseconds of runs with so many query rows and keys."""
    rate = torch.ones_like(keys)
    for least, relative in reversed(RATES):
        rate[rows >= least] = relative
    compute = 4.0 * shape.lanes * shape.head_dim * rows * keys / (FLOP_PER_US * rate)
    gather = 2 * shape.lanes * shape.head_dim * shape.element_size * keys / GATHER_BYTES_PER_US
    elements = rows * keys
    bias = elements / EXPAND_PER_US + elements * shape.lanes / ADD_PER_US
    bias = torch.where(elements > MAX_BIAS, float("inf"), bias)
    return RUN_US + compute + gather * gathered + torch.where(biased, bias, 0.0)

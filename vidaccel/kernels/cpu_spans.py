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

from vidaccel.plan import BlockMask

HIDDEN = -1e30
"""Bias of a pair that is not attended. Finite, since a block of rows that sees only -inf first is NaN in some versions;
every row of a run has a key, so that these weights end as exact zeros."""
MAX_BIAS = 1 << 22
"""Elements that the bias of one run may have: 16 MiB."""

# Measured on 2 threads of a Zen 5 EPYC, fp32, 4 heads of 64; only their relation matters.
RUN_US = 12.0
"""Fixed cost of a run: its entry in a call, the copy of its output."""
GATHER_BYTES_PER_US = 15_000.0
"""Gathering keys and values that are not contiguous."""
BIAS_PER_US = 4_000.0
"""Elements of a bias that are expanded and added."""
FLOP_PER_US = 200_000.0
"""In large products."""
RATES = ((768, 1.0), (192, 0.92), (32, 0.83), (0, 0.7))
"""From how many query rows on which share of that is reached: the operator cuts 256, 64 or 32 rows at a time."""


@dataclass(frozen=True)
class Shape:
    """What the cost of a run depends on beside its rows and keys; lanes are the heads that it computes together."""

    lanes: int
    head_dim: int
    element_size: int


@dataclass(frozen=True)
class TileKeys:
    """The keys of every tile of one pattern, over the intervals between all ends of its ranges.

    Args:
        edges: sorted key positions, int64 ``[intervals + 1]``.
        kept: bool ``[tiles, intervals]``; within an interval a tile sees all keys or none.
    """

    edges: Tensor
    kept: Tensor

    @classmethod
    def of(cls, mask: BlockMask, pattern: int, length: int) -> TileKeys:
        """The keys below `length` of a pattern of `mask`."""
        offsets = mask.offsets[pattern].long()
        ranges = mask.ranges[offsets[0] : offsets[-1]].long().clamp(max=length)
        tile = torch.repeat_interleave(offsets.diff())
        valid = ranges[:, 0] < ranges[:, 1]
        edges, position = ranges[valid].unique(return_inverse=True)
        edge_steps = torch.zeros(mask.tiles, max(len(edges), 1), dtype=torch.int8)
        one = torch.ones(len(position), dtype=torch.int8)
        edge_steps.index_put_((tile[valid], position[:, 0]), one, accumulate=True)
        edge_steps.index_put_((tile[valid], position[:, 1]), -one, accumulate=True)
        return cls(edges, edge_steps.cumsum(1, dtype=torch.int8)[:, :-1].bool())

    @property
    def widths(self) -> Tensor:
        """Keys in each interval."""
        return self.edges.diff()

    def union(self, first: int, last: int) -> tuple[range | Tensor, Tensor | None]:
        """The keys that any tile of ``[first, last)`` sees, and the bias per tile that hides those others see."""
        kept = self.kept[first:last]
        seen = kept.any(dim=0).nonzero().flatten()
        starts, widths = self.edges[seen], self.widths[seen]
        bias = None
        if not bool(kept[:, seen].all()):
            bias = torch.zeros(kept[:, seen].shape).masked_fill_(~kept[:, seen], HIDDEN)
            bias = bias.repeat_interleave(widths, dim=1)
        start, stop, count = int(starts[0]), int(starts[-1] + widths[-1]), int(widths.sum())
        if stop - start == count:
            return range(start, stop), bias
        within = torch.arange(count) - torch.repeat_interleave(widths.cumsum(0) - widths, widths)
        return torch.repeat_interleave(starts, widths) + within, bias


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
    bias = torch.where(elements > MAX_BIAS, float("inf"), elements / BIAS_PER_US)
    return RUN_US + compute + gather * gathered + torch.where(biased, bias, 0.0)

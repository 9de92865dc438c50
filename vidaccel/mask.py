"""Which keys each tile of queries attends to: ranges per tile, never a tokens x tokens mask."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

RUN = 1 << 22
"""Blocks of the patterns that `BlockMask.from_blocks` makes ranges of at a time."""


@dataclass(frozen=True, eq=False)
class BlockMask:
    """The key ranges that each tile of query rows attends to, in CSR form.

    Tile ``t`` holds query rows ``[t * query_block, min((t + 1) * query_block, queries))``. Pattern ``p`` of tile ``t``
    attends to the keys of ``ranges[offsets[p, t]:offsets[p, t + 1]]``, each a sorted, disjoint, non-empty
    ``[start, end)``. Ranges are token-exact: what they name is attended, nothing else.

    `ranges` may be longer than what `offsets` uses: the slack at its end is ``[0, 0)``. So a mask can be made on a GPU
    without waiting for the number of its ranges.

    Args:
        offsets: int32 ``[patterns, tiles + 1]``, positions in `ranges`; patterns is 1 (all heads share), heads, or
            batch * heads (batch row slowest).
        ranges: int32 ``[capacity, 2]``.
        query_block, key_block: tile sizes in tokens; `key_block` is the granularity that the plan was made with.
        queries, keys: sequence lengths in tokens.

    Raises:
        ValueError: shapes or types that do not fit together; `validate` checks the contents.
    """

    offsets: Tensor
    ranges: Tensor
    query_block: int
    key_block: int
    queries: int
    keys: int
    _copies: dict[torch.device, BlockMask] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if min(self.query_block, self.key_block, self.queries, self.keys) < 1:
            raise ValueError("blocks and lengths of a BlockMask are at least one token")
        if self.offsets.dtype != torch.int32 or self.ranges.dtype != torch.int32:
            raise ValueError(f"a BlockMask is int32, got {self.offsets.dtype} and {self.ranges.dtype}")
        if self.offsets.ndim != 2 or self.offsets.shape[1] != self.tiles + 1:
            raise ValueError(f"offsets are [patterns, {self.tiles + 1}], got {list(self.offsets.shape)}")
        if self.ranges.ndim != 2 or self.ranges.shape[1] != 2:
            raise ValueError(f"ranges are [count, 2], got {list(self.ranges.shape)}")

    @classmethod
    def from_blocks(cls, blocks: Tensor, query_block: int, key_block: int, queries: int, keys: int) -> BlockMask:
        """Merge adjacent blocks of a boolean map ``[patterns, query blocks, key blocks]`` into ranges.

        The last range of a row is cut at `keys`. On a GPU nothing waits, and `ranges` has room for the most ranges that
        such a map can have, 4 bytes per block; on a CPU it is cut to those it has. `runs` says what it takes besides.
        """
        expected = (-(-queries // query_block), -(-keys // key_block))
        if blocks.ndim != 3 or tuple(blocks.shape[1:]) != expected or blocks.dtype != torch.bool:
            raise ValueError(
                f"a block map is bool [patterns, {expected[0]}, {expected[1]}], got {blocks.dtype} {list(blocks.shape)}"
            )
        numbers = torch.arange(expected[1], dtype=torch.int32, device=blocks.device) * key_block
        starts, ends = (each.expand(len(blocks), -1) for each in (numbers, (numbers + key_block).clamp(max=keys)))
        mask = cls(*runs(blocks, starts, ends, RUN), query_block, key_block, queries, keys)
        return mask.trimmed() if blocks.device.type == "cpu" else mask

    @classmethod
    def full(cls, queries: int, keys: int, query_block: int = 128, key_block: int = 128) -> BlockMask:
        """A mask that keeps every pair: one range per tile."""
        tiles = -(-queries // query_block)
        offsets = torch.arange(tiles + 1, dtype=torch.int32)[None]
        ranges = torch.tensor([[0, keys]], dtype=torch.int32).repeat(tiles, 1)
        return cls(offsets, ranges, query_block, key_block, queries, keys)

    @classmethod
    def stack(cls, masks: Sequence[BlockMask]) -> BlockMask:
        """The patterns of several masks one after the other; what they share of blocks and lengths must be equal.

        Raises:
            ValueError: no mask, or some that do not fit together. Waits for a GPU.
        """
        if not masks:
            raise ValueError("there is no mask to stack")
        first, *others = masks = [mask.trimmed() for mask in masks]
        sizes = (first.query_block, first.key_block, first.queries, first.keys)
        for mask in others:
            if (mask.query_block, mask.key_block, mask.queries, mask.keys) != sizes:
                raise ValueError(f"a mask of query block, key block, queries and keys {sizes} does not fit another")
        if not others:
            return first
        before = torch.tensor([0, *(len(mask.ranges) for mask in masks)]).cumsum(0).tolist()
        offsets = torch.cat([mask.offsets + start for mask, start in zip(masks, before[:-1], strict=True)])
        return cls(offsets, torch.cat([mask.ranges for mask in masks]), *sizes)

    @classmethod
    def join(cls, masks: Sequence[BlockMask], index: Tensor, room: int) -> BlockMask:
        """Patterns of several masks in any order; unlike with `stack`, nothing waits for a GPU.

        Args:
            masks: of one device, of equal query blocks and lengths. Of their key blocks the result has the smallest.
            index: int ``[patterns of the new mask]`` on that device: pattern ``i`` of the result is pattern
                ``index[i]`` of the masks one after the other. Not checked.
            room: on a GPU, ranges that the result has place for: as many as it can need.

        Raises:
            ValueError: no mask, or some that do not fit together.
        """
        if not masks or len({(mask.query_block, mask.queries, mask.keys) for mask in masks}) > 1:
            raise ValueError("masks to join have equal query blocks, queries and keys, and there is at least one")
        before = [sum(len(mask.ranges) for mask in masks[:at]) for at in range(len(masks))]
        offsets = torch.cat([mask.offsets + start for mask, start in zip(masks, before, strict=True)])
        ranges, key_block = torch.cat([mask.ranges for mask in masks]), min(mask.key_block for mask in masks)
        # Slack may stand between the masks' ranges here: picking closes the gaps.
        pool = dataclasses.replace(masks[0], offsets=offsets, ranges=ranges, key_block=key_block, _copies={})
        return pool._picked(index.long(), room)

    def pick(self, index: Tensor) -> BlockMask:
        """The mask whose pattern ``i`` is this one's pattern ``index[i]``; on a GPU nothing waits.

        Args:
            index: int ``[patterns of the new mask]`` on this mask's device, in ``[0, patterns)``, which is not checked.
        """
        # Room for the most that any pick can need.
        return self._picked(index.long(), len(index) * self.most_ranges)

    def _picked(self, index: Tensor, room: int) -> BlockMask:
        """See `pick`; `room` is for the ranges of a mask on a GPU, where their number would be waited for."""
        counts = self.offsets[:, -1] - self.offsets[:, 0]
        ends = counts[index].cumsum(0, dtype=torch.int32)
        starts = ends - counts[index]
        offsets = self.offsets[index] - self.offsets[index, :1] + starts[:, None]
        capacity = int(ends[-1]) if ends.device.type == "cpu" else room
        place = torch.arange(capacity, dtype=torch.int32, device=ends.device)
        lane = torch.searchsorted(ends, place, right=True).clamp_(max=len(index) - 1)
        source = (self.offsets[index[lane], 0] + place - starts[lane]).clamp_(max=len(self.ranges) - 1)
        ranges = torch.where((place < ends[-1])[:, None], self.ranges[source.long()], 0)
        return dataclasses.replace(self, offsets=offsets, ranges=ranges, _copies={})

    @cached_property
    def range_length(self) -> int:
        """Mean length of the ranges, for kernels to choose their steps by.

        Counting would wait for a GPU: a mask that was made there has `key_block`, the least that it can be.
        """
        if self.ranges.device.type != "cpu" or not len(self.ranges):
            return self.key_block
        used = max(1, int(self.offsets[-1, -1]))
        return max(1, int((self.ranges[:, 1] - self.ranges[:, 0]).sum()) // used)

    @cached_property
    def most_ranges(self) -> int:
        """No pattern has more ranges. A mask that was made on a GPU has all of them, as counting would wait."""
        if self.offsets.device.type != "cpu":
            return len(self.ranges)
        return int((self.offsets[:, -1] - self.offsets[:, 0]).max())

    @property
    def patterns(self) -> int:
        """Rows of `offsets`: 1, heads, or batch * heads."""
        return self.offsets.shape[0]

    @property
    def tiles(self) -> int:
        """Query tiles per pattern."""
        return -(-self.queries // self.query_block)

    @property
    def nbytes(self) -> int:
        """Bytes held by the plan's tensors."""
        return self.offsets.nbytes + self.ranges.nbytes

    def to(self, device: torch.device | str) -> BlockMask:
        """The same mask on `device`; copies are kept, so asking again is free."""
        device = torch.device(device)
        if device == self.offsets.device:
            return self
        if device not in self._copies:
            offsets, ranges = self.offsets.to(device), self.ranges.to(device)
            copy = dataclasses.replace(self, offsets=offsets, ranges=ranges, _copies={})
            copy.__dict__.update(range_length=self.range_length, most_ranges=self.most_ranges)
            self._copies[device] = copy
        return self._copies[device]

    def trimmed(self) -> BlockMask:
        """The same mask without slack. Waits for a GPU."""
        used = int(self.offsets[-1, -1])
        if used == len(self.ranges):
            return self
        return dataclasses.replace(self, ranges=self.ranges[:used].clone(), _copies={})

    def row_of_range(self) -> Tensor:
        """For each range its (pattern * tiles + tile): int64 ``[capacity]``; of slack, the last row."""
        last = self.patterns * self.tiles - 1
        place = torch.arange(len(self.ranges), dtype=torch.int32, device=self.ranges.device)
        return torch.searchsorted(self.offsets[:, 1:].reshape(-1).contiguous(), place, right=True).clamp_(max=last)

    def validate(self) -> None:
        """Check the contents: every range in bounds, non-empty, sorted and disjoint within its row.

        Raises:
            ValueError: what is wrong. Reads the tensors, so it waits for a GPU.
        """
        offsets, (start, end) = self.offsets.long(), self.ranges.long().unbind(1)
        ordered = bool((offsets[:, 1:] >= offsets[:, :-1]).all()) and bool((offsets[1:, 0] == offsets[:-1, -1]).all())
        used = int(offsets[-1, -1])
        if not ordered or int(offsets[0, 0]) != 0 or used > len(self.ranges) or bool(self.ranges[used:].any()):
            raise ValueError("offsets of a BlockMask rise from 0 to the number of ranges; what follows is [0, 0)")
        start, end = start[:used], end[:used]
        if bool(((start < 0) | (end > self.keys) | (start >= end)).any()):
            raise ValueError(f"a BlockMask holds an empty range or one outside [0, {self.keys})")
        row = self.row_of_range()[:used]
        if bool(((row[1:] == row[:-1]) & (start[1:] < end[:-1])).any()):
            raise ValueError("ranges of a BlockMask row overlap or are not sorted")

    def to_dense(self) -> Tensor:
        """The boolean ``[patterns, queries, keys]`` mask, for tests and pictures of small grids only."""
        steps = torch.zeros(self.patterns * self.tiles, self.keys + 1, dtype=torch.int32, device=self.ranges.device)
        row, (start, end) = self.row_of_range(), self.ranges.long().unbind(1)
        one = torch.ones_like(row, dtype=torch.int32)
        steps.index_put_((row, start), one, accumulate=True).index_put_((row, end), -one, accumulate=True)
        tiles = steps.cumsum(1)[:, :-1].bool().view(self.patterns, self.tiles, self.keys)
        return tiles.repeat_interleave(self.query_block, dim=1)[:, : self.queries]


def runs(kept: Tensor, starts: Tensor, ends: Tensor, at_once: int) -> tuple[Tensor, Tensor]:
    """Offsets and ranges, as of a `BlockMask`, of runs of kept columns that stand side by side.

    Nothing waits: there is a range for every run that there could be, half as many as cells, and after those that there
    are come zeros. Besides these it takes about 30 bytes for each of the cells that it works on at a time.

    Args:
        kept: bool ``[patterns, tiles, columns]``, the cells.
        starts, ends: int32 ``[patterns, columns]``, of the columns in tokens.
        at_once: cells that are worked on at a time; those of a pattern are.
    """
    patterns, tiles, columns = kept.shape
    capacity = patterns * tiles * -(-columns // 2)
    ranges = kept.new_zeros((capacity + 1, 2), dtype=torch.int32)
    offsets = kept.new_zeros((patterns, tiles + 1), dtype=torch.int32)
    taken = offsets.new_zeros(1)
    step = max(1, at_once // (tiles * columns))
    for first in range(0, patterns, step):
        some = slice(first, first + step)
        offsets[some] = _put_runs(kept[some], starts[some], ends[some], taken, ranges)
        taken = offsets[some][-1, -1:]
    return offsets, ranges[:capacity]


def _put_runs(kept: Tensor, starts: Tensor, ends: Tensor, taken: Tensor, ranges: Tensor) -> Tensor:
    """Put the runs of some patterns into `ranges` after the first `taken`; their offsets."""
    edge = torch.nn.functional.pad(kept, (1, 1))
    begins, closes = kept & ~edge[..., :-2], kept & ~edge[..., 2:]
    for side, (marks, values) in enumerate(((begins, starts), (closes, ends))):
        # What is no border is written to one spare place, so that no shape depends on the marks.
        place = marks.flatten().cumsum(0).add_(taken - 1).masked_fill_(~marks.flatten(), len(ranges) - 1)
        ranges[:, side].scatter_(0, place, values[:, None].expand(marks.shape).reshape(-1))
    rows = begins.sum(2, dtype=torch.int32)
    upto = torch.nn.functional.pad(rows.flatten().cumsum(0, dtype=torch.int32), (1, 0)) + taken
    return torch.cat([upto[:-1].view(rows.shape), upto[rows.shape[1] :: rows.shape[1], None]], dim=1)

"""What the tiles of a mask see, as the cpu backend plans it: which heads see the same, and which keys those are."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor

from vidaccel.kernels.cpu_bias import HIDDEN
from vidaccel.plan import BlockMask


@dataclass(frozen=True)
class Call:
    """What a program depends on beside the mask: the shape of the call and the valid keys of each batch row."""

    batch: int
    heads: int
    head_dim: int
    element_size: int
    lengths: tuple[int, ...] | None


@dataclass(frozen=True)
class Owners:
    """Who computes the same: batch rows with all their heads (`heads` None) or single (batch row, head) pairs."""

    pattern: int
    valid_keys: int
    rows: tuple[int, ...]
    heads: tuple[int, ...] | None


def owners(mask: BlockMask, call: Call) -> list[Owners]:
    """All work of a call, put together where the pattern, its equals included, and the valid keys are the same."""
    first_like = _first_like(mask)
    whole: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
    single: defaultdict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    for row, length in enumerate(call.lengths or (mask.keys,) * call.batch):
        valid = min(max(length, 0), mask.keys)
        patterns = [first_like[(row * call.heads + head) % mask.patterns] for head in range(call.heads)]
        if len(set(patterns)) == 1:
            whole[patterns[0], valid].append(row)
            continue
        for head, pattern in enumerate(patterns):
            single[pattern, valid].append((row, head))
    together = [Owners(pattern, valid, tuple(rows), None) for (pattern, valid), rows in whole.items()]
    for (pattern, valid), pairs in single.items():
        rows_of, heads_of = zip(*pairs, strict=True)
        together.append(Owners(pattern, valid, rows_of, heads_of))
    return together


def _first_like(mask: BlockMask) -> list[int]:
    """For each pattern the first one that is equal to it."""
    starts = mask.offsets[:, 0].tolist()
    seen: dict[tuple[bytes, bytes], int] = {}
    result = []
    for pattern, (start, stop) in enumerate(zip(starts, [*starts[1:], int(mask.offsets[-1, -1])], strict=True)):
        counts = (mask.offsets[pattern] - start).numpy().tobytes()
        result.append(seen.setdefault((counts, mask.ranges[start:stop].numpy().tobytes()), pattern))
    return result


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

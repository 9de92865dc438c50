"""A mask cut to some query rows and some keys: what one process of a ring computes at a time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from vidaccel.mask import BlockMask

Span = tuple[int, int]
"""Tokens ``[start, end)`` of a sequence."""


def cut_rows(mask: BlockMask, rows: Span) -> BlockMask:
    """The tiles of a mask that hold some query rows.

    Row ``r`` is row ``r - rows[0] + front_of(mask, rows)`` of the result: tiles stay whole at the front, so that the
    queries that stand before `rows` in the first of them need padding there. Waits for a GPU.

    Raises:
        ValueError: no rows, or some that the mask does not have.
    """
    start, end = rows
    if not 0 <= start < end <= mask.queries:
        raise ValueError(f"rows [{start}, {end}) are none of [0, {mask.queries})")
    first, last = start // mask.query_block, -(-end // mask.query_block)
    offsets = mask.offsets[:, first : last + 1].cpu().long()
    ranges = mask.ranges.cpu()
    picked = [ranges[low:high] for low, high in zip(offsets[:, 0].tolist(), offsets[:, -1].tolist(), strict=True)]
    ranges = torch.cat(picked)
    queries = end - first * mask.query_block
    return BlockMask(_offsets(offsets.diff(dim=1)), ranges, mask.query_block, mask.key_block, queries, mask.keys)


def front_of(mask: BlockMask, rows: Span) -> int:
    """Queries that stand before some rows in the first tile that holds any of them."""
    return rows[0] % mask.query_block


def cut_columns(mask: BlockMask, columns: Sequence[Span]) -> BlockMask:
    """What a mask keeps of some keys, which then stand side by side; ranges that touch become one.

    Args:
        columns: disjoint, not empty and in order.

    Raises:
        ValueError: no columns, or such as a mask cannot be cut to. Waits for a GPU.
    """
    edges = [edge for span in columns for edge in span]
    fits = bool(edges) and edges[0] >= 0 and edges[-1] <= mask.keys
    if not fits or edges != sorted(edges) or any(start == end for start, end in columns):
        raise ValueError(f"columns {list(columns)} are not disjoint spans in order of [0, {mask.keys})")
    mask = mask.to("cpu").trimmed()
    row, start, end = _within(mask.row_of_range(), mask.ranges.long(), columns)
    apart = (row[1:] != row[:-1]) | (end[:-1] != start[1:])
    # Of no ranges, the padding alone would make one.
    begins, closes = (pad(apart, sides, value=True)[: len(row)] for sides in ((1, 0), (0, 1)))
    counts = torch.bincount(row[begins], minlength=mask.patterns * mask.tiles).view(mask.patterns, mask.tiles)
    ranges = torch.stack([start[begins], end[closes]], dim=1).int()
    keys = sum(end - start for start, end in columns)
    return BlockMask(_offsets(counts), ranges, mask.query_block, mask.key_block, mask.queries, keys)


def _within(row: Tensor, ranges: Tensor, columns: Sequence[Span]) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, starts and ends of ranges within `columns`, counted in these, by row and in order."""
    parts, before = [], 0
    for low, high in columns:
        inside = ranges.clamp(low, high) + (before - low)
        kept = inside[:, 0] < inside[:, 1]
        parts.append((row[kept], inside[kept]))
        before += high - low
    rows, found = torch.cat([each for each, _ in parts]), torch.cat([each for _, each in parts])
    # Stable: in a row the spans of columns are in order already, and the ranges of a span, too.
    rows, order = rows.sort(stable=True)
    start, end = found[order].unbind(1)
    return rows, start, end


def _offsets(counts: Tensor) -> Tensor:
    """Offsets, as of a `BlockMask`, of ranges that so many ``[patterns, tiles]`` are of a tile."""
    ends = counts.flatten().cumsum(0).view(counts.shape)
    return torch.cat([ends[:, :1] - counts[:, :1], ends], dim=1).int()

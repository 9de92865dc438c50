"""The dense calls that the cpu backend makes of a mask, planned once per mask and kept as long as it lives."""

from __future__ import annotations

import weakref
from dataclasses import dataclass

import torch
from torch import Tensor

from vidaccel.kernels.cpu_spans import Shape, TileKeys, spans
from vidaccel.plan import BlockMask

KEPT_BIAS = 1 << 22
"""Elements of expanded biases that one program keeps (16 MiB); past it they are expanded in each call."""
KEPT_PROGRAMS = 8
"""Programs kept per mask: shapes and prompt lengths that alternate."""


@dataclass(frozen=True)
class Call:
    """What a program depends on beside the mask: the shape of the call, threads and valid keys per batch row."""

    batch: int
    heads: int
    head_dim: int
    element_size: int
    threads: int
    lengths: tuple[int, ...] | None


@dataclass(frozen=True)
class Piece:
    """One dense call: a rectangle of batch rows and heads, consecutive query rows, and the keys that any of them sees.

    Args:
        keys: a slice, or the sorted positions to gather, int64.
        bias: None where every row sees every key; else fp32 ``[tiles or rows, keys]``, added to the scores.
        tile: query rows per row of `bias`.
    """

    batch: slice
    heads: slice
    rows: slice
    keys: slice | Tensor
    bias: Tensor | None
    tile: int

    def row_bias(self, dtype: torch.dtype) -> Tensor | None:
        """The bias of each query row: ``[rows, keys]``, as the operator wants it for `dtype`."""
        if self.bias is None:
            return None
        count = self.rows.stop - self.rows.start
        wide = self.bias if len(self.bias) == count else _expand(self.bias, self.tile, count)
        return wide.double() if dtype == torch.float64 else wide


@dataclass(frozen=True)
class Program:
    """All dense calls of one mask; `covers_all` is False where some row has no keys."""

    pieces: tuple[Piece, ...]
    covers_all: bool


_programs: weakref.WeakKeyDictionary[BlockMask, dict[Call, Program]] = weakref.WeakKeyDictionary()


def program(mask: BlockMask, call: Call) -> Program:
    """The dense calls that compute `mask`, planned on first use and kept as long as the mask lives."""
    kept = _programs.setdefault(mask, {})
    if call not in kept:
        if not kept:
            mask.validate()
        while len(kept) >= KEPT_PROGRAMS:
            kept.pop(next(iter(kept)))
        kept[call] = _plan(mask, call)
    return kept[call]


def _plan(mask: BlockMask, call: Call) -> Program:
    pieces: list[Piece] = []
    covers_all, room = True, KEPT_BIAS
    for (pattern, length), rectangles in _shared(mask, call).items():
        tiles = TileKeys.of(mask, pattern, length)
        lanes = max((b.stop - b.start) * (h.stop - h.start) for b, h in rectangles)
        shape = Shape(lanes, call.head_dim, call.element_size, call.threads)
        covers_all &= bool(tiles.kept.any(dim=1).all())
        for first, last in spans(tiles, mask.query_block, mask.queries, shape):
            rows = slice(first * mask.query_block, min(last * mask.query_block, mask.queries))
            keys, bias = tiles.union(first, last)
            if bias is not None and (rows.stop - rows.start) * bias.shape[1] <= room:
                bias = _expand(bias, mask.query_block, rows.stop - rows.start)
                room -= bias.numel()
            pieces += [Piece(b, h, rows, keys, bias, mask.query_block) for b, h in rectangles]
    return Program(tuple(pieces), covers_all)


def _expand(bias: Tensor, tile: int, rows: int) -> Tensor:
    tiles, keys = bias.shape
    return bias[:, None].expand(tiles, tile, keys).reshape(-1, keys)[:rows]


def _shared(mask: BlockMask, call: Call) -> dict[tuple[int, int], list[tuple[slice, slice]]]:
    """The (batch rows, heads) rectangles that compute the same: same keys of a pattern, same valid length."""
    first_like = _first_like(mask)
    lengths = call.lengths or (mask.keys,) * call.batch
    rectangles: dict[tuple[int, int], list[tuple[slice, slice]]] = {}
    for row, length in enumerate(lengths):
        valid = min(max(length, 0), mask.keys)
        work = [(first_like[(row * call.heads + head) % mask.patterns], valid) for head in range(call.heads)]
        start = 0
        for head in range(1, call.heads + 1):
            if head == call.heads or work[head] != work[start]:
                _add(rectangles.setdefault(work[start], []), row, slice(start, head))
                start = head
    return rectangles


def _add(rectangles: list[tuple[slice, slice]], row: int, heads: slice) -> None:
    """Add heads of a batch row, joined to the rectangle of the row before where it has the same heads."""
    for index, (rows, others) in enumerate(rectangles):
        if others == heads and rows.stop == row:
            rectangles[index] = (slice(rows.start, row + 1), heads)
            return
    rectangles.append((slice(row, row + 1), heads))


def _first_like(mask: BlockMask) -> list[int]:
    """For each pattern the first one that is equal to it."""
    starts, seen, result = mask.offsets[:, 0].tolist(), {}, []
    for pattern, (start, stop) in enumerate(zip(starts, [*starts[1:], len(mask.ranges)], strict=True)):
        counts = (mask.offsets[pattern] - start).numpy().tobytes()
        content = (counts, mask.ranges[start:stop].numpy().tobytes())
        result.append(seen.setdefault(content, pattern))
    return result

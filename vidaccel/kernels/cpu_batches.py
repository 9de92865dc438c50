"""The dense calls that the cpu backend makes of a mask, planned once per mask and kept as long as it lives.

Equal runs of tiles go into one call, as batch entries: a barrier between the threads costs more than a small call,
above all on a machine that has other work.
"""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from vidaccel.kernels.cpu_spans import HIDDEN, Shape, TileKeys, spans
from vidaccel.plan import BlockMask

KEPT_PROGRAMS = 8
"""Programs kept per mask: shapes and prompt lengths that alternate."""
GATHER_BYTES = 4 << 20
"""Keys and values that one call gathers; what stays in cache is gathered several times faster."""
PADDING = 1.1
"""Runs whose numbers of keys differ by at most this factor may share a call; the shorter are padded."""
ALONE = 1 << 19
"""Pairs times lanes from which a run on contiguous keys is better a call of its own than gathered into a shared one."""


@dataclass(frozen=True)
class Call:
    """What a program depends on beside the mask: the shape of the call and the valid keys of each batch row."""

    batch: int
    heads: int
    head_dim: int
    element_size: int
    lengths: tuple[int, ...] | None


@dataclass(frozen=True)
class Bias:
    """What hides keys from rows: fp32 ``[count, tiles, keys]``, or ``[count, 1, keys]`` with `tile` 0 for all rows."""

    values: Tensor
    tile: int
    rows: int

    def per_row(self, dtype: torch.dtype) -> Tensor:
        """As the operator adds it to the scores: ``[count, 1, rows or 1, keys]``."""
        values = self.values.double() if dtype == torch.float64 else self.values
        if self.tile:
            values = values.repeat_interleave(self.tile, dim=1)[:, : self.rows]
        return values[:, None]


@dataclass(frozen=True)
class Window:
    """One dense call of `count` runs at equal distance `step`, with equally many contiguous keys: nothing is copied."""

    batch: int
    heads: slice
    count: int
    step: int
    row_start: int
    rows: int
    key_start: int
    keys: int
    bias: Bias | None


@dataclass(frozen=True)
class Gathered:
    """One dense call of runs whose rows ``[count, rows]`` and keys ``[count, keys]`` are picked by number.

    `whole` numbers count ``batch * tokens`` (all heads together); else they count ``batch * tokens * heads``.
    """

    whole: bool
    rows: Tensor
    keys: Tensor
    bias: Bias | None


@dataclass(frozen=True)
class Program:
    """All dense calls of one mask; `covers_all` is False where some row has no keys."""

    parts: tuple[Window | Gathered, ...]
    covers_all: bool


@dataclass(frozen=True)
class Run:
    """One run of tiles of one batch row, for all heads (`head` None) or one."""

    batch: int
    head: int | None
    start: int
    rows: int
    keys: range | Tensor
    bias: Tensor | None

    @property
    def length(self) -> int:
        return len(self.keys)


_programs: weakref.WeakKeyDictionary[BlockMask, dict[Call, Program]] = weakref.WeakKeyDictionary()


def program(mask: BlockMask, call: Call) -> Program:
    """The dense calls that compute `mask`, planned on first use and kept as long as the mask lives.

    Raises:
        ValueError: the mask's contents are not valid.
    """
    kept = _programs.setdefault(mask, {})
    if call not in kept:
        if not kept:
            mask.validate()
        while len(kept) >= KEPT_PROGRAMS:
            kept.pop(next(iter(kept)))
        kept[call] = _plan(mask, call)
    return kept[call]


def _plan(mask: BlockMask, call: Call) -> Program:
    windows, loose, covers_all = defaultdict(list), defaultdict(list), True
    for (pattern, length), owners in _shared(mask, call).items():
        tiles = TileKeys.of(mask, pattern, length)
        covers_all &= bool(tiles.kept.any(dim=1).all())
        lanes = call.heads if owners[0][1] is None else 1
        shape = Shape(lanes, call.head_dim, call.element_size)
        for first, last in spans(tiles, mask.query_block, mask.queries, shape):
            start = first * mask.query_block
            rows = min(last * mask.query_block, mask.queries) - start
            keys, bias = tiles.union(first, last)
            runs = [Run(batch, head, start, rows, keys, bias) for batch, head in owners]
            biased = bias is not None
            if isinstance(keys, range):
                for run in runs:
                    windows[run.batch, run.head, rows, run.length, biased].append(run)
            else:
                loose[runs[0].head is None, rows, biased].extend(runs)
    parts: list[Window | Gathered] = []
    for (_, head, rows, _, biased), runs in windows.items():
        for series in _series(runs):
            if len(series) > 1 or rows * runs[0].length * (call.heads if head is None else 1) >= ALONE:
                parts.append(_window(series, mask.query_block))
            else:
                loose[head is None, rows, biased].extend(series)
    for (whole, _, _), runs in loose.items():
        width = call.head_dim * (call.heads if whole else 1)
        parts += [_gathered(group, mask, call.heads) for group in _groups(runs, 2 * width * call.element_size)]
    return Program(tuple(parts), covers_all)


def _series(runs: list[Run]) -> Iterator[list[Run]]:
    """Cut runs, sorted by their rows, into longest series whose rows and keys advance by the same step."""
    series: list[Run] = []
    for run in runs:
        if series and not _continues(series, run):
            yield series
            series = []
        series.append(run)
    yield series


def _continues(series: list[Run], run: Run) -> bool:
    last = series[-1]
    step = run.start - last.start
    return step == _first_key(run) - _first_key(last) and (len(series) == 1 or step == last.start - series[-2].start)


def _first_key(run: Run) -> int:
    return int(run.keys[0])


def _window(series: list[Run], tile: int) -> Window:
    first = series[0]
    step = series[1].start - first.start if len(series) > 1 else first.rows
    heads = slice(None) if first.head is None else slice(first.head, first.head + 1)
    return Window(first.batch, heads, len(series), step, first.start, first.rows, _first_key(first), first.length,
                  _bias(series, first.length, tile))


def _bias(runs: list[Run], length: int, tile: int) -> Bias | None:
    """The bias of runs that all have one or all have none, and that hides the padding up to `length` keys."""
    if runs[0].bias is None and all(run.length == length for run in runs):
        return None
    biases = (torch.zeros(1, run.length) if run.bias is None else run.bias for run in runs)
    values = torch.stack([torch.nn.functional.pad(each, (0, length - each.shape[1]), value=HIDDEN) for each in biases])
    return Bias(values, 0 if runs[0].bias is None else tile, runs[0].rows)


def _groups(runs: list[Run], key_bytes: int) -> Iterator[list[Run]]:
    """Cut runs of equal rows into groups of nearly equal keys whose gathered bytes stay small."""
    group: list[Run] = []
    for run in sorted(runs, key=lambda run: run.length):
        fits = group and run.length <= PADDING * group[0].length
        if group and not (fits and (len(group) + 1) * run.length * key_bytes <= GATHER_BYTES):
            yield group
            group = []
        group.append(run)
    yield group


def _gathered(runs: list[Run], mask: BlockMask, heads: int) -> Gathered:
    longest = max(run.length for run in runs)
    rows = [_numbers(torch.arange(run.start, run.start + run.rows), run, mask.queries, heads) for run in runs]
    keys = [_numbers(_padded(run.keys, longest), run, mask.keys, heads) for run in runs]
    return Gathered(runs[0].head is None, torch.stack(rows), torch.stack(keys), _bias(runs, longest, mask.query_block))


def _padded(keys: range | Tensor, length: int) -> Tensor:
    """Key positions, repeated up to `length`: a padding key is read like any other and then hidden."""
    positions = torch.arange(keys.start, keys.stop) if isinstance(keys, range) else keys
    return torch.cat([positions, positions[-1:].expand(length - len(positions))])


def _numbers(positions: Tensor, run: Run, tokens: int, heads: int) -> Tensor:
    """Row numbers of token positions, of all heads together or of one."""
    rows = positions + run.batch * tokens
    return rows if run.head is None else rows * heads + run.head


def _shared(mask: BlockMask, call: Call) -> dict[tuple[int, int], list[tuple[int, int | None]]]:
    """Who computes what: for each (pattern, valid keys) the (batch row, head), head None for all of a row."""
    first_like = _first_like(mask)
    owners: defaultdict[tuple[int, int], list[tuple[int, int | None]]] = defaultdict(list)
    for row, length in enumerate(call.lengths or (mask.keys,) * call.batch):
        valid = min(max(length, 0), mask.keys)
        patterns = [first_like[(row * call.heads + head) % mask.patterns] for head in range(call.heads)]
        together: Iterable[int | None] = range(call.heads)
        if len(set(patterns)) == 1:
            together = (None,)
        for head in together:
            owners[patterns[head or 0], valid].append((row, head))
    return owners


def _first_like(mask: BlockMask) -> list[int]:
    """For each pattern the first one that is equal to it."""
    starts = mask.offsets[:, 0].tolist()
    seen: dict[tuple[bytes, bytes], int] = {}
    result = []
    for pattern, (start, stop) in enumerate(zip(starts, [*starts[1:], len(mask.ranges)], strict=True)):
        counts = (mask.offsets[pattern] - start).numpy().tobytes()
        result.append(seen.setdefault((counts, mask.ranges[start:stop].numpy().tobytes()), pattern))
    return result

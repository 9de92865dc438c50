"""The dense calls that the cpu backend makes of a mask, planned once per mask and kept as long as it lives.

Equal runs of tiles go into one call, as batch entries: a barrier between the threads costs more than a small call,
above all on a machine that has other work.
"""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from vidaccel.kernels.cpu_bias import HIDDEN, Bias
from vidaccel.kernels.cpu_patterns import Call, TileKeys, owners
from vidaccel.kernels.cpu_spans import MAX_BIAS, Shape, spans
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
    heads: int

    @cached_property
    def gathered(self) -> int:
        """Rows of one head that the largest gather of queries, keys or values picks."""
        parts = (part for part in self.parts if isinstance(part, Gathered))
        return max((max(part.rows.numel(), part.keys.numel()) * (self.heads if part.whole else 1) for part in parts),
                   default=0)

    @cached_property
    def bias_elements(self) -> int:
        """Elements of the largest bias, expanded to rows."""
        return max((part.bias.elements for part in self.parts if part.bias), default=0)


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
        """Keys of the run."""
        return len(self.keys)

    @property
    def pairs(self) -> int:
        """Query-key pairs that it computes in a head."""
        return self.rows * self.length


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
    runs, covers_all = [], True
    for group in owners(mask, call):
        tiles = TileKeys.of(mask, group.pattern, group.valid_keys)
        covers_all &= bool(tiles.kept.any(dim=1).all())
        shape = Shape(call.heads if group.heads is None else 1, call.head_dim, call.element_size)
        for first, last in spans(tiles, mask.query_block, mask.queries, shape):
            start, stop = first * mask.query_block, min(last * mask.query_block, mask.queries)
            keys, bias = tiles.union(first, last)
            runs += [Run(row, head, start, stop - start, keys, bias)
                     for row, head in zip(group.rows, group.heads or (None,) * len(group.rows), strict=True)]
    return Program(tuple(_parts(runs, mask, call)), covers_all, call.heads)


def _parts(runs: list[Run], mask: BlockMask, call: Call) -> Iterator[Window | Gathered]:
    """Put runs into calls: on views of the keys where that makes few calls, else gathered together."""
    contiguous, loose = defaultdict(list), defaultdict(list)
    for run in runs:
        if isinstance(run.keys, range):
            contiguous[run.batch, run.head, run.rows, run.length, run.bias is None].append(run)
        else:
            loose[run.head is None, run.rows, run.bias is None].append(run)
    for alike in contiguous.values():
        for series in _series(alike):
            lanes = call.heads if series[0].head is None else 1
            if len(series) > 1 or series[0].pairs * lanes >= ALONE:
                yield _window(series, mask.query_block)
            else:
                loose[series[0].head is None, series[0].rows, series[0].bias is None] += series
    for (whole, _, _), alike in loose.items():
        width = call.head_dim * (call.heads if whole else 1)
        for group in _groups(alike, 2 * width * call.element_size):
            yield _gathered(group, mask, call.heads)


def _series(runs: list[Run]) -> Iterator[list[Run]]:
    """Cut runs, sorted by their rows, into longest series whose rows and keys advance by the same step."""
    series: list[Run] = []
    for run in runs:
        if series and not (_continues(series, run) and _bias_fits(series, run)):
            yield series
            series = []
        series.append(run)
    yield series


def _bias_fits(runs: list[Run], run: Run) -> bool:
    return run.bias is None or (len(runs) + 1) * run.pairs <= MAX_BIAS


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
        fits = group and run.length <= PADDING * group[0].length and _bias_fits(group, run)
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

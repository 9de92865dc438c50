"""Which heads of a layer a process computes: as many on each, and as even in cost as a quick search gets them.

Heads of a sparse plan cost unequal times, and an exchange waits for the slowest process. This is number partitioning
with counts that are given: the costliest head first to the process with the least so far (LPT, Graham 1969), and then
swaps between the costliest process and another for as long as they help.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from itertools import combinations, pairwise

Deal = tuple[tuple[int, ...], ...]
"""Of each process the heads that it has, rising; together each head once."""
ENOUGH = 1e-4
"""Share of the greatest sum by which a deal has to be better for it to matter: costs are known no better."""
AT_ONCE = (1, 2)
"""Heads of one process that are swapped with as many of another."""
MOST = 1 << 12
"""Groups of heads of one process that are looked at for a swap; of more heads, only single ones are swapped."""


def plain(heads: int, ranks: int) -> Deal:
    """Contiguous slices; where the heads do not divide, the first processes have one more.

    Raises:
        ValueError: no process, or more processes than heads.
    """
    _check_counts(heads, ranks)
    least, more = divmod(heads, ranks)
    starts = (rank * least + min(rank, more) for rank in range(ranks + 1))
    return tuple(tuple(range(start, end)) for start, end in pairwise(starts))


def deal(costs: Sequence[float], ranks: int) -> Deal:
    """Heads dealt so that the greatest sum of costs of a process is small; the same for the same costs everywhere.

    Each process has as many heads as `plain` gives it, so that the sizes of an exchange do not depend on the costs.
    `plain` itself where nothing better is found, as for equal costs.

    Args:
        costs: of each head, in any unit.
        ranks: processes.

    Raises:
        ValueError: no process, more processes than heads, or a cost that is negative or not finite.
    """
    simple = plain(len(costs), ranks)
    for head, cost in enumerate(costs):
        if not 0 <= cost < math.inf:
            raise ValueError(f"head {head} costs {cost!r}, which is not a finite number of at least 0")
    rooms = [len(heads) for heads in simple]
    dealt = _ordered(_swapped(_costliest_first(costs, rooms), costs))
    return simple if _greatest(costs, simple) <= _greatest(costs, dealt) * (1 + ENOUGH) else dealt


def imbalance(costs: Sequence[float], dealt: Deal) -> float:
    """The greatest sum of costs of a process over their mean: how much longer all take than if they were even.

    Raises:
        ValueError: a deal that is not of these heads.
    """
    if sorted(head for heads in dealt for head in heads) != list(range(len(costs))):
        raise ValueError(f"a deal of {sum(map(len, dealt))} heads is not one of each of {len(costs)}")
    mean = math.fsum(costs) / len(dealt)
    return _greatest(costs, dealt) / mean if mean else 1.0


def _check_counts(heads: int, ranks: int) -> None:
    if ranks < 1:
        raise ValueError(f"{ranks} processes cannot have heads: give at least 1")
    if ranks > heads:
        raise ValueError(f"{heads} heads cannot be dealt to {ranks} processes: each needs at least one")


def _sum(costs: Sequence[float], heads: Sequence[int]) -> float:
    return math.fsum(costs[head] for head in heads)


def _greatest(costs: Sequence[float], dealt: Sequence[Sequence[int]]) -> float:
    return max(_sum(costs, heads) for heads in dealt)


def _costliest_first(costs: Sequence[float], rooms: Sequence[int]) -> list[list[int]]:
    """Each head, costliest first, to the process with the least sum that has room; ties to the earlier one."""
    dealt: list[list[int]] = [[] for _ in rooms]
    sums = [0.0] * len(rooms)
    for head in sorted(range(len(costs)), key=lambda head: (-costs[head], head)):
        free = [rank for rank, room in enumerate(rooms) if len(dealt[rank]) < room]
        least = min(free, key=lambda rank: (sums[rank], rank))
        dealt[least].append(head)
        sums[least] += costs[head]
    return dealt


def _swapped(dealt: list[list[int]], costs: Sequence[float]) -> list[list[int]]:
    """The deal after swaps that lower the sum of the costliest process, until none does.

    Each lowers the sum of the squares of all sums by a share that counts, so that it ends.
    """
    while True:
        sums = [_sum(costs, heads) for heads in dealt]
        top = max(range(len(dealt)), key=lambda rank: (sums[rank], -rank))
        found = [_swap(dealt[top], dealt[rank], costs, sums[top] - sums[rank], rank)
                 for rank in range(len(dealt)) if rank != top]  # fmt: skip
        gain, rank, ours, theirs = max(found, key=lambda swap: (swap[0], -swap[1]), default=(0.0, 0, (), ()))
        if gain <= sums[top] * ENOUGH:
            return dealt
        dealt[top] = [head for head in dealt[top] if head not in ours] + list(theirs)
        dealt[rank] = [head for head in dealt[rank] if head not in theirs] + list(ours)


Swap = tuple[float, int, tuple[int, ...], tuple[int, ...]]
"""By how much it lowers the greater sum of two processes, the other one, and the heads that each gives."""


def _swap(ours: Sequence[int], theirs: Sequence[int], costs: Sequence[float], gap: float, rank: int) -> Swap:
    """The best swap of few heads between two processes whose sums are `gap` apart: what moves is near half of it."""
    best: Swap = (0.0, rank, (), ())
    for count in AT_ONCE:
        if max(math.comb(len(ours), count), math.comb(len(theirs), count)) > MOST:
            break
        there = sorted((_sum(costs, group), group) for group in combinations(sorted(theirs), count))
        values = [value for value, _ in there]
        for group in combinations(sorted(ours), count):
            value = _sum(costs, group)
            near = bisect.bisect_left(values, value - gap / 2)
            for at in range(max(0, near - 1), min(len(values), near + 1)):
                moved = value - values[at]
                gain = min(moved, gap - moved)
                if gain > best[0]:
                    best = (gain, rank, group, there[at][1])
    return best


def _ordered(dealt: Sequence[Sequence[int]]) -> Deal:
    """Heads rising, and processes with equally many heads by their first one."""
    rows = [tuple(sorted(heads)) for heads in dealt]
    return tuple(sorted(rows, key=lambda heads: (-len(heads), heads)))

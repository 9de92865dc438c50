"""Heads dealt to processes: how near to the best that can be, and never worse than slices."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vidaccel.parallel.deal import ENOUGH, deal, imbalance, plain

COSTS = st.lists(st.floats(0, 10) | st.sampled_from([0.1, 1.0]), min_size=1, max_size=24)


def greatest(costs: Sequence[float], dealt: Sequence[Sequence[int]]) -> float:
    return max(sum(costs[head] for head in heads) for heads in dealt)


def best(costs: Sequence[float], ranks: int) -> float:
    """The least greatest sum of all deals with the counts of `plain`, by trying them all."""
    rooms, sums = [len(heads) for heads in plain(len(costs), ranks)], [0.0] * ranks
    left, least = sorted(costs, reverse=True), math.inf

    def place(at: int) -> None:
        nonlocal least
        if at == len(left):
            least = min(least, max(sums))
            return
        for rank in {(sums[rank], rooms[rank]): rank for rank in range(ranks) if rooms[rank]}.values():
            if sums[rank] + left[at] < least:
                sums[rank], rooms[rank] = sums[rank] + left[at], rooms[rank] - 1
                place(at + 1)
                sums[rank], rooms[rank] = sums[rank] - left[at], rooms[rank] + 1

    place(0)
    return least


@settings(deadline=None)
@given(COSTS, st.integers(1, 24))
def test_a_deal_has_every_head_once_as_many_on_each_rank_as_slices(costs: list[float], ranks: int) -> None:
    ranks = min(ranks, len(costs))
    dealt, simple = deal(costs, ranks), plain(len(costs), ranks)
    assert [len(heads) for heads in dealt] == [len(heads) for heads in simple]
    assert sorted(head for heads in dealt for head in heads) == list(range(len(costs)))
    assert all(list(heads) == sorted(heads) for heads in dealt)
    assert greatest(costs, dealt) <= greatest(costs, simple) * (1 + 1e-9) and deal(costs, ranks) == dealt


def test_slices() -> None:
    assert plain(6, 3) == ((0, 1), (2, 3), (4, 5))
    assert plain(5, 3) == ((0, 1), (2, 3), (4,)) and plain(3, 1) == ((0, 1, 2),)


@pytest.mark.parametrize("kind", ["even", "heavy", "few"])
def test_near_the_best_of_all_deals(kind: str) -> None:
    draw = random.Random(kind)
    kinds = {"even": draw.random, "heavy": lambda: draw.paretovariate(1.2), "few": lambda: draw.choice([0.1, 0.3, 1.0])}
    shares = []
    for _ in range(60):
        costs = [kinds[kind]() for _ in range(draw.randint(2, 9))]
        ranks = draw.randint(1, min(4, len(costs)))
        shares.append(greatest(costs, deal(costs, ranks)) / best(costs, ranks))
    assert min(shares) >= 1 - 1e-9 and max(shares) < 1.1 and sum(shares) / len(shares) < 1.002


@pytest.mark.parametrize(("heads", "ranks"), [(40, 8), (40, 7), (24, 8), (48, 16), (40, 2)])
def test_near_the_lower_bound_where_all_cannot_be_tried(heads: int, ranks: int) -> None:
    """No deal is below the mean, nor below the costliest head with the cheapest ones that fill its rank."""
    draw = random.Random(heads * ranks)
    for _ in range(20):
        costs = [draw.random() for _ in range(heads)]
        bound = max(sum(costs) / ranks, max(costs) + sum(sorted(costs)[: heads // ranks - 1]))
        assert greatest(costs, deal(costs, ranks)) < bound * (1.001 if heads // ranks > 5 else 1.08)


def test_quick_enough_for_every_layer() -> None:
    draw = random.Random(1)
    times = []
    for _ in range(9):
        costs = [draw.lognormvariate(0, 1) for _ in range(40)]
        start = time.process_time()
        deal(costs, 8)
        times.append(time.process_time() - start)
    assert min(times) < 0.010


def test_equal_costs_stay_where_they_are() -> None:
    assert deal([1.0] * 40, 8) == plain(40, 8) and deal([0.0] * 5, 2) == plain(5, 2)
    barely = [1.0, 1.0 + ENOUGH / 10, 1.0, 1.0]
    assert deal(barely, 2) == plain(4, 2)


def test_skewed_heads_are_spread() -> None:
    costs = [1.0] * 4 + [0.1] * 12
    assert imbalance(costs, plain(16, 4)) == pytest.approx(4 * 4 / 5.2)
    assert imbalance(costs, deal(costs, 4)) == pytest.approx(1.0)
    # Two ranks of three heads, one of two: what they have is even though their counts are not.
    assert imbalance([1, 1, 2, 2, 2, 1, 1, 2], deal([1, 1, 2, 2, 2, 1, 1, 2], 3)) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("costs", "ranks", "said"),
    [
        ([1.0, 2.0], 0, "0 processes cannot have heads"),
        ([1.0, 2.0], 3, "2 heads cannot be dealt to 3 processes"),
        ([1.0, -2.0], 2, "head 1 costs -2.0"),
        ([math.nan, 1.0], 2, "head 0 costs nan"),
        ([1.0, math.inf], 1, "head 1 costs inf"),
    ],
)
def test_what_cannot_be_dealt(costs: list[float], ranks: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        deal(costs, ranks)


def test_an_imbalance_is_of_a_deal_of_these_heads() -> None:
    with pytest.raises(ValueError, match="a deal of 3 heads is not one of each of 4"):
        imbalance([1.0] * 4, plain(3, 2))
    assert imbalance([0.0, 0.0], plain(2, 2)) == 1.0

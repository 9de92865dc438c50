"""Heads that choose, where a clip is split over processes: which are here, and what the method sees."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from tests.methods.test_mixed import GRID, at, mixed, pairs, random_plan
from vidaccel.methods.choosing import Choosing
from vidaccel.site import Dealt

DEAL = ((0, 3, 4), (1, 2, 5))
STATES = torch.arange(2 * 3 * 6 * 4.0).view(2, 3, 6, 4)
"""Of six heads, three tokens and two batch rows."""


def seen(made: Choosing, states: Tensor) -> Tensor:
    """What the method sees, of queries, keys and values alike."""
    query, key, value = made.states(states, states, states)
    assert torch.equal(query, key) and torch.equal(query, value)
    return query


@dataclasses.dataclass(frozen=True)
class Ranks:
    """Two processes, of which one has had its say."""

    others: Tensor | None = None
    rank: int = 0
    size: int = 2

    def gather(self, tensor: Tensor, dim: int, sizes: Sequence[int] | None = None) -> Tensor:
        """The tensors of both."""
        assert self.others is not None and sizes is not None
        assert [tensor.shape[dim], self.others.shape[dim]] == [sizes[self.rank], sizes[1 - self.rank]]
        both = (tensor, self.others) if self.rank == 0 else (self.others, tensor)
        return torch.cat(both, dim)

    def mean(self, tensor: Tensor) -> Tensor:
        """Not asked here."""
        raise NotImplementedError


def choosing(heads: tuple[int, ...], rank: int, others: Tensor | None = None) -> Choosing:
    ranks = Ranks(others, rank)
    return Choosing(heads, dataclasses.replace(at(0, 0), heads=Dealt(DEAL, rank, ranks, ranks)))


def test_without_a_split_they_are_all_here() -> None:
    made = Choosing((1, 4), at(0, 0))
    assert made.here == (1, 4) and made.site.heads is None and made.of("abcdef") == tuple("abcdef")
    assert torch.equal(seen(made, STATES), STATES[:, :, [1, 4]])
    plan = random_plan(4, 4)
    assert made.cut(plan, 2) is plan


@pytest.mark.parametrize(("rank", "here", "states"), [(0, (1,), [3]), (1, (0, 2), [1, 5])])
def test_each_plans_for_its_own_where_all_have_some(rank: int, here: tuple[int, ...], states: list[int]) -> None:
    made = choosing((1, 3, 5), rank)
    assert made.here == here and made.of("abcdef") == tuple("abcdef"[head] for head in DEAL[rank])
    assert torch.equal(seen(made, STATES[:, :, DEAL[rank]]), STATES[:, :, states])
    assert made.site.heads is not None and made.site.heads.deal == ((1,), (0, 2))


def test_all_plan_for_all_of_them_where_one_process_has_none() -> None:
    one, none = choosing((0, 4), 0, STATES[:, :, []]), choosing((0, 4), 1, STATES[:, :, [0, 4]])
    for rank, made in enumerate((one, none)):
        assert made.site.heads is None
        assert torch.equal(seen(made, STATES[:, :, DEAL[rank]]), STATES[:, :, [0, 4]])
    assert one.here == (0, 2) and none.here == ()


@pytest.mark.parametrize("lanes", [1, 2, 4])
def test_of_a_plan_for_all_each_process_takes_its_own(lanes: int) -> None:
    """Two heads of two batch rows, of which the third process has the second: one lane, one a head, or one each."""
    ranks = Ranks()
    dealt = Dealt(((0, 1), (2, 3), (4,)), 2, ranks, ranks)
    made = Choosing((2, 4), dataclasses.replace(at(0, 0), heads=dealt))
    plan = random_plan(lanes, lanes)
    cut = made.cut(plan, 2)
    every = pairs(plan, 4, GRID.tokens)
    assert torch.equal(pairs(cut, 2, GRID.tokens), every[[1, 3]])


def test_a_plan_of_other_lanes_is_not_cut() -> None:
    with pytest.raises(ValueError, match="one for each of 3 heads"):
        random_plan(4, 0).of_heads((0,), 3)


def test_heads_are_dealt_by_what_the_choosing_ones_will_compute() -> None:
    costs = mixed(dynamic_density=0.4).head_costs(at(0, 0))
    assert costs[1] == 0.4 and 0 < costs[0] < costs[2] < 1
    assert mixed(dynamic_density=0.4).head_costs(at(1, 0)) == (0.4, 0.4, 0.4)

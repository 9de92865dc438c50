from __future__ import annotations

import torch

from vidaccel.calibration.grid import Grid
from vidaccel.calibration.options import MOST, pruned
from vidaccel.calibration.table import Measured, table_of
from vidaccel.heads import HeadOption
from vidaccel.layout import TokenLayout
from vidaccel.patterns import Pattern
from vidaccel.patterns.bands import Band
from vidaccel.patterns.simple import Dense, Skip

DENSE = HeadOption(99, 0.0, 1.0, 1.0)
NONE_DENSE = {"transformer": 0}


def option(pattern: int, cost: float, error: float) -> HeadOption:
    return HeadOption(pattern, error, cost, cost)


def test_only_options_worth_having_stay() -> None:
    good = [option(0, 0.1, 0.5), option(1, 0.2, 0.3), option(2, 0.5, 0.1)]
    bad = [option(3, 0.15, 0.5), option(4, 0.2, 0.4), option(5, 0.9, 0.1), option(6, 0.6, 0.2)]
    assert pruned([*bad, DENSE, *good]) == (*good, DENSE)


def test_of_too_many_the_most_useful_stay() -> None:
    generator = torch.Generator().manual_seed(0)
    steps = torch.rand(2, 40, generator=generator).cumsum(1).double()
    line = [option(at, float(steps[0, at]) / 30, 2.0 ** -float(steps[1, at])) for at in range(40)]
    found = pruned([*line, DENSE])
    assert len(found) == MOST and found[0] == line[0] and found[-1] == DENSE
    assert [each.cost for each in found] == sorted(each.cost for each in found)
    # One that is far better than its neighbours is never among those that go.
    corner = HeadOption(50, 1e-9, 0.3, line[20].cost)
    assert corner in pruned([*line[:20], corner, DENSE])


def test_of_two_neighbours_the_one_off_the_line_goes() -> None:
    options = [option(0, 0.1, 1.0), option(1, 0.2, 0.5), option(2, 0.6, 0.4999), DENSE]
    assert [each.pattern for each in pruned(options, 3)] == [0, 1, 99]


def measured(error: list[list[float]], patterns: tuple[Pattern, ...]) -> Measured:
    """One layer of two heads of norm 1 and 3."""
    grid = Grid(TokenLayout(2, 2, 4), 4, 4, (1, 4))
    errors = torch.tensor(error, dtype=torch.float64)[None, None]
    norm = torch.tensor([[[1.0, 3.0]]], dtype=torch.float64)
    return Measured(grid, (1.0,), patterns, {}, {"transformer": errors}, {"transformer": norm})


def test_errors_are_of_the_whole_layer() -> None:
    found = measured([[1.0, 0.5], [3.0, 0.2]], (Skip(), Band(0.01)))
    table = table_of(found, lambda each: 0.0 if each == Skip() else 0.4, NONE_DENSE)
    first, second = table.experts["transformer"][0][0]
    assert [round(each.error, 6) for each in first] == [0.25, 0.125, 0.0]
    assert [round(each.error, 6) for each in second] == [0.75, 0.05, 0.0]
    assert [table.patterns[each.pattern] for each in first] == [Skip(), Band(0.01), Dense()]


def test_what_costs_as_much_as_dense_is_left_out() -> None:
    """A short clip, on which sparse attention is slower: every head stays dense."""
    table = table_of(measured([[1.0, 0.5], [3.0, 0.2]], (Skip(), Band(0.01))), lambda each: 1.2, NONE_DENSE)
    assert table.patterns == (Dense(),)
    assert all(len(head) == 1 and head[0].cost == 1 for head in table.experts["transformer"][0][0])


def test_layers_that_the_schedule_keeps_dense_have_no_choice() -> None:
    table = table_of(measured([[1.0, 0.5], [3.0, 0.2]], (Skip(), Band(0.01))), lambda each: 0.1, {"transformer": 1})
    assert all(len(head) == 1 for head in table.experts["transformer"][0][0])

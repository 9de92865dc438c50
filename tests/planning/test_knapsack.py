"""The choice of one option per head against trying every choice."""

from __future__ import annotations

import itertools
import math
import random

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from vidaccel.planning.knapsack import cheapest, choose

Problem = tuple[list[list[float]], list[list[float]], list[float]]
# Halves and quarters: sums are exact, so that budgets can be met exactly.
NUMBERS = st.integers(0, 40).map(lambda number: number / 4)


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """Errors, costs and weights of up to four heads, with options in no order, ties and dominated ones."""
    heads = draw(st.lists(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=4), min_size=1, max_size=4))
    weights = draw(st.lists(st.sampled_from([0.5, 1.0, 3.0]), min_size=len(heads), max_size=len(heads)))
    return [[e for e, _ in head] for head in heads], [[c for _, c in head] for head in heads], weights


def totals(problem: Problem, chosen: list[int]) -> tuple[float, float]:
    """Total error and weighted mean cost."""
    errors, costs, weights = problem
    spent = math.fsum(weight * row[i] for weight, row, i in zip(weights, costs, chosen, strict=True))
    return math.fsum(row[i] for row, i in zip(errors, chosen, strict=True)), spent / sum(weights)


def every_choice(problem: Problem) -> list[tuple[float, float]]:
    """The reference: error and mean cost of each choice that there is."""
    return [totals(problem, list(each)) for each in itertools.product(*(range(len(row)) for row in problem[0]))]


def vertices(problem: Problem) -> list[tuple[float, float]]:
    """The lower convex hull of all choices, as (mean cost, error) by rising cost."""
    hull: list[tuple[float, float]] = []
    for error, cost in sorted(every_choice(problem), key=lambda each: each[::-1]):
        if hull and error >= hull[-1][1]:
            continue
        while len(hull) > 1 and _above(hull[-2], hull[-1], (cost, error)):
            hull.pop()
        hull.append((cost, error))
    return hull


def _above(left: tuple[float, float], middle: tuple[float, float], right: tuple[float, float]) -> bool:
    """Whether the middle point is not below the line through the others."""
    run, rise = right[0] - left[0], right[1] - left[1]
    return (middle[1] - left[1]) * run >= rise * (middle[0] - left[0]) - 1e-12


@given(problems(), NUMBERS)
def test_a_choice_keeps_to_the_budget_and_is_near_the_best(problem: Problem, budget: float) -> None:
    allowed = [each for each in every_choice(problem) if each[1] <= budget * (1 + 1e-9)]
    if not allowed:
        with pytest.raises(ValueError, match="the least possible here is"):
            choose(*problem[:2], budget, problem[2])
        return
    error, cost = totals(problem, choose(*problem[:2], budget, problem[2]))
    largest = max(max(row) - min(row) for row in problem[0])
    assert cost <= budget * (1 + 1e-9)
    assert min(allowed)[0] <= error <= min(allowed)[0] + largest


@given(problems())
def test_every_vertex_of_the_hull_is_met_exactly(problem: Problem) -> None:
    for cost, error in vertices(problem):
        assert totals(problem, choose(*problem[:2], cost, problem[2]))[0] == error


@given(problems(), NUMBERS)
def test_never_worse_than_every_head_for_itself(problem: Problem, budget: float) -> None:
    errors, costs, weights = problem
    assume(all(min(row) <= budget for row in costs))
    alone = sum(
        min(e for e, c in zip(*head, strict=True) if c <= budget) for head in zip(errors, costs, strict=True)
    )  # fmt: skip
    assert totals(problem, choose(errors, costs, budget, weights))[0] <= alone


@given(problems(), st.lists(NUMBERS, min_size=2, max_size=6))
def test_a_larger_budget_is_never_worse(problem: Problem, budgets: list[float]) -> None:
    least = min(cost for _, cost in every_choice(problem))
    found = [totals(problem, choose(*problem[:2], least + each, problem[2]))[0] for each in sorted(budgets)]
    assert found == sorted(found, reverse=True)


@given(problems(), NUMBERS)
def test_the_cheapest_keeps_to_the_limit_and_is_near_the_best(problem: Problem, limit: float) -> None:
    errors, costs, weights = problem
    allowed = [cost for error, cost in every_choice(problem) if error <= limit * (1 + 1e-9)]
    if not allowed:
        with pytest.raises(ValueError, match="the least possible here is"):
            cheapest(errors, costs, limit, weights)
        return
    error, cost = totals(problem, cheapest(errors, costs, limit, weights))
    largest = max(w * (max(row) - min(row)) for w, row in zip(weights, costs, strict=True)) / sum(weights)
    assert error <= limit * (1 + 1e-9)
    assert min(allowed) - 1e-9 <= cost <= min(allowed) + largest + 1e-9


def test_an_option_inside_the_hull_fills_the_slack() -> None:
    # 0.9 is what the whole upgrade would save; a quarter of its cost saves 0.1.
    assert choose([[1.0, 0.9, 0.1]], [[0.0, 0.25, 1.0]], 0.5) == [1]
    # A later head fits where the first does not.
    assert choose([[1.0, 0.0], [1.0, 0.8]], [[0.0, 1.0], [0.0, 0.5]], 0.25) == [0, 1]


def test_weights_count_in_the_mean_cost_alone() -> None:
    errors, costs = [[1.0, 0.0], [1.0, 0.0]], [[0.0, 1.0], [0.0, 1.0]]
    assert choose(errors, costs, 0.5) == [1, 0]
    assert choose(errors, costs, 0.5, [3.0, 1.0]) == [0, 1]
    assert cheapest(errors, costs, 1.0, [3.0, 1.0]) == [0, 1]


def test_many_heads_come_close_to_the_lagrangian_bound() -> None:
    """For many heads the result is next to the Lagrangian bound, which no choice can beat."""
    draw = random.Random(0)
    costs = [sorted(draw.random() for _ in range(10)) for _ in range(3200)]
    errors = [sorted((draw.random() for _ in range(10)), reverse=True) for _ in range(3200)]
    problem = errors, costs, [1.0] * 3200
    error, cost = totals(problem, choose(errors, costs, 0.3))
    bound = max(_lagrangian(errors, costs, 0.3, price / 20) for price in range(1, 200))
    assert cost <= 0.3 * (1 + 1e-9)
    assert bound <= error <= bound * 1.001


def _lagrangian(errors: list[list[float]], costs: list[list[float]], budget: float, price: float) -> float:
    paid = [[e + price * c for e, c in zip(*head, strict=True)] for head in zip(errors, costs, strict=True)]
    return sum(map(min, paid)) - price * budget * len(paid)


@pytest.mark.parametrize(
    ("errors", "costs", "budget", "weights", "message"),
    [
        ([], [], 1.0, None, "at least one: got 0, 0 and 0"),
        ([[1.0]], [[1.0], [1.0]], 1.0, None, "same heads"),
        ([[1.0]], [[1.0]], 1.0, [1.0, 1.0], "same heads"),
        ([[1.0], []], [[1.0], []], 1.0, None, "head 1 has 0 errors and 0 costs"),
        ([[1.0, 2.0]], [[1.0]], 1.0, None, "head 0 has 2 errors and 1 costs"),
        ([[math.nan]], [[1.0]], 1.0, None, "head 0 has an error or a cost that is not finite"),
        ([[1.0]], [[math.inf]], 1.0, None, "head 0 has an error or a cost that is not finite"),
        ([[1.0]], [[1.0]], 1.0, [0.0], "weights are finite and above 0"),
        ([[1.0]], [[1.0]], math.nan, None, "a budget is a finite number, got nan"),
        ([[1.0, 0.0]] * 2, [[0.2, 1.0], [0.1, 1.0]], 0.1, None, "0.1 is too small: the least possible here is 0.15"),
    ],
)  # fmt: skip
def test_bad_input_is_named(
    errors: list[list[float]], costs: list[list[float]], budget: float, weights: list[float] | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        choose(errors, costs, budget, weights)


def test_an_error_limit_that_cannot_be_met_is_named() -> None:
    with pytest.raises(ValueError, match="total error of 0.1 is too small: the least possible here is 0.3"):
        cheapest([[0.2, 1.0], [0.1, 1.0]], [[1.0, 0.0], [1.0, 0.0]], 0.1)

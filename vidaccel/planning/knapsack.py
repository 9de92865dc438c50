"""One option for each of many heads under a common budget: the multiple-choice knapsack problem.

Best upgrade first, by error saved per cost added (Sinha and Zoltners 1979; Kellerer, Pferschy and Pisinger 2004, ch.
11). As far as every upgrade fits, these are the solutions of the Lagrangian relaxation for a falling price, and
optimal. From the first upgrade that does not fit, what is left is filled with those that do, and the result is above
the least possible error by less than that upgrade would have saved.
"""

from __future__ import annotations

import bisect
import heapq
import math
from collections.abc import Sequence

Options = Sequence[Sequence[float]]
ROUNDING = 1e-12
"""A sum may exceed its bound by this share, so that a budget that is itself a mean of costs can be met."""


def choose(errors: Options, costs: Options, budget: float, weights: Sequence[float] | None = None) -> list[int]:
    """One option per head: the least total error that the budget allows, or close to it (see the module).

    Never worse than the best that each head could do with the budget for itself, and no worse for a larger budget. Ties
    go to the earlier head and option. Heads may have different numbers of options, in any order.

    Args:
        errors: ``[heads][options]``; they add up as they are.
        costs: ``[heads][options]``.
        budget: most that the mean of the chosen costs may be.
        weights: of the heads in that mean, such as the length of a step band; by default all are 1.

    Returns:
        The index of each head's option.

    Raises:
        ValueError: numbers that are not finite or do not fit together, or a budget below the least possible mean cost.
    """
    weights = _checked(errors, costs, weights)
    if not math.isfinite(budget):
        raise ValueError(f"a budget is a finite number, got {budget}")
    ladders = [_ladder(*head) for head in zip(errors, costs, weights, strict=True)]
    total = sum(weights)
    least = sum(ladder[0][0] for ladder in ladders)
    if least > _loose(budget * total):
        raise ValueError(f"a mean cost of {budget:.6g} is too small: the least possible here is {least / total:.6g}")
    chosen = _filled(ladders, _loose(budget * total) - least)
    shares = [_loose(budget * weight) for weight in weights]
    if all(ladder[0][0] <= share for ladder, share in zip(ladders, shares, strict=True)):
        alone = [_best_alone(ladder, share) for ladder, share in zip(ladders, shares, strict=True)]
        chosen = min(chosen, alone, key=lambda steps: _error(ladders, steps))
    return [ladder[step][2] for ladder, step in zip(ladders, chosen, strict=True)]


def cheapest(errors: Options, costs: Options, limit: float, weights: Sequence[float] | None = None) -> list[int]:
    """One option per head: the least total cost, or close to it, with a total error of at most `limit`.

    The same problem as `choose` with errors and costs exchanged.

    Args:
        errors, costs: as for `choose`.
        limit: most that the sum of the chosen errors may be.
        weights: of the heads in the total cost; by default all are 1.

    Raises:
        ValueError: numbers that are not finite or do not fit together, or a limit below the least possible error.
    """
    weights = _checked(errors, costs, weights)
    least = math.fsum(min(head) for head in errors)
    if not math.isfinite(limit) or least > _loose(limit):
        raise ValueError(f"a total error of {limit:.6g} is too small: the least possible here is {least:.6g}")
    weighted = [[cost * weight for cost in head] for head, weight in zip(costs, weights, strict=True)]
    # The least error is itself allowed, whatever the rounding of the mean.
    return choose(weighted, errors, max(limit, least) / len(errors))


def _checked(errors: Options, costs: Options, weights: Sequence[float] | None) -> Sequence[float]:
    weights = [1.0] * len(errors) if weights is None else weights
    if not len(errors) or not len(errors) == len(costs) == len(weights):
        given = f"{len(errors)}, {len(costs)} and {len(weights)}"
        raise ValueError(f"errors, costs and weights are those of the same heads, at least one: got {given}")
    for head, (of_errors, of_costs) in enumerate(zip(errors, costs, strict=True)):
        if not len(of_errors) or len(of_errors) != len(of_costs):
            raise ValueError(f"head {head} has {len(of_errors)} errors and {len(of_costs)} costs, not as many, or none")
        if not all(map(math.isfinite, of_errors)) or not all(map(math.isfinite, of_costs)):
            raise ValueError(f"head {head} has an error or a cost that is not finite")
    if not all(0 < weight < math.inf for weight in weights):
        raise ValueError("weights are finite and above 0")
    return weights


Ladder = list[tuple[float, float, int]]
"""A head's options that are worth having, as (weighted cost, error, index): costs rise and errors fall."""


def _ladder(errors: Sequence[float], costs: Sequence[float], weight: float) -> Ladder:
    options = sorted(zip((cost * weight for cost in costs), errors, range(len(errors)), strict=True))
    ladder: Ladder = []
    for option in options:
        if not ladder or option[1] < ladder[-1][1]:
            ladder.append(option)
    return ladder


def _loose(bound: float) -> float:
    return bound + ROUNDING * abs(bound)


def _filled(ladders: list[Ladder], slack: float) -> list[int]:
    """Steps of the ladders, from the lowest, upgraded while anything fits in the slack.

    A larger slack saves no less: where it first allows an upgrade that a smaller one refuses, that upgrade saves more
    than all that could still fit in the smaller one, because nothing later saves more per cost.
    """
    chosen = [0] * len(ladders)
    heap = [entry for head, ladder in enumerate(ladders) if (entry := _steepest(ladder, 0, slack, head))]
    heapq.heapify(heap)
    while heap:
        _, head, step, extra = heapq.heappop(heap)
        ladder, current = ladders[head], chosen[head]
        if extra <= slack:
            slack -= extra
            chosen[head] = current = step
        if entry := _steepest(ladder, current, slack, head):
            heapq.heappush(heap, entry)
    return chosen


def _steepest(ladder: Ladder, current: int, slack: float, head: int) -> tuple[float, int, int, float] | None:
    """The upgrade of a head that saves most per cost among those that fit, as (-rate, head, step, cost)."""
    cost, error, _ = ladder[current]
    best = None
    for step in range(current + 1, len(ladder)):
        extra = ladder[step][0] - cost
        if extra > slack:
            break
        rate = (ladder[step][1] - error) / extra
        if best is None or rate < best[0]:
            best = (rate, head, step, extra)
    return best


def _best_alone(ladder: Ladder, most: float) -> int:
    """The last step that costs no more than `most`, as the first does."""
    return bisect.bisect_right(ladder, most, key=lambda option: option[0]) - 1


def _error(ladders: list[Ladder], steps: Sequence[int]) -> float:
    return math.fsum(ladder[step][1] for ladder, step in zip(ladders, steps, strict=True))

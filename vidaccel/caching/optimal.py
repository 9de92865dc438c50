"""Best choices under a budget: which steps to compute, and which blocks to pass by."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np

from vidaccel.caching.base import Forecast
from vidaccel.caching.calibration import CacheCalibration

INFINITE = math.inf
GroupCost = Callable[[int, int], Sequence[float]]


def best_steps(
    cost: GroupCost, steps: int, count: int, forced: Collection[int] = (), longest: int | None = None
) -> tuple[int, ...]:  # fmt: skip
    """The computed steps for which a run errs least, in the manner of CacheQuant (arXiv 2503.01323).

    A computed step `i` and those up to the next computed one, `end`, are a group. What it costs depends on the
    computed step before, `k`, too, as predictors look back. With M(n, k, i) the least cost of all groups before that of
    `i`, n in number, ``M(n + 1, i, end) = min over k of M(n, k, i) + cost(k, i)[end]``. O(steps^3 * count).

    Args:
        cost: of groups, by `k` (-1 for none) and `i`: a number for each `end` from ``i + 1`` to `steps`, rising.
        steps: of the run.
        count: of computed steps, exactly.
        forced: steps that are computed in any case; 0 always is.
        longest: steps of a group at most.

    Returns:
        Them, rising.

    Raises:
        ValueError: fewer than are forced or than the longest group allows, or more than there are.
    """
    must = {0, *forced}
    if not len(must) <= count <= steps:
        raise ValueError(f"{count} computed steps of {steps}: {len(must)} to {steps} are possible, as those at "
                         f"{', '.join(map(str, sorted(must)))} are computed in any case")  # fmt: skip
    costs = _all_costs(cost, steps, must, steps if longest is None else longest)
    # By the computed step and, shifted by 1, the one before it.
    least = np.full((steps + 1, steps + 1), INFINITE)
    least[0, 0] = 0.0
    came = []
    for _ in range(count):
        through = least[:-1, :, None] + costs
        came.append(through.argmin(1))
        least = np.full((steps + 1, steps + 1), INFINITE)
        least[:, 1:] = through.min(1).T
    former = int(least[steps].argmin())
    if least[steps, former] == INFINITE:
        raise ValueError(f"{count} computed steps of {steps} are too few for groups of at most {longest}")
    chosen, end = [], steps
    for back in reversed(came):
        chosen.append(former - 1)
        former, end = int(back[former - 1, end]), former - 1
    return tuple(reversed(chosen))


def _all_costs(cost: GroupCost, steps: int, forced: Collection[int], longest: int) -> Any:
    """Of each group ``[i, end)`` with `k` before it, at ``[i, k + 1, end]``; infinite where a step in it is forced."""
    costs = np.full((steps, steps + 1, steps + 1), INFINITE)
    for i in range(steps):
        stop = min([each for each in forced if each > i] + [steps, i + longest])
        for k in range(-1, i):
            costs[i, k + 1, i + 1 : stop + 1] = cost(k, i)[: stop - i]
    return costs


def group_costs(calibration: CacheCalibration, predictor: Forecast) -> GroupCost:
    """What groups of a run cost, for `best_steps`: the squared distance that the final latents move if the errors of
    all predicted steps of a group add up, as neighbours err alike. Those of different groups count as independent.

    Raises:
        ValueError: a calibration without the products of guided outputs.
    """
    guided = calibration.guided
    if guided is None:
        raise ValueError("this calibration has no products of guided outputs, from which steps are chosen: its "
                         "scheduler takes more than one output a step")  # fmt: skip
    first_of = {step: calibration.covered(expert).start for expert in calibration.tracks
                for step in calibration.covered(expert)}  # fmt: skip

    def cost(k: int, i: int) -> list[float]:
        # Nothing of one expert is kept for the next one.
        past = [step for step in (k, i) if step >= first_of[i]][-predictor.tensors :]
        moved, found = 0.0, [0.0]
        for step in range(i + 1, calibration.steps):
            held = first_of[step] == first_of[i]
            error = guided.error(past, predictor.weights(past, step), step) if held else INFINITE
            moved += guided.effects[step] * error
            found.append(moved**2)
        return found

    return cost


def best_blocks(changes: Sequence[float], count: int, runs: int) -> tuple[tuple[int, int], ...]:
    """The blocks with the least sum of changes that lie in at most `runs` runs of neighbours.

    Args:
        changes: of each block, not negative.
        count: of blocks, at least 1.
        runs: at least 1.

    Returns:
        The runs as ranges ``[start, end)``, rising.

    Raises:
        ValueError: more blocks than there are, or none.
    """
    if not 1 <= count <= len(changes):
        raise ValueError(f"{count} of {len(changes)} blocks: 1 to {len(changes)} are possible")
    # By (blocks taken, runs begun, whether the last block is taken): the least sum and the blocks of it.
    best: dict[tuple[int, int, bool], tuple[float, tuple[int, ...]]] = {(0, 0, False): (0.0, ())}
    for block, change in enumerate(changes):
        following: dict[tuple[int, int, bool], tuple[float, tuple[int, ...]]] = {}
        for (taken, begun, inside), (total, blocks) in best.items():
            _improve(following, (taken, begun, False), (total, blocks))
            state = taken + 1, begun + (not inside), True
            if state[0] <= count and state[1] <= runs:
                _improve(following, state, (total + change, (*blocks, block)))
        best = following
    chosen = min(found for (taken, _, _), found in best.items() if taken == count)[1]
    starts = [block for block in chosen if block - 1 not in chosen]
    ends = [block + 1 for block in chosen if block + 1 not in chosen]
    return tuple(zip(starts, ends, strict=True))


def _improve(
    table: dict[tuple[int, int, bool], tuple[float, tuple[int, ...]]], key: tuple[int, int, bool],
    found: tuple[float, tuple[int, ...]],
) -> None:  # fmt: skip
    if key not in table or found < table[key]:
        table[key] = found

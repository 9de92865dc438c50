"""Best choices under a budget: which steps to compute, and which blocks to pass by."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from vidaccel.caching.calibration import CacheCalibration

INFINITE = math.inf


def best_steps(
    errors: Sequence[Sequence[float]], count: int, forced: Collection[int] = (0,), longest: int | None = None
) -> tuple[int, ...]:  # fmt: skip
    """The computed steps for which what is reused errs least in total, as CacheQuant (arXiv 2503.01323) chooses them.

    A computed step and those that reuse it are a group ``[i, j)``, of cost ``sum of errors[t][i]``, t from i + 1 to
    j - 1. With M(n, k) the least cost of the first n steps in k groups, ``M(n, k) = min over i of M(i, k - 1) +
    cost(i, n)``. O(steps^2 * count).

    Args:
        errors: of holding step i at step t, in row t and column i < t; infinite where that cannot be.
        count: of computed steps, exactly.
        forced: steps that are computed in any case; 0 always is.
        longest: steps of a group at most.

    Returns:
        Them, rising.

    Raises:
        ValueError: fewer than are forced or than the longest group allows, or more than there are.
    """
    steps, must = len(errors), {0, *forced}
    most = steps if longest is None else longest
    if not len(must) <= count <= steps:
        raise ValueError(f"{count} computed steps of {steps}: {len(must)} to {steps} are possible, as those at "
                         f"{', '.join(map(str, sorted(must)))} are computed in any case")  # fmt: skip
    cost = _group_costs(errors, must, most)
    least, came = [[0.0] + [INFINITE] * steps], []
    for _ in range(count):
        row = [min(((least[-1][i] + cost[i][end], i) for i in range(end)), default=(INFINITE, 0))
               for end in range(steps + 1)]  # fmt: skip
        least.append([each[0] for each in row])
        came.append([each[1] for each in row])
    if least[-1][steps] == INFINITE:
        raise ValueError(f"{count} computed steps of {steps} are too few for groups of at most {most}")
    chosen, end = [], steps
    for row_came in reversed(came):
        end = row_came[end]
        chosen.append(end)
    return tuple(reversed(chosen))


def _group_costs(errors: Sequence[Sequence[float]], forced: Collection[int], most: int) -> list[list[float]]:
    """Of each group ``[start, end)``, in row `start` and column `end`; infinite where a later step is forced."""
    steps = len(errors)
    costs = [[INFINITE] * (steps + 1) for _ in range(steps)]
    for start in range(steps):
        costs[start][start + 1] = total = 0.0
        for step in range(start + 1, min(steps, start + most)):
            if step in forced:
                break
            total += errors[step][start]
            costs[start][step + 1] = total
    return costs


def step_errors(calibration: CacheCalibration, at_output: bool) -> list[list[float]]:
    """Errors of a run's steps for `best_steps`: relative L1 of the residual, summed over guidance branches, times the
    share of the run's time that the step takes. Infinite between experts.

    Args:
        at_output: whether of the model's residual rather than that of its blocks.
    """
    times = (*calibration.timesteps, 0.0)
    found = [[INFINITE] * step for step in range(calibration.steps)]
    for expert, tracks in calibration.tracks.items():
        first = calibration.covered(expert).start
        for step in calibration.covered(expert):
            share = (times[step] - times[step + 1]) / times[0]
            for kept in range(first, step):
                pairs = (track.output if at_output else track.stack for track in tracks.values())
                found[step][kept] = share * sum(each[step - first][kept - first] for each in pairs)
    return found


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

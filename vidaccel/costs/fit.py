"""From times of sparse and dense calls to coefficients."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vidaccel.costs.model import CostModel, Counts

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Sample:
    """One timed sparse call: its counts and seconds."""

    counts: Counts
    seconds: float


def fitted(
    samples: Sequence[Sample], dense: Sequence[tuple[int, float]], heads: int, head_dim: int, source: str
) -> CostModel:  # fmt: skip
    """The model that predicts these times best, by relative error squared; no coefficient is below 0.

    Args:
        samples: sparse calls, more than there are coefficients, on two numbers of tokens at least.
        dense: (tokens, seconds) of dense calls, on two numbers of tokens at least.
        heads, head_dim: of all calls; heads of all batch rows.
        source: of the model.

    Raises:
        ValueError: dense times that do not grow with the number of tokens.
    """
    rows = [[1.0, heads * float(tokens) ** 2] for tokens, _ in dense]
    launch, pair = non_negative(np.array(rows), np.array([seconds for _, seconds in dense]))
    if not pair > 0:
        raise ValueError("the times of dense attention do not grow with the number of tokens: measure longer calls")
    table = [
        [heads * each.counts.computed, heads * each.counts.ranges, heads * each.counts.tiles,
         heads * each.counts.ordered, 1.0]
        for each in samples
    ]  # fmt: skip
    found = non_negative(np.array(table), np.array([each.seconds for each in samples])) / pair
    names = ("per_pair", "per_range", "per_tile", "per_token", "per_call")
    given = dict(zip(names, found.tolist(), strict=True))
    return CostModel(**given, dense_call=float(launch / pair), head_dim=head_dim, source=source)


def misses(
    model: CostModel, samples: Sequence[Sample], dense: Sequence[tuple[int, float]], heads: int
) -> dict[str, float]:
    """`median_error` and `largest_error` of the model over these calls, relative to their times."""
    times = dict(dense)
    found = [
        abs(model.share(each.counts, heads=heads) * times[each.counts.tokens] / each.seconds - 1) for each in samples
    ]
    return {"median_error": statistics.median(found), "largest_error": max(found)}


def non_negative(rows: Array, values: Array) -> Array:
    """The least squares of ``rows @ x / values - 1`` over x of at least 0, by trying which of x are 0.

    Args:
        rows: ``[samples, n]`` for a small n: 2**n systems are solved.
        values: ``[samples]``, above 0.
    """
    # Columns differ by many orders of magnitude.
    scale = np.abs(rows / values[:, None]).max(0)
    scale[scale == 0] = 1.0
    system = rows / values[:, None] / scale
    best, least = np.zeros(rows.shape[1]), float(len(values))
    for size in range(1, rows.shape[1] + 1):
        for chosen in itertools.combinations(range(rows.shape[1]), size):
            columns = system[:, chosen]
            solution = np.linalg.lstsq(columns, np.ones(len(values)), rcond=None)[0]
            error = float(np.square(columns @ solution - 1).sum())
            if (solution >= 0).all() and error < least:
                best, least = np.zeros(rows.shape[1]), error
                best[list(chosen)] = solution
    solved: Array = best / scale
    return solved

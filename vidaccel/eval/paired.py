"""Whether one method is better than another on the same prompts and seeds: the paired bootstrap."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

RESAMPLES = 10_000
LEVEL = 0.95


@dataclass(frozen=True)
class Paired:
    """The mean of paired differences, first minus second, and its confidence interval.

    Args:
        pairs: how many there are.
        mean: of the differences.
        low, high: ends of the percentile interval.
    """

    pairs: int
    mean: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """"higher" or "lower" where the interval leaves out zero, else "tied"."""
        return "higher" if self.low > 0 else "lower" if self.high < 0 else "tied"


def paired_bootstrap(
    first: Sequence[float], second: Sequence[float], *, resamples: int = RESAMPLES, level: float = LEVEL, seed: int = 0
) -> Paired:
    """The percentile bootstrap of the mean difference of pairs (Efron and Tibshirani 1993).

    Args:
        first, second: values of one metric on the same cases, in the same order.
        resamples: draws of pairs with replacement; the same seed gives the same interval.
        level: of the interval, in (0, 1).

    Raises:
        ValueError: fewer than two pairs, different lengths, values that are not finite, or a level out of range.
    """
    if len(first) != len(second) or len(first) < 2:
        raise ValueError(f"a paired bootstrap needs two pairs or more, got {len(first)} and {len(second)} values")
    if not 0 < level < 1:
        raise ValueError(f"level {level} is outside (0, 1)")
    difference = np.asarray(first, np.float64) - np.asarray(second, np.float64)
    if not np.isfinite(difference).all():
        raise ValueError("a paired bootstrap needs finite values")
    draws = np.random.default_rng(seed).integers(len(difference), size=(resamples, len(difference)))
    low, high = np.quantile(difference[draws].mean(1), [(1 - level) / 2, (1 + level) / 2])
    return Paired(len(difference), float(difference.mean()), float(low), float(high))


def by_case(records: Iterable[Mapping[str, Any]], metric: str) -> dict[tuple[str, int], float]:
    """The values of a metric of one row's cell records, by prompt and seed; cells without it are left out."""
    values = {(each["prompt"], each["seed"]): each["metrics"].get(metric) for each in records}
    return {case: float(value) for case, value in values.items() if value is not None}


def compare_rows(
    first: Iterable[Mapping[str, Any]], second: Iterable[Mapping[str, Any]], metric: str, **options: Any
) -> Paired:
    """`paired_bootstrap` of two rows of an eval over the prompts and seeds that both have.

    Raises:
        ValueError: as `paired_bootstrap`.
    """
    one, other = by_case(first, metric), by_case(second, metric)
    cases = sorted(set(one) & set(other))
    return paired_bootstrap([one[case] for case in cases], [other[case] for case in cases], **options)

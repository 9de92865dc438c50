"""The differences between the steps of a run that step caching goes by, from the tensors themselves.

All are computed in fp32 and come as Python floats; a denominator of 0 gives 0 where nothing differs, and the largest
number that a file may have else.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from vidaccel.caching.track import MAX_ERROR, rounded

MOMENTS = 5
"""Of `moments`."""


def relative(later: Tensor, earlier: Tensor, to: Tensor) -> float:
    """``mean|later - earlier| / mean|to|``."""
    return quotient((later.float() - earlier.float()).abs().mean().item(), size(to))


def size(states: Tensor) -> float:
    """Mean absolute value."""
    return states.float().abs().mean().item()


def quotient(above: float, below: float) -> float:
    """``above / below``, of numbers that are not negative."""
    if above == 0:
        return 0.0
    return min(above / below, MAX_ERROR) if below > 0 else MAX_ERROR


def norm_ratio(residual: Tensor, before: Tensor) -> float:
    """MagCache's gamma: mean over tokens of the norms' ratio, of ``[batch, tokens, dim]``; tokens whose norm was 0
    do not count, and without any other it is 1."""
    norms, former = residual.float().norm(dim=-1), before.float().norm(dim=-1)
    some = former > 0
    return (norms[some] / former[some]).mean().clamp(max=MAX_ERROR).item() if some.any() else 1.0


def moments(held: Tensor, error: Tensor) -> list[float]:
    """What a least squares fit of `error` to `held` needs, and what adds up over prompts: the count, both sums, the
    sum of squares of `held` and that of products. In fp64."""
    x, y = held.double().flatten(), error.double().flatten()
    return [float(len(x)), x.sum().item(), y.sum().item(), x.dot(x).item(), x.dot(y).item()]


def line(sums: Sequence[float]) -> tuple[float, float]:
    """The least squares fit ``a * held + b`` of `moments`; a is 0 where `held` is the same throughout."""
    count, x, y, xx, xy = sums
    if not count:
        return 0.0, 0.0
    variance = xx / count - (x / count) ** 2
    # What rounding leaves of a variance that is none.
    if variance <= 1e-12 * xx / count:
        return 0.0, rounded(y / count)
    slope = (xy / count - x * y / count**2) / variance
    return rounded(slope), rounded((y - slope * x) / count)

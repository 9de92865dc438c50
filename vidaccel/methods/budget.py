"""How much a method may keep: a density, a curve of densities over the run, or a share of the attention."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from vidaccel.site import Site

Density = float | Sequence[Sequence[float]]


def check_budget(density: Any, top_p: Any) -> None:
    """Refuse what is no budget; None is one not given.

    Raises:
        ValueError: both, a number outside (0, 1], or a curve whose shares of the run do not rise from at least 0 to 1.
    """
    if density is not None and top_p is not None:
        raise ValueError(f"give a density or top_p, not both: got {density!r} and {top_p!r}")
    if top_p is not None and not _share(top_p):
        raise ValueError(f"top_p {top_p!r} is outside (0, 1]")
    if density is None or _share(density):
        return
    if not isinstance(density, Sequence) or isinstance(density, str) or not density:
        raise ValueError(f"density {density!r} is outside (0, 1], or no curve ((share of the run, density), ...)")
    if any(not isinstance(each, Sequence) or len(each) != 2 or not _share(each[1]) for each in density):
        raise ValueError(f"a density curve has pairs (share of the run, density in (0, 1]), got {density!r}")
    ends = [each[0] for each in density]
    numbers = all(isinstance(end, (int, float)) and not isinstance(end, bool) for end in ends)
    # Asked this way round, as no comparison holds for NaN.
    if not numbers or not (ends[0] >= 0 and ends[-1] == 1 and all(low < high for low, high in pairwise(ends))):
        raise ValueError(f"the shares of the run of a density curve rise from at least 0 to 1, got {ends}")


def is_curve(density: Density | None) -> bool:
    """Whether a density changes over a run."""
    return density is not None and not isinstance(density, (int, float))


def as_tuples(density: Density | None) -> Density | None:
    """A checked density with a curve as tuples: what JSON has as lists equals, and can be hashed as, what was given."""
    return density if density is None or isinstance(density, (int, float)) else tuple(tuple(each) for each in density)


def density_at(density: Density | None, site: Site) -> float | None:
    """The density of a step; None where there is none.

    Between the knots of a curve it runs straight, before the first one it stays. Step ``i`` of ``n`` is at share
    ``i / (n - 1)``.

    Raises:
        ValueError: a curve in a run whose number of steps is unknown.
    """
    if density is None or isinstance(density, (int, float)):
        return density
    if site.steps is None:
        raise ValueError("a density curve needs the number of steps of a run: pass num_inference_steps")
    return at_share(density, site.step / max(1, site.steps - 1))


def at_share(density: Sequence[Sequence[float]], at: float) -> float:
    """The density of a curve at a share of the run."""
    if at <= density[0][0]:
        return density[0][1]
    (x0, y0), (x1, y1) = next(pair for pair in pairwise(density) if at <= pair[1][0] or pair[1][0] == 1)
    share = min(1.0, (at - x0) / (x1 - x0))
    return y0 * (1 - share) + y1 * share


def _share(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value <= 1

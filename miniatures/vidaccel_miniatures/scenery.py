"""Which of the backdrops is behind the objects of a clip, told by how well each explains what is seen of it."""

from __future__ import annotations

from collections import Counter
from functools import cache

import numpy as np
from numpy.typing import NDArray

CELLS, LOOKS = 36, 5
"""Cells a frame is high when it is looked at, and frames that are looked at."""
PLAIN = 0.02
"""Standard deviation of brightness below which there is nothing to see."""
EXPLAINED = 0.72
"""Share of the variance that a regular texture must explain; soft clouds are what none of them does."""
BOLD, TWO_TONED = 0.08, 1.45
"""Standard deviation from which, and kurtosis up to which, cells have two tones: bars have 1.0 to 1.3 and no clouds are
that bold."""
_PERIODS = np.linspace(0.36, 0.60, 17)
"""Of the backdrops that repeat, in frame heights, with a margin."""
_PHASES = np.linspace(0.0, 0.5, 12, endpoint=False)
"""Half a turn, as a fit minds no sign."""

Map = NDArray[np.float64]


def background(frames: NDArray[np.floating], hidden: NDArray[np.bool_]) -> str | None:
    """A name from `captions.BACKGROUNDS`: what most frames show; None where too little is seen.

    Args:
        frames: floats `[F, H, W, 3]` in 0..1.
        hidden: pixels `[F, H, W]` that an object covers or may have changed.
    """
    looks = np.unique(np.linspace(0, len(frames) - 1, min(LOOKS, len(frames))).astype(int))
    votes = Counter(_texture(*_coarse(frames[look].mean(axis=-1), hidden[look])) for look in looks)
    del votes[None]
    return votes.most_common(1)[0][0] if votes else None


def _coarse(brightness: NDArray[np.floating], hidden: NDArray[np.bool_]) -> tuple[Map, Map]:
    """Means of square cells of a frame, and 1 for those that are seen whole, else 0."""
    side = max(1, len(brightness) // CELLS)
    rows, columns = (size // side for size in brightness.shape)

    def cells(values: NDArray[np.generic]) -> Map:
        cut = values[: rows * side, : columns * side].reshape(rows, side, columns, side)
        return np.asarray(cut.mean(axis=(1, 3)), np.float64)

    return cells(brightness), (cells(hidden) == 0).astype(np.float64)


def _texture(seen: Map, weight: Map) -> str | None:
    """The texture of one frame's cells."""
    count = weight.sum()
    if count < 0.1 * weight.size:
        return None
    level = (seen * weight).sum() / count
    seen = (seen - level) * weight
    spread = (seen**2).sum()
    if spread / count < PLAIN**2:
        return "plain"
    ways = {"gradient": _gradient, "stripes": _stripes, "checkerboard": _board}
    fits = {name: explains(seen, weight) for name, explains in ways.items()}
    best = max(fits, key=lambda name: fits[name])
    if fits[best] / spread >= EXPLAINED:
        return best
    return _bars(seen, weight) if spread / count >= BOLD**2 else "noise"


def _bars(seen: Map, weight: Map) -> str:
    """Bold cells that nothing regular explains: bars of uneven width, as generated ones may be, if in two tones."""
    square = (seen**2).sum()
    if (seen**4).sum() * weight.sum() / square**2 > TWO_TONED:
        return "noise"
    # Where both of two neighbours are seen, how often the tone changes from one to the other, down and across.
    changes = [(np.diff(seen > 0, axis=axis) & (np.minimum(weight, np.roll(weight, -1, axis)) > 0).take(
        range(seen.shape[axis] - 1), axis)).sum() for axis in (0, 1)]  # fmt: skip
    return "stripes" if min(changes) < 0.5 * max(changes) else "checkerboard"


def _gradient(seen: Map, weight: Map) -> float:
    """What a slope along the rows explains of the variance."""
    across = np.broadcast_to(np.linspace(-1.0, 1.0, seen.shape[1]), seen.shape)
    return float(_explained((seen * across).sum(), (weight * across).sum(), (weight * across**2).sum(), weight.sum()))


def _stripes(seen: Map, weight: Map) -> float:
    """What the best bars, upright or lying, explain."""
    best = 0.0
    for axis in (0, 1):
        line, load = seen.sum(axis=axis), weight.sum(axis=axis)
        waves = np.concatenate([_waves(period, len(line), len(seen)) for period in _PERIODS])
        best = max(best, float(_explained(waves @ line, waves @ load, waves**2 @ load, weight.sum()).max()))
    return best


def _board(seen: Map, weight: Map) -> float:
    """What the best checkerboard explains: bars along both axes, multiplied."""
    best = 0.0
    for period in _PERIODS:
        down, across = (_waves(period, size, len(seen)) for size in seen.shape)
        sums = (down @ seen @ across.T, down @ weight @ across.T, down**2 @ weight @ across.T**2)
        best = max(best, float(_explained(*sums, weight.sum()).max()))
    return best


@cache
def _waves(period: float, cells: int, height: int) -> Map:
    """Square waves between -1 and 1 `[phases, cells]`, averaged over each cell; `period` is in frame heights."""
    fine = 4
    place = (np.arange(cells * fine) + 0.5) / fine / height
    wave = np.where(((place / period)[None] + _PHASES[:, None]) % 1.0 < 0.5, 1.0, -1.0)
    return np.asarray(wave.reshape(len(_PHASES), cells, fine).mean(axis=2))


def _explained(product: Map, mean: Map, square: Map, count: float) -> Map:
    """Variance that a template explains, from its weighted sums; what is seen has mean 0."""
    return np.asarray(product**2 / np.maximum(square - mean**2 / count, 1e-9))

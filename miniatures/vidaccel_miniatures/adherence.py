"""What a clip shows, by simple vision: the object's colour, outline and direction, and what is behind it.

For clips of one object, rendered or generated. The outline is told by its corners: of an outline with k alike corners,
the k-th harmonic moment is the lowest that is not zero, and neither rotation nor blur changes it. Only numpy is needed.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .captions import DIAGONALS, DIRECTIONS
from .pieces import NAMES, Frames, colors, cover, main_pieces
from .scenery import background

STILL = "still"
"""Direction of an object that leads nowhere, whatever else it does."""
LEAST_TRAVEL = 0.15
"""Of a motion over the whole clip, in frame heights; the renderer's shortest is 0.35."""
LEAST_AREA, LEAST_FRAMES = 0.004, 0.25
"""Share of a frame that counts as an object, and of the frames that must show it."""
SIZEABLE = 0.2
"""Size of a second piece, as a share of the first's, from which it is one."""
_CORNERS = {"circle": (0.0, 0.0), "square": (0.0, 0.0167), "triangle": (0.0681, 0.0019)}
"""Third and fourth harmonic moments |sum z^k| / area^(1 + k/2) of the renderer's outlines about their centroids."""


@dataclass(frozen=True)
class Seen:
    """What was seen of a clip; None is what could not be.

    Attributes:
        color: a name from `captions.COLORS`, of most of what is no backdrop.
        direction: a name from `captions.DIRECTIONS` or `DIAGONALS`, or "still".
        shape: a name from `captions.SHAPES`.
        background: a name from `captions.BACKGROUNDS`.
        pieces: share of the frames with the object that show another sizeable piece of its colour.
    """

    color: str | None
    direction: str | None
    shape: str | None
    background: str | None
    pieces: float | None


def look(frames: Frames) -> Seen:
    """What a clip of one object shows.

    Args:
        frames: floats `[F, H, W, 3]` in 0..1, at least two.

    Raises:
        ValueError: frames of another shape, type or range.
    """
    _check(frames)
    solid = cover(frames) > 0.5
    behind = background(frames, _widened(solid, max(1, frames.shape[1] // 24)))
    hues = colors(frames[solid])
    color = int(np.bincount(hues, minlength=len(NAMES)).argmax())
    alike = solid.copy()
    alike[solid] = hues == color
    piece, sizes = main_pieces(alike, max(1, int(LEAST_AREA * solid[0].size)))
    shown = np.flatnonzero(sizes[:, 0])
    if len(shown) < max(2, LEAST_FRAMES * len(frames)):
        return Seen(None, None, None, behind, None)
    again = sizes[shown, 1] >= SIZEABLE * sizes[shown, 0]
    return Seen(NAMES[color], _direction(piece, shown), _shape(piece, shown), behind, float(again.mean()))


def _check(frames: Frames) -> None:
    if frames.ndim != 4 or frames.shape[-1] != 3 or len(frames) < 2 or 0 in frames.shape:
        raise ValueError(f"frames of shape {frames.shape} are no clip of shape [at least 2, height, width, 3]")
    if not np.issubdtype(frames.dtype, np.floating):
        raise ValueError(f"frames are {frames.dtype}, not floats in 0..1")
    if not (frames.min() >= -1e-3 and frames.max() <= 1 + 1e-3):
        raise ValueError(f"frames reach from {frames.min():.3g} to {frames.max():.3g}, not within 0..1")


def _direction(piece: NDArray[np.bool_], shown: NDArray[np.intp]) -> str:
    """Where the centroid goes: the median slope between all pairs of frames (Theil and Sen), so that frames in which
    the largest piece is another one do not count."""
    height, last = piece.shape[1], len(piece) - 1
    centres = np.array([np.argwhere(piece[frame]).mean(axis=0) for frame in shown]) / height
    pairs = np.array(list(itertools.combinations(range(len(shown)), 2))).T
    steps = (centres[pairs[1]] - centres[pairs[0]]) / (shown[pairs[1]] - shown[pairs[0]])[:, None]
    y, x = np.median(steps, axis=0) * last
    if np.hypot(x, y) < LEAST_TRAVEL:
        return STILL
    ways = {**DIRECTIONS, **DIAGONALS}
    return max(ways, key=lambda name: (x * ways[name][0] + y * ways[name][1]) / np.hypot(*ways[name]))


def _shape(piece: NDArray[np.bool_], shown: NDArray[np.intp]) -> str:
    """The outline whose corners are nearest to the median ones of the frames that show all of it, or of all frames."""
    inner = piece.copy()
    inner[:, 1:-1, 1:-1] = False
    whole = [frame for frame in shown if not inner[frame].any()] or list(shown)
    third, fourth = np.median([_corners(piece[frame]) for frame in whole], axis=0)
    return min(_CORNERS, key=lambda name: float(np.hypot(third - _CORNERS[name][0], fourth - _CORNERS[name][1])))


def _corners(outline: NDArray[np.bool_]) -> tuple[float, float]:
    """Third and fourth harmonic moment of a mask `[H, W]`, see `_CORNERS`."""
    y, x = np.nonzero(outline)
    z = (x - x.mean()) + 1j * (y - y.mean())
    return float(abs((z**3).sum()) / len(z) ** 2.5), float(abs((z**4).sum()) / len(z) ** 3)


def _widened(mask: NDArray[np.bool_], reach: int) -> NDArray[np.bool_]:
    """A mask `[F, H, W]` grown by `reach` pixels in all directions."""
    for axis in (1, 2):
        size = mask.shape[axis]
        padded = np.pad(mask, [(reach, reach) if axis == each else (0, 0) for each in range(3)])
        mask = np.logical_or.reduce([padded.take(range(start, start + size), axis) for start in range(2 * reach + 1)])
    return mask

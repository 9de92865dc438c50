"""The foreground of a clip: how much of a pixel is a coloured object, which colour, and which pixels hang together."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .captions import COLORS

Frames = NDArray[np.floating]
"""Floats `[F, H, W, 3]` in 0..1."""

NAMES: tuple[str, ...] = tuple(COLORS)
_CHROMA, _GREY, _WHITE = 0.65, 0.50, 0.46
"""The least range between an object's channels; the lightest backdrop; and what white has above it."""
_PALE = 0.30
"""Below this range between the channels, a light pixel is white rather than coloured."""


def cover(frames: Frames) -> NDArray[np.float32]:
    """About how much of each pixel `[F, H, W]` an object covers, 0..1: backdrops are greyish and dark, objects not."""
    low, high = _ends(frames)
    return np.clip(np.maximum((high - low) / _CHROMA, (low - _GREY) / _WHITE), 0, 1).astype(np.float32)


def colors(pixels: Frames) -> NDArray[np.intp]:
    """The index in `NAMES` of the colour nearest to each of `pixels` `[N, 3]`.

    Coloured pixels are compared by hue, which a soft edge on grey does not change.
    """
    coloured = np.array([index for index, name in enumerate(NAMES) if name != "white"])
    hues = _hues(np.array([COLORS[NAMES[index]] for index in coloured]))
    # Nearest, as |a - b|^2 without a's own part.
    nearest = coloured[(_hues(pixels) @ hues.T - (hues**2).sum(axis=1) / 2).argmax(axis=1)]
    low, high = _ends(pixels)
    return np.where(high - low < _PALE, NAMES.index("white"), nearest)


def label(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """A number for each connected piece of a mask `[F, H, W]`, 0 outside; pieces are joined by sides within a frame."""
    numbers = np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0)
    while True:
        before = numbers
        for axis in (2, 1):
            numbers = np.flip(_spread(np.flip(_spread(numbers, axis), axis), axis), axis)
        if np.array_equal(numbers, before):
            return numbers


def main_pieces(mask: NDArray[np.bool_], least: int) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """The largest piece of each frame, as a mask, and the pixels `[F, 2]` of its largest and second largest.

    Args:
        least: pixels of a piece; smaller ones don't count.
    """
    numbers = label(mask)
    found, counts = np.unique(numbers[mask], return_counts=True)
    sizes = np.zeros((len(mask), 2), np.int64)
    chosen = np.zeros(len(mask), np.int64)
    order = np.argsort(-counts, kind="stable")
    for number, count in zip(found[order], counts[order], strict=True):
        frame = (number - 1) // mask[0].size
        if count < least or sizes[frame, 1]:
            continue
        if not sizes[frame, 0]:
            chosen[frame] = number
        sizes[frame, int(sizes[frame, 0] > 0)] = count
    return mask & (numbers == chosen[:, None, None]), sizes


def _spread(numbers: NDArray[np.int64], axis: int) -> NDArray[np.int64]:
    """Each pixel takes the largest number before it in its run along `axis`."""
    # A run's own count goes above the number, so that the running maximum starts again with each run.
    step = numbers.size + 1
    runs = np.cumsum(numbers == 0, axis=axis, dtype=np.int64)
    highest = np.maximum.accumulate(runs * step + numbers, axis=axis) - runs * step
    return np.where(numbers > 0, highest, 0)


def _ends(colours: Frames) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """The least and the greatest channel of each of `[..., 3]`; numpy is slow at reducing so short an axis."""
    red, green, blue = (colours[..., channel] for channel in range(3))
    return np.minimum(np.minimum(red, green), blue), np.maximum(np.maximum(red, green), blue)


def _hues(pixels: Frames) -> NDArray[np.floating]:
    """What is not grey of colours `[N, 3]`, its greatest channel 1."""
    low, high = _ends(pixels)
    return np.asarray((pixels - low[:, None]) / np.maximum(high - low, 1e-6)[:, None])

"""The clip renderer: seeded, captioned videos of one coloured shape moving over a textured background.

Lengths are in frame heights, so a clip looks the same at every resolution. Only numpy is needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .captions import BACKGROUNDS, COLORS, DIRECTIONS, SHAPES, caption

_GREYS = ((0.16, 0.17, 0.20), (0.42, 0.42, 0.45))
_TINTS = ((0.0, 0.0, 0.0), (0.05, 0.0, -0.04), (-0.04, 0.0, 0.07), (-0.03, 0.05, 0.0))


@dataclass(frozen=True)
class Clip:
    """All that decides a clip's pixels, apart from its resolution.

    Attributes:
        shape, color, direction, background: names from `vidaccel_miniatures.captions`.
        radius: half the object's extent, in frame heights.
        travel: how far the object moves from the first to the last frame, in frame heights.
        center: where the object is half-way, as fractions (x, y) of the frame.
        tones: the background's two colours, sRGB in 0..1.
        period: the texture's period in frame heights; angle: its direction in radians.
        pan: the background's displacement (x, y) over the whole clip, in frame heights.
        text: the caption.
    """

    shape: str
    color: str
    direction: str
    background: str
    radius: float
    travel: float
    center: tuple[float, float]
    tones: tuple[tuple[float, ...], tuple[float, ...]]
    period: float
    angle: float
    pan: tuple[float, float]
    text: str


def sample_clip(seed: int) -> Clip:
    """Draw the clip that belongs to `seed`: the same seed gives the same clip everywhere."""
    rng = np.random.default_rng(seed)
    shape, color = str(rng.choice(SHAPES)), str(rng.choice(list(COLORS)))
    direction, background = str(rng.choice(list(DIRECTIONS))), str(rng.choice(list(BACKGROUNDS)))
    panning = background in ("checkerboard", "stripes") and rng.random() < 0.25
    heading = rng.uniform(0, 2 * np.pi)
    distance = rng.uniform(0.2, 0.4) if panning else 0.0
    return Clip(
        shape=shape, color=color, direction=direction, background=background,
        radius=rng.uniform(0.17, 0.23),
        travel=rng.uniform(0.40, 0.56) if direction in ("up", "down") else rng.uniform(0.55, 0.90),
        center=(0.5 + rng.uniform(-0.06, 0.06), 0.5 + rng.uniform(-0.03, 0.03)),
        tones=_tones(rng),
        period=rng.uniform(0.40, 0.56),
        angle=float(rng.choice([0.0, np.pi / 2])) if background == "stripes" else 0.0,
        pan=(float(distance * np.cos(heading)), float(distance * np.sin(heading))),
        text=caption(rng, shape, color, direction, background, panning),
    )  # fmt: skip


def render(
    clip: Clip, num_frames: int = 49, height: int = 144, width: int = 208, span: tuple[int, int] | None = None
) -> np.ndarray:
    """Draw `clip`, anti-aliased: uint8 `[num_frames, height, width, 3]`, or `span`'s (from, to) only."""
    start, stop = span or (0, num_frames)
    frames = np.empty((stop - start, height, width, 3), np.uint8)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    x, y = (x + 0.5) / height, (y + 0.5) / height
    color = np.asarray(COLORS[clip.color], np.float32)
    backdrop = None
    for index in range(start, stop):
        phase = index / max(num_frames - 1, 1)
        if backdrop is None or any(clip.pan):
            backdrop = _background(clip, x - clip.pan[0] * phase, y - clip.pan[1] * phase, height, width)
        cx, cy = position(clip, phase, width / height)
        cover = _coverage(
            _distance(clip.shape, (x - cx) / clip.radius, (y - cy) / clip.radius) * clip.radius, height
        )
        frames[index - start] = ((backdrop + (color - backdrop) * cover[..., None]) * 255 + 0.5).astype(
            np.uint8
        )
    return frames


def position(clip: Clip, phase: float, aspect: float) -> tuple[float, float]:
    """The object's centre (x, y) in frame heights at `phase` 0..1 of a clip `aspect` heights wide."""
    step = DIRECTIONS[clip.direction]
    offset = clip.travel * (phase - 0.5)
    return clip.center[0] * aspect + step[0] * offset, clip.center[1] + step[1] * offset


def dataset(
    seed: int, count: int, num_frames: int, height: int, width: int
) -> Iterator[tuple[np.ndarray, str]]:
    """Yield `count` pairs (frames, caption) for the seeds from `seed` upwards."""
    for index in range(seed, seed + count):
        clip = sample_clip(index)
        yield render(clip, num_frames, height, width), clip.text


def _tones(rng: np.random.Generator) -> tuple[tuple[float, ...], tuple[float, ...]]:
    tint = np.asarray(_TINTS[int(rng.integers(len(_TINTS)))])
    dark, light = (np.asarray(grey) + tint + rng.uniform(-0.03, 0.03) for grey in _GREYS)
    pair = (light, dark) if rng.random() < 0.5 else (dark, light)
    return tuple(map(float, pair[0])), tuple(map(float, pair[1]))


def _coverage(distance: np.ndarray, height: int) -> np.ndarray:
    """Share of each pixel inside an outline, from its signed distance (negative inside) in frame heights."""
    return np.clip(0.5 - distance * height, 0.0, 1.0)


def _distance(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Signed distance, in radii, to an outline centred on the origin."""
    if shape == "circle":
        return np.hypot(x, y) - 1.0
    if shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) - 0.86
    # The three edge lines of an isosceles triangle, point up.
    return np.maximum((2.0 * np.abs(x) - y - 1.0) / np.sqrt(5.0), y - 0.9)


def _background(clip: Clip, x: np.ndarray, y: np.ndarray, height: int, width: int) -> np.ndarray:
    """The texture's colours `[height, width, 3]` at the points (x, y), in frame heights."""
    first, second = (np.asarray(tone, np.float32) for tone in clip.tones)
    if clip.background == "plain":
        return np.broadcast_to(first, (*x.shape, 3))
    if clip.background == "gradient":
        mix = x * (height / width)
    elif clip.background == "stripes":
        mix = _wave(x * np.cos(clip.angle) + y * np.sin(clip.angle), clip.period, height)
    else:
        a, b = _wave(x, clip.period, height), _wave(y, clip.period, height)
        mix = a + b - 2 * a * b
    return first + (second - first) * mix[..., None].astype(np.float32)


def _wave(t: np.ndarray, period: float, height: int) -> np.ndarray:
    """A square wave 0/1 along `t`, its edges softened over one pixel."""
    folded = np.abs((t / period) % 1.0 - 0.5) - 0.25
    return np.clip(0.5 + folded * period * height, 0.0, 1.0)

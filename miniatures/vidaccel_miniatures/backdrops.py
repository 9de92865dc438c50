"""What is behind the objects of a clip: five textures in muted colours, still or panning."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_GREYS = ((0.16, 0.17, 0.20), (0.42, 0.42, 0.45))
_TINTS = ((0.0, 0.0, 0.0), (0.05, 0.0, -0.04), (-0.04, 0.0, 0.07), (-0.03, 0.05, 0.0))
_LATTICE = 16


@dataclass(frozen=True)
class Backdrop:
    """A texture.

    Attributes:
        kind: a name from `vidaccel_miniatures.captions.BACKGROUNDS`.
        tones: its two colours, sRGB in 0..1.
        period: its period in frame heights.
        angle: the direction in radians along which stripes and gradients change.
        pan: its displacement (x, y) over the whole clip, in frame heights.
        seed: of the noise.
    """

    kind: str
    tones: tuple[tuple[float, ...], tuple[float, ...]]
    period: float
    angle: float
    pan: tuple[float, float]
    seed: int

    @property
    def pans(self) -> bool:
        """Whether it moves."""
        return any(self.pan)


def sample(rng: np.random.Generator, kind: str) -> Backdrop:
    """A backdrop of this kind; textures pan in one clip of four."""
    panning = kind in ("checkerboard", "stripes", "noise") and rng.random() < 0.25
    heading, distance = rng.uniform(0, 2 * np.pi), rng.uniform(0.2, 0.4) if panning else 0.0
    return Backdrop(
        kind=kind,
        tones=_tones(rng),
        period=rng.uniform(0.40, 0.56),
        angle=float(rng.choice([0.0, np.pi / 2])) if kind == "stripes" else 0.0,
        pan=(float(distance * np.cos(heading)), float(distance * np.sin(heading))),
        seed=int(rng.integers(2**31)),
    )


def paint(backdrop: Backdrop, x: np.ndarray, y: np.ndarray, phase: float, height: int) -> np.ndarray:
    """Its colours `[H, W, 3]`, float32 in 0..1, at `phase` 0..1 of the clip.

    Args:
        x, y: the pixels' centres `[H, W]`, in frame heights.
        height: the frame's, in pixels; edges are softened over one pixel.
    """
    first, second = (np.asarray(tone, np.float32) for tone in backdrop.tones)
    x, y = x - backdrop.pan[0] * phase, y - backdrop.pan[1] * phase
    mix = _MIXES[backdrop.kind](backdrop, x, y, height)
    return first + (second - first) * mix[..., None].astype(np.float32)


def _tones(rng: np.random.Generator) -> tuple[tuple[float, ...], tuple[float, ...]]:
    tint = np.asarray(_TINTS[int(rng.integers(len(_TINTS)))])
    dark, light = (np.asarray(grey) + tint + rng.uniform(-0.03, 0.03) for grey in _GREYS)
    pair = (light, dark) if rng.random() < 0.5 else (dark, light)
    return tuple(map(float, pair[0])), tuple(map(float, pair[1]))


def _plain(backdrop: Backdrop, x: np.ndarray, y: np.ndarray, height: int) -> np.ndarray:
    return np.zeros_like(x)


def _gradient(backdrop: Backdrop, x: np.ndarray, y: np.ndarray, height: int) -> np.ndarray:
    return x * (height / x.shape[1])


def _checkerboard(backdrop: Backdrop, x: np.ndarray, y: np.ndarray, height: int) -> np.ndarray:
    a, b = _wave(x, backdrop.period, height), _wave(y, backdrop.period, height)
    return a + b - 2 * a * b


def _stripes(backdrop: Backdrop, x: np.ndarray, y: np.ndarray, height: int) -> np.ndarray:
    return _wave(x * np.cos(backdrop.angle) + y * np.sin(backdrop.angle), backdrop.period, height)


def _noise(backdrop: Backdrop, x: np.ndarray, y: np.ndarray, height: int) -> np.ndarray:
    """Value noise: random values on a lattice, which repeats, joined by smoothsteps."""
    lattice = np.random.default_rng(backdrop.seed).random((_LATTICE, _LATTICE), np.float32)
    u, v = x / backdrop.period, y / backdrop.period
    i, j = np.floor(u).astype(int), np.floor(v).astype(int)
    s, t = (w * w * (3 - 2 * w) for w in (u - i, v - j))

    def value(di: int, dj: int) -> np.ndarray:
        return lattice[(j + dj) % _LATTICE, (i + di) % _LATTICE]

    top = value(0, 0) + (value(1, 0) - value(0, 0)) * s
    bottom = value(0, 1) + (value(1, 1) - value(0, 1)) * s
    return top + (bottom - top) * t


def _wave(t: np.ndarray, period: float, height: int) -> np.ndarray:
    """A square wave 0/1 along `t`, its edges softened over one pixel."""
    folded = np.abs((t / period) % 1.0 - 0.5) - 0.25
    return np.clip(0.5 + folded * period * height, 0.0, 1.0)


_MIXES = {
    "plain": _plain, "gradient": _gradient, "checkerboard": _checkerboard, "stripes": _stripes, "noise": _noise,
}  # fmt: skip

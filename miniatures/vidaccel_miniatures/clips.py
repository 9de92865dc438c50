"""The clip renderer: seeded, captioned videos of coloured shapes that move over a textured background.

A clip is decided by `sample_clip(seed)` and drawn by `render`, at any size: lengths are in frame heights, so a clip
looks the same at every resolution. Only numpy is needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from . import backdrops
from .backdrops import Backdrop
from .captions import BACKGROUNDS, COLORS, DIAGONALS, DIRECTIONS, SHAPES, caption, held_out

_KINDS = {
    "straight": 0.70, "two": 0.10, "diagonal": 0.06, "rotate": 0.04, "grow": 0.03, "shrink": 0.02, "bounce": 0.03,
    "still": 0.02,
}  # fmt: skip
"""What clips show, and how often: a direction can only be learnt from motion that has one."""
_HELD_OUT = frozenset(held_out())


@dataclass(frozen=True)
class Item:
    """One moving object.

    Attributes:
        shape, color, motion: names from `vidaccel_miniatures.captions`.
        radius: half the object's extent half-way through the clip, in frame heights.
        travel: how far it moves from the first to the last frame, in frame heights; of a rotation, radians; of a change
            of size, the last radius over the first; of bounces, their height.
        center: where it is half-way, as fractions (x, y) of the frame.
    """

    shape: str
    color: str
    motion: str
    radius: float
    travel: float
    center: tuple[float, float]


@dataclass(frozen=True)
class Clip:
    """All that decides a clip's pixels, apart from its resolution: its objects, the nearest first, and what is behind.

    `text` is the caption.
    """

    items: tuple[Item, ...]
    backdrop: Backdrop
    text: str

    @property
    def combination(self) -> tuple[str, str, str, str]:
        """Shape, colour and motion of the first object, and the background."""
        first = self.items[0]
        return first.shape, first.color, first.motion, self.backdrop.kind


def sample_clip(seed: int) -> Clip:
    """Draw the clip that belongs to `seed`: the same seed gives the same clip everywhere.

    No clip shows one of the combinations in `captions.held_out`.
    """
    rng = np.random.default_rng(seed)
    while True:
        kind = str(rng.choice(list(_KINDS), p=list(_KINDS.values())))
        items = _two(rng) if kind == "two" else (_item(rng, kind),)
        backdrop = backdrops.sample(rng, str(rng.choice(list(BACKGROUNDS))))
        described = [(item.shape, item.color, item.motion) for item in items]
        clip = Clip(items, backdrop, caption(rng, described, backdrop.kind, backdrop.pans))
        if clip.combination not in _HELD_OUT:
            return clip


def clip_of(shape: str, color: str, direction: str, background: str, seed: int) -> Clip:
    """A clip of one object with this combination, held out or not, all else drawn from `seed`."""
    rng = np.random.default_rng(seed)
    item = _item(rng, "straight", shape, color, direction)
    backdrop = backdrops.sample(rng, background)
    return Clip((item,), backdrop, caption(rng, [(shape, color, direction)], background, backdrop.pans))


def render(
    clip: Clip, num_frames: int = 49, height: int = 144, width: int = 208, span: tuple[int, int] | None = None
) -> np.ndarray:
    """Draw `clip`, anti-aliased: uint8 `[num_frames, height, width, 3]`, or `span`'s (from, to) only."""
    start, stop = span or (0, num_frames)
    frames = np.empty((stop - start, height, width, 3), np.uint8)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    x, y = (x + 0.5) / height, (y + 0.5) / height
    behind = None
    for index in range(start, stop):
        phase = index / max(num_frames - 1, 1)
        if behind is None or clip.backdrop.pans:
            behind = backdrops.paint(clip.backdrop, x, y, phase, height)
        picture = behind
        for item in reversed(clip.items):
            cover = _cover(item, x, y, phase, height, width)
            picture = picture + (np.asarray(COLORS[item.color], np.float32) - picture) * cover[..., None]
        frames[index - start] = (picture * 255 + 0.5).astype(np.uint8)
    return frames


def position(item: Item, phase: float, aspect: float) -> tuple[float, float]:
    """The object's centre (x, y) in frame heights at `phase` 0..1 of a clip `aspect` heights wide."""
    x, y = item.center[0] * aspect, item.center[1]
    step = {**DIRECTIONS, **DIAGONALS}.get(item.motion, (0, 0))
    offset = item.travel * (phase - 0.5)
    if item.motion == "bounce":
        # Two hops, each a parabola, with the ground half a hop below the centre.
        hop = (2 * phase) % 1.0
        return x, y + item.travel * (0.5 - 4 * hop * (1 - hop))
    return x + step[0] * offset, y + step[1] * offset


def dataset(
    seed: int, count: int, num_frames: int, height: int, width: int
) -> Iterator[tuple[np.ndarray, str]]:
    """Yield `count` pairs (frames, caption) for the seeds from `seed` upwards."""
    for index in range(seed, seed + count):
        clip = sample_clip(index)
        yield render(clip, num_frames, height, width), clip.text


def _item(
    rng: np.random.Generator, kind: str, shape: str = "", color: str = "", motion: str = ""
) -> Item:
    """An object of this kind of motion; what is not given is drawn."""
    shape = shape or str(rng.choice(SHAPES[1:] if kind == "rotate" else SHAPES))
    color = color or str(rng.choice(list(COLORS)))
    named = {"straight": DIRECTIONS, "diagonal": DIAGONALS}.get(kind, {kind: (0, 0)})
    motion = motion or str(rng.choice(list(named)))
    return Item(
        shape, color, motion, radius=rng.uniform(0.15, 0.24), travel=_travel(rng, motion),
        center=(0.5 + rng.uniform(-0.06, 0.06), 0.5 + rng.uniform(-0.03, 0.03)),
    )  # fmt: skip


def _travel(rng: np.random.Generator, motion: str) -> float:
    ranges = {
        "left": (0.55, 0.90), "right": (0.55, 0.90), "up": (0.40, 0.56), "down": (0.40, 0.56),
        "rotate": (2.0, 4.0), "grow": (1.8, 2.6), "shrink": (1.8, 2.6), "bounce": (0.25, 0.40), "still": (0.0, 0.0),
    }  # fmt: skip
    travel = rng.uniform(*ranges.get(motion, (0.35, 0.50)))
    return 1 / travel if motion == "shrink" else travel


def _two(rng: np.random.Generator) -> tuple[Item, Item]:
    """An object that passes in front of one that rests, of another colour."""
    front = _item(rng, "straight")
    others = [color for color in COLORS if color != front.color]
    return front, _item(rng, "still", color=str(rng.choice(others)))


def _cover(item: Item, x: np.ndarray, y: np.ndarray, phase: float, height: int, width: int) -> np.ndarray:
    """Share of each pixel inside the object's outline."""
    cx, cy = position(item, phase, width / height)
    radius, angle = item.radius, 0.0
    if item.motion in ("grow", "shrink"):
        radius *= item.travel ** (phase - 0.5)
    if item.motion == "rotate":
        angle = item.travel * phase
    u, v = (x - cx) / radius, (y - cy) / radius
    u, v = u * np.cos(angle) + v * np.sin(angle), v * np.cos(angle) - u * np.sin(angle)
    # The signed distance, in pixels, is the coverage around an edge.
    return np.clip(0.5 - _distance(item.shape, u, v) * radius * height, 0.0, 1.0)


def _distance(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Signed distance, in radii, to an outline centred on the origin."""
    if shape == "circle":
        return np.hypot(x, y) - 1.0
    if shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) - 0.86
    # The three edge lines of an isosceles triangle, point up.
    return np.maximum((2.0 * np.abs(x) - y - 1.0) / np.sqrt(5.0), y - 0.9)

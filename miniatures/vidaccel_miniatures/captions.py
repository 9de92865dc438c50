"""The words of the miniature world: what a clip can show, and how a caption says it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

COLORS: dict[str, tuple[float, float, float]] = {
    "red": (0.90, 0.13, 0.12),
    "green": (0.12, 0.75, 0.20),
    "blue": (0.15, 0.30, 0.95),
    "yellow": (0.97, 0.87, 0.12),
    "purple": (0.70, 0.20, 0.85),
    "white": (0.96, 0.96, 0.96),
}
"""Object colours by name, sRGB in 0..1."""

SHAPES: tuple[str, ...] = ("circle", "square", "triangle")
"""Object outlines."""

DIRECTIONS: dict[str, tuple[int, int]] = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
"""Unit steps (x, y) by name; y points down, as in an image."""

DIAGONALS: dict[str, tuple[int, int]] = {
    f"{vertical} and {side}": (DIRECTIONS[side][0], DIRECTIONS[vertical][1])
    for vertical in ("up", "down")
    for side in ("left", "right")
}
"""Steps (x, y) of the diagonal motions by name."""

DEEDS: dict[str, tuple[str, ...]] = {
    "rotate": ("rotates", "spins", "turns in place"),
    "grow": ("grows", "gets bigger"),
    "shrink": ("shrinks", "gets smaller"),
    "bounce": ("bounces", "bounces up and down"),
    "still": ("stays still", "rests"),
}
"""Motions that lead nowhere, and their wordings."""

MOTIONS: tuple[str, ...] = (*DIRECTIONS, *DIAGONALS, *DEEDS)
"""Every motion an object can have."""

BACKGROUNDS: dict[str, tuple[str, ...]] = {
    "plain": ("a plain background", "a flat background"),
    "gradient": ("a gradient", "a smooth gradient"),
    "checkerboard": ("a checkerboard", "a checkered floor"),
    "stripes": ("stripes", "a striped background"),
    "noise": ("soft clouds", "a cloudy background"),
}
"""Background kinds and their wordings."""

VERBS: tuple[str, ...] = ("moves", "slides", "drifts", "glides")
PANS: tuple[str, ...] = ("as the camera pans", "while the background slides by")
MAX_TOKENS = 32
"""Longest text the miniature pipelines read, in tokens (pass it as `max_sequence_length`)."""

Combination = tuple[str, str, str, str]
"""Shape, colour, direction and background of a clip's first object."""


def caption(
    rng: np.random.Generator, objects: Sequence[tuple[str, str, str]], background: str, panning: bool
) -> str:
    """One random wording of a clip; motion, background and panning are left out now and then.

    Args:
        objects: shape, colour and motion of each, the nearest first.
    """
    words = _object(rng, *objects[0])
    words += "".join(f" in front of a {color} {shape}" for shape, color, _ in objects[1:])
    if rng.random() >= 0.12:
        words += f" {'over' if rng.random() < 0.7 else 'across'} {rng.choice(BACKGROUNDS[background])}"
    if panning and rng.random() >= 0.3:
        words += f" {rng.choice(PANS)}"
    return words


def prompt_for(shape: str, color: str, direction: str, background: str) -> str:
    """The plainest wording of a combination."""
    return f"a {color} {shape} moves {direction} over {BACKGROUNDS[background][0]}"


def held_out() -> tuple[Combination, ...]:
    """The 48 combinations that no training clip shows: two of every colour and direction, the same everywhere."""
    pairs = [pair for pair in itertools.product(COLORS, DIRECTIONS) for _ in range(2)]
    rest = list(itertools.product(SHAPES, BACKGROUNDS))
    order = np.random.default_rng(48).permutation(len(rest))
    return tuple(
        (rest[order[slot % len(rest)]][0], color, direction, rest[order[slot % len(rest)]][1])
        for slot, (color, direction) in enumerate(pairs)
    )


def vocabulary() -> list[str]:
    """Every word a caption can hold, each once. New words only ever go to the end: a word's number never changes."""
    first = ["a the to over across", *COLORS, *SHAPES, *DIRECTIONS, *VERBS, *PANS]
    first += [wording for kind in ("plain", "gradient", "checkerboard", "stripes") for wording in BACKGROUNDS[kind]]
    since = ["in front of and", *BACKGROUNDS["noise"], *(words for deed in DEEDS.values() for words in deed)]
    known = sorted({word for phrase in first for word in phrase.split()})
    return known + sorted({word for phrase in since for word in phrase.split()} - set(known))


def _object(rng: np.random.Generator, shape: str, color: str, motion: str) -> str:
    words = f"{'the' if rng.random() < 0.2 else 'a'} {color} {shape}"
    if motion in DEEDS:
        return f"{words} {rng.choice(DEEDS[motion])}"
    words += f" {rng.choice(VERBS)}"
    if rng.random() >= 0.08:
        words += f" {'to the ' if motion in ('left', 'right') and rng.random() < 0.25 else ''}{motion}"
    return words

"""The words of the miniature world: what a clip can show, and how a caption says it."""

from __future__ import annotations

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

BACKGROUNDS: dict[str, tuple[str, ...]] = {
    "plain": ("a plain background", "a flat background"),
    "gradient": ("a gradient", "a smooth gradient"),
    "checkerboard": ("a checkerboard", "a checkered floor"),
    "stripes": ("stripes", "a striped background"),
}
"""Background kinds and their wordings."""

VERBS: tuple[str, ...] = ("moves", "slides", "drifts", "glides")
PANS: tuple[str, ...] = ("as the camera pans", "while the background slides by")
MAX_TOKENS = 32
"""Longest text the miniature pipelines read, in tokens (pass it as `max_sequence_length`)."""


def caption(
    rng: np.random.Generator, shape: str, color: str, direction: str, background: str, panning: bool
) -> str:
    """One random wording of a clip; direction, background and panning are left out now and then."""
    words = f"{'the' if rng.random() < 0.2 else 'a'} {color} {shape} {rng.choice(VERBS)}"
    if rng.random() >= 0.08:
        words += f" {'to the ' if direction in ('left', 'right') and rng.random() < 0.25 else ''}{direction}"
    if rng.random() >= 0.12:
        words += f" {'over' if rng.random() < 0.7 else 'across'} {rng.choice(BACKGROUNDS[background])}"
    if panning and rng.random() >= 0.3:
        words += f" {rng.choice(PANS)}"
    return words


def vocabulary() -> list[str]:
    """Every word a caption can hold, sorted, each once."""
    phrases = ["a the to over across", *COLORS, *SHAPES, *DIRECTIONS, *VERBS, *PANS]
    phrases += [wording for wordings in BACKGROUNDS.values() for wording in wordings]
    return sorted({word for phrase in phrases for word in phrase.split()})

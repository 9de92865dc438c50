"""What was measured of a run's guided outputs: enough to know the error of any linear combination of them."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vidaccel import strict

DIGITS = 10
"""Significant digits of a product: what two outputs differ by is a small part of what they are."""
RIDGE = 1e-6
"""Of a fit, relative to the outputs' own products: outputs of neighbouring steps are nearly the same."""
MOST = 1e12


@dataclass(frozen=True)
class Guided:
    """Inner products of the outputs that a scheduler was given, and what an error of each does to the clip.

    Guided outputs are what guidance makes of all passes of a step. Where each pass is given the same combination of
    its own kept outputs, the guided output is that combination of the guided ones; so these products alone give the
    squared error of every schedule and every predictor that combines outputs.

    Args:
        products: of the outputs of steps `i` and ``j <= i``, row `i`; means over prompts, each in units of the mean
            square of that run's outputs.
        effects: of each step: how far the final latents move for an error of its output, norm by norm.
    """

    products: tuple[tuple[float, ...], ...]
    effects: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """As in a file, JSON-ready."""
        return {"products": [list(row) for row in self.products], "effects": list(self.effects)}

    @classmethod
    def read(cls, value: Any, steps: int, where: str) -> Guided:
        """One from a file, of a run of `steps` steps.

        Raises:
            ValueError: it is not one.
        """
        known = ("products", "effects")
        strict.names(where, value, known, known)
        rows = strict.listed(f"{where}: products", value["products"], steps, steps)
        read = tuple(tuple(strict.signed(f"{where}: products[{i}]", each, MOST)
                           for each in strict.listed(f"{where}: products[{i}]", row, i + 1, i + 1))
                     for i, row in enumerate(rows))  # fmt: skip
        effects = strict.listed(f"{where}: effects", value["effects"], steps, steps)
        return cls(read, tuple(strict.number(f"{where}: effects", each, MOST) for each in effects))

    @functools.cached_property
    def matrix(self) -> Any:
        """All products, symmetric."""
        below = np.array([[*row, *[0.0] * (len(self.products) - len(row))] for row in self.products])
        return below + np.tril(below, -1).T

    def fit(self, past: Sequence[int], step: int) -> tuple[float, ...]:
        """The weights of the outputs of `past` steps whose sum is nearest to that of `step`, in the mean square."""
        inner = self.matrix[np.ix_((*past, step), (*past, step))]
        own = inner[:-1, :-1] + RIDGE * np.trace(inner[:-1, :-1]) / len(past) * np.eye(len(past))
        return tuple(np.linalg.solve(own, inner[:-1, -1]).tolist())

    def error(self, past: Sequence[int], weights: Sequence[float], step: int) -> float:
        """How far the weighted sum of past outputs is from that of `step`: the norm of the difference."""
        signed, steps = np.array([*weights, -1.0]), (*past, step)
        # Rounding may leave less than nothing of a perfect prediction.
        return math.sqrt(max(0.0, float(signed @ self.matrix[np.ix_(steps, steps)] @ signed)))


def exact(value: float) -> float:
    """A product as a file has it."""
    return float(f"{value:.{DIGITS}g}")

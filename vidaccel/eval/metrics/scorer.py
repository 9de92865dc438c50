"""Scorers: outside judges of one clip alone, without a reference, such as VBench's; found by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib.metadata import entry_points
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vidaccel.eval.metrics.vbench import VBench

GROUP = "vidaccel.scorers"
"""Group of entry points by which other distributions bring scorers."""
BETTER = ("higher", "lower")


class Scorer(Protocol):
    """Judges clips. Made by what is found under its name, given what follows the colon."""

    name: str
    """In records: ``found`` or ``found:option``, as it was asked for."""
    better: str
    """Which scores are: "higher" or "lower"."""
    version: str
    """Of what scores."""

    def score(self, frames: NDArray[np.uint8], fps: float, prompt: str) -> float:
        """The score of a clip ``[frames, height, width, 3]``.

        Raises:
            Exception: it cannot be scored, which its record then says.
        """


def known() -> dict[str, Callable[[], Callable[[str], Scorer]]]:
    """What makes scorers, by the first part of their names; nothing of them is imported yet."""
    found: dict[str, Callable[[], Callable[[str], Scorer]]] = {each.name: each.load
                                                               for each in entry_points(group=GROUP)}  # fmt: skip
    return {"vbench": lambda: VBench, **found}


def scorers(names: Iterable[str]) -> list[Scorer]:
    """The scorers of these names, each once.

    Args:
        names: such as "vbench:imaging_quality".

    Raises:
        ValueError: no name, an unknown one, or a scorer that cannot work here.
    """
    asked, makers = list(dict.fromkeys(names)), known()
    if not asked:
        raise ValueError(f"name a scorer, NAME or NAME:OPTION; there are {', '.join(makers)}")
    unknown = [name for name in asked if name.split(":")[0] not in makers]
    if unknown:
        raise ValueError(f"unknown scorer {unknown[0]!r}; there are {', '.join(makers)}, and others that distributions "
                         f"bring as entry points of the group {GROUP!r}")  # fmt: skip
    return [_made(name, makers[name.split(":")[0]]()) for name in asked]


def _made(name: str, make: Callable[[str], Scorer]) -> Scorer:
    scorer = make(name.partition(":")[2])
    if scorer.name != name or scorer.better not in BETTER:
        raise ValueError(f"scorer {name!r} calls itself {scorer.name!r}, {scorer.better!r} being better: its name is "
                         f"what it was asked for by, and better {' or '.join(BETTER)}")  # fmt: skip
    return scorer

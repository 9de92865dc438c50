"""Which candidates are worth their time: the Pareto front of time and fidelity."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vidaccel.tune.candidate import Settings


@dataclass(frozen=True)
class Found:
    """A candidate that has run.

    Args:
        settings: what it is.
        time: predicted time of denoising, over that of the dense run.
        snr: signal to noise of the final latents, dB, mean over the prompts of the search.
        whole: whether it ran on all of these prompts; else `snr` is an estimate.
    """

    settings: Settings
    time: float
    snr: float
    whole: bool = True


def front(found: Iterable[Found]) -> list[Found]:
    """Those that ran on all prompts and that no other beats in both, from the fastest to the slowest."""
    kept: list[Found] = []
    for each in sorted(found, key=lambda one: (one.time, -one.snr)):
        if each.whole and (not kept or each.snr > kept[-1].snr):
            kept.append(each)
    return kept


def shortfall(time: float, snr: float, kept: Sequence[Found]) -> float:
    """Decibels by which the best that takes no longer is better; below 0 where none is."""
    rivals = [each.snr for each in kept if each.time <= time]
    return max(rivals, default=-math.inf) - snr


def spread(kept: Sequence[Found], count: int) -> list[Found]:
    """Up to `count` of a front, evenly apart in the logarithm of their times, the ends among them."""
    if len(kept) <= count:
        return list(kept)
    low, high = math.log(kept[0].time), math.log(kept[-1].time)
    chosen: list[Found] = []
    for at in range(count):
        wanted = low + (high - low) * at / max(1, count - 1)
        free = [each for each in kept if each not in chosen]
        chosen.append(min(free, key=lambda one, goal=wanted: abs(math.log(one.time) - goal)))  # type: ignore[misc]
    return sorted(chosen, key=lambda one: one.time)

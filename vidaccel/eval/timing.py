"""Times of a cell beside dense ones of the same process, and what its baselines take from them."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from typing import Any

from vidaccel.eval.runner import WARMUP_STEPS, Run
from vidaccel.summary import Summary


def timing(fast: Sequence[Run], dense: Sequence[Run], decoded: bool) -> dict[str, Any]:
    """Seconds, medians and speedups, JSON-ready; `dense` ran in the same process, shortly before or in turns."""
    parts = "whole generations" if decoded else "generations without decoding"
    return {
        "dense": [run.seconds for run in dense], "fast": [run.seconds for run in fast],
        **_ratio(_seconds(dense), _seconds(fast)), "denoising": _ratio(denoising(dense), denoising(fast)),
        "note": f"{parts}; dense timed in the same process, each warmed up with up to {WARMUP_STEPS} steps",
    }  # fmt: skip


def denoising(runs: Sequence[Run]) -> float | None:
    """Median seconds up to the end of the last step; None where the pipeline reports no steps."""
    times = [run.denoising for run in runs if run.denoising is not None]
    return statistics.median(times) if times else None


def equal_time_steps(steps: int, fast: Sequence[Run], dense: Sequence[Run]) -> int:
    """How many dense steps take the time of the fast run: at least 1, at most `steps`.

    Denoising is compared, as decoding takes the same time after any number of steps.
    """
    quick, slow = denoising(fast), denoising(dense)
    if quick is None or slow is None:
        quick, slow = _seconds(fast), _seconds(dense)
    return max(1, min(steps, round(steps * quick / slow)))


def equal_work_steps(steps: int, share: float) -> int:
    """How many dense steps are as much work as a run that computed `share` of its own: at least 1."""
    return max(1, round(steps * share))


def realised_density(summary: Summary) -> float | None:
    """Mean video density of the sparse calls of a run; None where it had none."""
    mean = summary.tally.density
    return None if mean is None else mean.video_density


def times_of(run: Run) -> Run:
    """A run without its clip, to be kept."""
    return dataclasses.replace(run, frames=None, latents=None, image=None)


def _seconds(runs: Sequence[Run]) -> float:
    return statistics.median(run.seconds for run in runs)


def _ratio(dense: float | None, fast: float | None) -> dict[str, float | None]:
    speedup = dense / fast if dense is not None and fast is not None else None
    return {"dense_median": dense, "fast_median": fast, "speedup": speedup}

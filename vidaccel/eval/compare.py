"""Dense against fast: the same pipeline, prompt and seed, each timed after a warm-up, in turns."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import vidaccel
from vidaccel.api import set_aside
from vidaccel.eval.metrics import compare_videos
from vidaccel.eval.runner import WARMUP_STEPS, OnSteps, Run, Runner, attached
from vidaccel.summary import Summary

Progress = Callable[[str, int, int], None]
"""Called after each denoising step with what runs, the steps done and all steps of the comparison."""


@dataclass(frozen=True)
class Comparison:
    """What `compare` saw: all timed runs, in order, and the summary of the last fast one."""

    dense: tuple[Run, ...]
    fast: tuple[Run, ...]
    summary: Summary
    metrics: dict[str, Any]

    @property
    def speedup(self) -> float:
        """Median dense seconds over median fast seconds."""
        return self.median("dense") / self.median("fast")

    def median(self, side: str) -> float:
        """Median seconds of the "dense" or the "fast" runs."""
        runs: tuple[Run, ...] = {"dense": self.dense, "fast": self.fast}[side]
        return statistics.median(run.seconds for run in runs)

    def timing(self) -> dict[str, Any]:
        """Seconds, medians and speedup, JSON-ready."""
        return {
            "dense": [run.seconds for run in self.dense],
            "fast": [run.seconds for run in self.fast],
            "dense_median": self.median("dense"),
            "fast_median": self.median("fast"),
            "speedup": self.speedup,
            "note": self._note(),
        }

    def _note(self) -> str:
        text = f"whole generations, dense and fast in turns, each warmed up with up to {WARMUP_STEPS} steps"
        parts = [[run.denoising for run in runs if run.denoising is not None] for runs in (self.dense, self.fast)]
        if all(parts):
            dense, fast = map(statistics.median, parts)
            text += f"; without decoding {dense:.2f} s dense and {fast:.2f} s fast ({dense / fast:.2f}x)"
        return text


def compare(
    pipe: Any,
    prompt: str,
    *,
    seed: int = 0,
    repeats: int = 3,
    enable_kwargs: Mapping[str, Any] | None = None,
    generation_kwargs: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Run `pipe` dense and with sparse attention from the same noise, and measure both.

    The pipeline ends as it was, also after an exception: what was enabled on it is set aside and put back.

    Args:
        pipe: a diffusers video pipeline.
        prompt: of all runs.
        seed: of the noise, drawn on the CPU, so that it does not depend on the device.
        repeats: timed runs of each kind.
        enable_kwargs: for `vidaccel.enable`.
        generation_kwargs: for the pipeline's call, `num_inference_steps` among them.

    Returns:
        Runs, summary and the metrics of the last fast run against the last dense one.

    Raises:
        ValueError: `repeats` below 1, or what `vidaccel.enable` refuses, before anything has run.
    """
    if repeats < 1:
        raise ValueError(f"repeats={repeats} is not a number of runs of at least 1")
    kwargs = dict(generation_kwargs or {})
    if kwargs.get("output_type", "np") != "np":
        raise ValueError(f"output_type={kwargs['output_type']!r}: clips are compared as arrays, output_type='np'")
    runner = Runner(pipe, kwargs)
    if progress is not None:
        runner.on_steps = counting(progress, 2 * runner.warm_steps + 2 * repeats * runner.steps)
    with set_aside(pipe):
        given = dict(enable_kwargs or {})
        session = vidaccel.enable(pipe, **given)
        session.detach()
        runner.warm_up(prompt, seed, None)
        if session.setting.cache is None:
            runner.warm_up(prompt, seed, session)
        elif session.setting.sparse:
            # Two steps are too few for a cache, and none of those that its calibration is of.
            bare = vidaccel.enable(pipe, **{**given, "cache": None})
            bare.detach()
            runner.warm_up(prompt, seed, bare)
        dense, fast = [], []
        for _ in range(repeats):
            dense.append(runner.run("dense", prompt, seed))
            with attached(session):
                fast.append(runner.run("fast", prompt, seed))
        metrics = compare_videos(dense[-1].clip, fast[-1].clip, reference_latents=dense[-1].latents,
                                 other_latents=fast[-1].latents)  # fmt: skip
        return Comparison(tuple(dense), tuple(fast), session.summary(), metrics)


def counting(progress: Progress, total: int) -> OnSteps:
    """Steps as they come, as steps done of `total`."""
    done = 0

    def advance(label: str, steps: int) -> None:
        nonlocal done
        done = min(done + steps, total)
        progress(label, done, total)

    return advance

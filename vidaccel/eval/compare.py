"""Dense against fast: the same pipeline, prompt and seed, each timed after a warm-up, in turns."""

from __future__ import annotations

import contextlib
import inspect
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import vidaccel
from vidaccel.eval.metrics import compare_videos
from vidaccel.pipelines import experts
from vidaccel.schedule import Schedule
from vidaccel.session import ATTRIBUTE, Session
from vidaccel.summary import Summary

WARMUP_STEPS = 2
Progress = Callable[[str, int, int], None]
"""Called after each denoising step with what runs, the steps done and all steps of the comparison."""


@dataclass(frozen=True)
class Run:
    """One generation: its frames ``[frames, height, width, 3]`` in [0, 1] and its time.

    `denoising` is the part of `seconds` up to the end of the last step, prompt encoding included; None where the
    pipeline reports no steps. The rest is decoding.
    """

    frames: NDArray[Any]
    seconds: float
    denoising: float | None


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
    runner = _Runner(pipe, prompt, seed, dict(generation_kwargs or {}), progress, repeats)
    with _set_aside(pipe):
        session = vidaccel.enable(pipe, **(enable_kwargs or {}))
        session.detach()
        runner.warm_up(session)
        dense, fast = [], []
        for _ in range(repeats):
            dense.append(runner.run("dense"))
            with _attached(session):
                fast.append(runner.run("fast"))
        metrics = compare_videos(dense[-1].frames, fast[-1].frames)
        return Comparison(tuple(dense), tuple(fast), session.summary(), metrics)


class _Runner:
    """Runs one pipeline again and again from the same noise, and counts steps for the progress."""

    def __init__(self, pipe: Any, prompt: str, seed: int, kwargs: dict[str, Any], progress: Progress | None,
                 repeats: int) -> None:
        self.pipe, self.prompt, self.seed, self.kwargs, self.progress = pipe, prompt, seed, kwargs, progress
        parameters = inspect.signature(pipe.__call__).parameters
        self.reports_steps = "callback_on_step_end" in parameters
        self.steps = int(kwargs.get("num_inference_steps", parameters["num_inference_steps"].default))
        self.warm_steps = min(WARMUP_STEPS, self.steps)
        self.done, self.total = 0, 2 * self.warm_steps + 2 * repeats * self.steps

    def warm_up(self, session: Session) -> None:
        """A short dense run and a short one with every step and layer sparse, so that all code has run once."""
        self.run("warm-up dense", num_inference_steps=self.warm_steps)
        schedule, session.schedule = session.schedule, Schedule(0, 0, 0)
        try:
            with _attached(session):
                self.run("warm-up fast", num_inference_steps=self.warm_steps)
        finally:
            session.schedule = schedule

    def run(self, label: str, **overrides: Any) -> Run:
        """One generation."""
        kwargs = {"output_type": "np", **self.kwargs, **overrides}
        step_ends: list[float] = []
        steps = int(kwargs.get("num_inference_steps", self.steps))

        def on_step_end(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            if step == steps - 1:
                _synchronize()
                step_ends.append(time.perf_counter())
            self._advance(label, 1)
            return tensors

        if self.reports_steps:
            kwargs["callback_on_step_end"] = on_step_end
        _synchronize()
        start = time.perf_counter()
        result = self.pipe(prompt=self.prompt, generator=torch.Generator("cpu").manual_seed(self.seed), **kwargs)
        _synchronize()
        seconds = time.perf_counter() - start
        if not self.reports_steps:
            self._advance(label, steps)
        denoising = step_ends[-1] - start if step_ends else None
        return Run(np.asarray(result.frames[0]), seconds, denoising)

    def _advance(self, label: str, steps: int) -> None:
        self.done = min(self.done + steps, self.total)
        if self.progress is not None:
            self.progress(label, self.done, self.total)


@contextlib.contextmanager
def _attached(session: Session) -> Iterator[None]:
    # One session for all fast runs: a user enables once, too, and its plan is made once.
    session.attach()
    try:
        yield
    finally:
        session.detach()


@contextlib.contextmanager
def _set_aside(pipe: Any) -> Iterator[None]:
    """The pipeline without what is enabled on it and without its own progress bar; both come back."""
    found = {id(old): old for module in experts(pipe).values() if (old := module.__dict__.get(ATTRIBUTE))}
    bar: dict[str, Any] | None = pipe.__dict__.get("_progress_bar_config")
    for session in found.values():
        session.detach()
    pipe.set_progress_bar_config(**{**(bar or {}), "disable": True})
    try:
        yield
    finally:
        vidaccel.disable(pipe)
        for session in found.values():
            session.attach()
        if bar is None:
            del pipe._progress_bar_config
        else:
            pipe.set_progress_bar_config(**bar)


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()

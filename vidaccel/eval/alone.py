"""A dense run alone, timed, for models whose family has no sparse attention yet."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from vidaccel.api import set_aside
from vidaccel.eval.compare import Progress, counting
from vidaccel.eval.evidence import describe, generation_settings
from vidaccel.eval.record import Record
from vidaccel.eval.runner import WARMUP_STEPS, Run, Runner

FILES = {"dense": "dense.mp4"}


def run_dense(
    pipe: Any, prompt: str, *, seed: int = 0, repeats: int = 3, generation_kwargs: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> tuple[Run, ...]:
    """Generate the same clip `repeats` times after a short warm-up, with nothing enabled on `pipe`.

    Args:
        pipe: any diffusers video pipeline with a transformer.
        seed: of the noise, drawn on the CPU.
        generation_kwargs: for the pipeline's call, `num_inference_steps` among them.

    Raises:
        ValueError: `repeats` below 1.
    """
    if repeats < 1:
        raise ValueError(f"repeats={repeats} is not a number of runs of at least 1")
    runner = Runner(pipe, dict(generation_kwargs or {}))
    if progress is not None:
        runner.on_steps = counting(progress, runner.warm_steps + repeats * runner.steps)
    with set_aside(pipe):
        runner.warm_up(prompt, seed, None)
        return tuple(runner.run("dense", prompt, seed) for _ in range(repeats))


def dense_record(
    kind: str, pipe: Any, name: str, prompt: str, seed: int, runs: tuple[Run, ...], call: Mapping[str, Any], fps: float,
    notes: list[str],
) -> Record:
    """The record of dense runs: no method, nothing to compare.

    Args:
        kind, name: of the record and of the model.
        call: the pipeline call's arguments; size, frames, steps and guidance must be among them.
        notes: why it is dense.
    """
    return Record.capture(
        kind=kind, seed=seed, prompt=prompt, negative_prompt=call.get("negative_prompt"), model=describe(pipe, name),
        settings=generation_settings(pipe, call, fps),
        method={}, schedule={}, backend=None, layout=None, density=None, calls={}, timing=_timing(runs), metrics={},
        notes=notes, mask_png=None, real_sizes=[], files=dict(FILES),
    )  # fmt: skip


def _timing(runs: tuple[Run, ...]) -> dict[str, Any]:
    note = f"whole generations, warmed up with up to {WARMUP_STEPS} steps"
    parts = [run.denoising for run in runs if run.denoising is not None]
    if parts:
        note += f"; without decoding {statistics.median(parts):.2f} s"
    seconds = [run.seconds for run in runs]
    return {"dense": seconds, "fast": [], "dense_median": statistics.median(seconds), "fast_median": None,
            "speedup": None, "note": note}

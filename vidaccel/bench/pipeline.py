"""``vidaccel bench model``: a user's own pipeline dense and accelerated in turns, beside the limit that its attention's
share predicts, as a record that can be contributed."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vidaccel.api import set_aside
from vidaccel.bench.measure import Spans
from vidaccel.bench.share import attention_timed, limit
from vidaccel.eval.caches import cached_run
from vidaccel.eval.compare import Comparison, Progress, compare, counting
from vidaccel.eval.evidence import describe, generation_settings
from vidaccel.eval.record import Captured
from vidaccel.eval.runner import LATENT, Runner
from vidaccel.eval.timing import timing


@dataclass(frozen=True)
class BenchRecord(Captured):
    """One pipeline, dense beside accelerated.

    Args:
        prediction: see `predicted`.
        cached: setting of the cache and what it did, see `vidaccel.eval.caches.cached_run`; None without one.
    """

    prediction: dict[str, Any]
    cached: dict[str, Any] | None = None


def measure(
    pipe: Any, name: str, prompt: str, *, seed: int, repeats: int, enable_kwargs: Mapping[str, Any],
    call: Mapping[str, Any], fps: float, progress: Progress | None = None,
) -> BenchRecord:  # fmt: skip
    """Time `pipe` dense and accelerated in turns after a warm-up, then attention alone; `pipe` ends as it was.

    Args:
        name: of the model, for the record.
        repeats: timed generations of each kind.
        enable_kwargs: for `vidaccel.enable`.
        call: arguments of the pipeline's call; size, frames, steps and guidance must be among them.
        fps: of the clip, for the record.

    Raises:
        ValueError: what `vidaccel.enable` refuses, before anything has run.
    """
    arguments = dict(call)
    seen = compare(pipe, prompt, seed=seed, repeats=repeats, enable_kwargs=enable_kwargs, generation_kwargs=arguments,
                   progress=progress)  # fmt: skip
    share = attention_run(pipe, prompt, seed, arguments, progress)
    values, about = seen.summary.to_dict(), describe(pipe, name)
    cached = cached_run(values, about["layers"], arguments["num_inference_steps"])
    return BenchRecord.capture(
        kind="bench", seed=seed, prompt=prompt, negative_prompt=arguments.get("negative_prompt"),
        model=about, settings=generation_settings(pipe, arguments, fps), method=values["method"],
        schedule=values["schedule"], backend=values["backend"], layout=values["layout"], density=values["density"],
        calls=values["calls"], timing=timing(seen.fast, seen.dense, decoded=True), metrics=seen.metrics,
        notes=values["notes"], files={}, prediction=predicted(seen, *share, cached["blocks_share"] if cached else 1.0),
        cached=cached,
    )  # fmt: skip


def attention_run(pipe: Any, prompt: str, seed: int, call: Mapping[str, Any],
                  progress: Progress | None) -> tuple[float, float]:  # fmt: skip
    """One more dense run up to the last step: seconds of its self-attention, and of all of it.

    Both of one run, since on a machine with other work two runs may differ by more than attention's share.
    """
    spans = Spans(pipe.device)
    with set_aside(pipe), attention_timed(pipe, spans):
        runner = Runner(pipe, dict(call))
        if progress is not None:
            runner.on_steps = counting(progress, runner.steps)
        run = runner.run("attention", prompt, seed, output_type=LATENT)
    return sum(spans.milliseconds()) / 1e3, run.seconds if run.denoising is None else run.denoising


def predicted(seen: Comparison, attention: float, denoised: float, computed: float = 1.0) -> dict[str, Any]:
    """What attention's share and the cache allow at most, by Amdahl's law, JSON-ready: of whole generations and of
    denoising alone.

    ``density_all_calls`` is the mean over sparse and dense calls that ran, ``computed_share`` the share of the blocks'
    calls that did; ``speedup`` is the limit at them and ``free_attention`` that of any method in as many calls.

    Args:
        attention, denoised: as of `attention_run`.
        computed: share of the blocks' calls that ran.
    """
    density = seen.summary.tally.calls_that_ran
    ends = [run.seconds - run.denoising for run in seen.dense if run.denoising is not None]
    whole = denoised + (statistics.median(ends) if ends else 0.0)
    found: dict[str, Any] = {"attention_seconds": attention, "density_all_calls": density, "computed_share": computed}
    for name, seconds in (("generation", whole), ("denoising", denoised if ends else None)):
        if seconds is not None:
            share, steps = attention / seconds, denoised / seconds
            found[name] = {"attention_share": share, "speedup": limit(share, density, computed, steps),
                           "free_attention": limit(share, 0.0, computed, steps)}  # fmt: skip
    return found

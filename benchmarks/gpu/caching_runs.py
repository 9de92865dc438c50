"""A real pipeline around a transformer with random weights, and its runs: dense, sparse, cached and both."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import statistics
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from caching_table import BOTH, DENSE, SPARSE
from diffusers import FlowMatchEulerDiscreteScheduler, HunyuanVideoPipeline, WanPipeline

import vidaccel
from vidaccel.bench import models
from vidaccel.bench.measure import Spans
from vidaccel.caching import cache as make_cache
from vidaccel.caching.log import COMPUTED
from vidaccel.eval.caches import cached_run
from vidaccel.eval.runner import LATENT, Run, Runner, attached
from vidaccel.pipelines import family_of
from vidaccel.schedule import Schedule

SIZES = {"480p": (480, 832), "720p": (720, 1280)}
TINY = "tiny"
SCHEDULE = Schedule(dense_first_steps=0.25, dense_last_steps=0, dense_first_layers=1)
WARM_STEPS = 2
POLICIES = {"static": {"name": "static"}, "easycache": {"name": "easycache", "threshold": 1e9, "most_reused": 1}}
CACHES: dict[str, dict[str, Any]] = {f"{policy}, {predictor}": {**options, "predictor": predictor}
                                     for predictor in ("hold", "taylor")
                                     for policy, options in POLICIES.items()}  # fmt: skip
VARIANTS = (DENSE, SPARSE, *(start + name for name in CACHES for start in ("", BOTH)))
"""Most important first."""


@dataclass(frozen=True)
class Case:
    """A transformer at one size.

    Args:
        size: of `SIZES`, or `TINY`.
        pass_seconds: about what a dense pass takes on an H200, reckoned from its FLOP, not measured.
        guidance: scale of classifier-free guidance; 1 leaves out the second pass of each step, to save time.
        rounds: runs of each variant.
    """

    model: str
    size: str
    pass_seconds: float
    steps: int = 20
    guidance: float = 1.0
    rounds: int = 1

    @property
    def name(self) -> str:
        """As on the command line."""
        return f"{self.model}-{self.size}"

    @property
    def passes(self) -> int:
        """In each step; HunyuanVideo's guidance is an input."""
        return 2 if self.guidance > 1 and "wan" in self.model else 1

    def sized(self, frames: int) -> models.Model:
        """The model at this size; tiny ones have their own."""
        if self.size == TINY:
            return next(each for each in models.SMOKE if each.name == f"smoke-{self.model}")
        known = next(each for each in models.MODELS if each.name.startswith(f"{self.model}-"))
        height, width = SIZES[self.size]
        return dataclasses.replace(known, latents=(16, (frames - 1) // 4 + 1, height // 8, width // 8))


def half(steps: int, switch: int) -> list[int]:
    """Half of the steps, evenly spread, with the first, the last, and the first with sparse attention."""
    count = max(3, steps // 2)
    spread = [round(at * (steps - 1) / (count - 1)) for at in range(count)]
    nearest = min(spread[1:-1], key=lambda step: abs(step - switch))
    return sorted({*spread, switch} - ({nearest} - {switch}))


class Bench:
    """A pipeline around a transformer with random weights, and its variants."""

    def __init__(self, case: Case, options: argparse.Namespace) -> None:
        self.case, self.options = case, options
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        self.model = case.sized(options.frames)
        torch.manual_seed(options.seed)
        self.transformer = self.model.build(self.device, self.dtype)
        scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
        wan = "Wan" in self.model.transformer
        parts = ("tokenizer", "text_encoder", "vae") + (() if wan else ("tokenizer_2", "text_encoder_2"))
        self.pipe = (WanPipeline if wan else HunyuanVideoPipeline)(
            transformer=self.transformer, scheduler=scheduler, **dict.fromkeys(parts)
        )
        self.pipe.set_progress_bar_config(disable=True)
        self.runner = Runner(self.pipe, self._call(wan))
        self.sessions: dict[str, Any] = {DENSE: None}
        self.caches: dict[str, Any] = {}

    def _call(self, wan: bool) -> dict[str, Any]:
        _, frames, height, width = self.model.latents
        call = {"num_frames": 4 * (frames - 1) + 1, "height": 8 * height, "width": 8 * width, "output_type": LATENT,
                "num_inference_steps": self.case.steps}  # fmt: skip
        text = self.model.inputs(self.model.config, self.device, self.dtype)
        call["prompt_embeds"] = text["encoder_hidden_states"]
        if wan:
            negative = torch.randn_like(text["encoder_hidden_states"])
            return {**call, "negative_prompt_embeds": negative, "guidance_scale": self.case.guidance}
        return {**call, "pooled_prompt_embeds": text["pooled_projections"],
                "prompt_attention_mask": text["encoder_attention_mask"]}  # fmt: skip

    def warm_up(self, variant: str) -> float:
        """Enable a variant, and run two steps of it with all attention sparse; the second step's seconds."""
        if variant != DENSE:
            self.sessions[variant] = session = self._enabled(variant)
            setting, session.setting = session.setting, dataclasses.replace(session.setting, schedule=Schedule(0, 0, 0))
        try:
            return self._run(variant, WARM_STEPS)[1][-1] / 1e3
        finally:
            if variant != DENSE:
                session.setting = setting

    def _enabled(self, variant: str) -> Any:
        sparse, name = variant.startswith(SPARSE), variant.removeprefix(BOTH)
        values = dict(CACHES.get(name, {}))
        if values.get("name") == "static":
            values["compute"] = half(self.case.steps, SCHEDULE.resolve(self.case.steps, 1).first_step)
        self.caches[variant] = cache = make_cache(values or None)
        chosen = {"density": self.options.density, **({"block": 16} if self.case.size == TINY else {})}
        backend = "triton" if self.device.type == "cuda" else "auto"
        session = vidaccel.enable(self.pipe, self.options.method if sparse else None, schedule=SCHEDULE, min_tokens=0,
                                  backend=backend, cache=cache, **(chosen if sparse else {}))  # fmt: skip
        session.detach()
        return session

    def _run(self, variant: str, only: int | None = None) -> tuple[Run, list[float], dict[str, Any] | None]:
        """A generation, which ends after `only` steps: itself, milliseconds of each step, and its session's summary."""
        spans, ended = Spans(self.device), itertools.count(1)

        def on_steps(*_: Any) -> None:
            spans.end()
            spans.begin()
            if next(ended) == only:
                self.pipe._interrupt = True

        self.runner.on_steps = on_steps
        session, seed = self.sessions[variant], self.options.seed
        spans.begin()
        if session is None:
            return self.runner.run(variant, None, seed), spans.milliseconds(), None
        with attached(session):
            return self.runner.run(variant, None, seed), spans.milliseconds(), session.summary().to_dict()

    def measured(self, variant: str) -> dict[str, Any]:
        """What a run of a variant took, and what it did."""
        deciding: dict[str, Spans] = {}
        if (cache := self.caches.get(variant)) is not None:
            for name in ("decide", "observe"):
                deciding[name] = Spans(self.device)
                method = getattr(type(cache.policy), name).__get__(cache.policy)
                object.__setattr__(cache.policy, name, deciding[name].around(method))  # options are frozen
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        run, steps, summary = self._run(variant)
        peak = torch.cuda.max_memory_allocated(self.device) / 2**30 if self.device.type == "cuda" else None
        blocks = len(family_of(self.transformer).blocks(self.transformer))
        return {
            "seconds": run.seconds, "finite": bool(np.isfinite(run.latents).all()), "peak_memory_gib": peak,
            "steps_ms": [round(each, 3) for each in steps], "step_ms": self._by_kind(variant, steps, summary),
            "deciding_ms": {name: sum(spans.milliseconds()) for name, spans in deciding.items()} or None,
            "cache": summary and cached_run(summary, blocks, self.case.steps),
            "sparse": {name: summary[name] for name in ("method", "backend", "density", "calls", "dense_calls")}
            if summary and variant.startswith(SPARSE) else None,
            "notes": summary["notes"] if summary else [],
        }  # fmt: skip

    def _by_kind(self, variant: str, steps: list[float], summary: dict[str, Any] | None) -> dict[str, float]:
        """Median milliseconds of a step by what became of it; without the first, which has the set-up of the run."""
        made = (summary and summary["cache"] or {"decisions": []})["decisions"]
        given = {each["step"] for each in made} - {each["step"] for each in made if each["what"] == COMPUTED}
        plan = SCHEDULE.resolve(self.case.steps, 1)
        kinds: dict[str, list[float]] = {}
        for step, took in list(enumerate(steps))[1:]:
            sparse = variant.startswith(SPARSE) and plan.sparse_step(step)
            kind = "reused" if step in given else "computed, sparse" if sparse else "computed, dense"
            kinds.setdefault(kind, []).append(took)
        return {kind: statistics.median(took) for kind, took in sorted(kinds.items())}

    def about(self) -> dict[str, Any]:
        """Of all runs."""
        return {"config": self.model.source, "grid": str(self.model.layout), "tokens": self.model.layout.tokens,
                "parameters": sum(each.numel() for each in self.transformer.parameters()),
                "passes_per_step": self.case.passes, "scheduler": type(self.pipe.scheduler).__name__,
                "dtype": str(self.dtype).removeprefix("torch."), "schedule": dataclasses.asdict(SCHEDULE)}  # fmt: skip

"""What the tests of the tuner have in common: points, a calibration of a short run, and a lab without a model."""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import vidaccel
from tests import tiny
from vidaccel.caching.calibration import CacheCalibration
from vidaccel.patched import DENSE
from vidaccel.points import Point
from vidaccel.tune.budget import Budget
from vidaccel.tune.calls import Work
from vidaccel.tune.candidate import Settings, key, settings
from vidaccel.tune.journal import Journal
from vidaccel.tune.lab import DENSE_RUN, FAILED, RUN, Lab

STEPS = 6
CALL: dict[str, Any] = {"steps": STEPS, "height": 64, "width": 96, "frames": 17, "guidance": 3.0,
                        "negative_prompt": "blurry"}  # fmt: skip
PROMPTS = ["a red circle moves left", "a blue square moves right", "a red square", "a blue circle"]


def steady(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times by counted calls alone, so that a tuning finds the same on any machine, however busy."""
    measured = Lab.dense.fget
    monkeypatch.setattr(Lab, "dense", property(lambda self: {**measured(self), "calls": 1.0}))
    monkeypatch.setattr(Lab, "_given_costs", lambda self: {})


def spread(mean: float, around: float = 1.0) -> dict[str, float]:
    return {"mean": mean, "low": mean - around, "high": mean + around}


def point(speedup: float, psnr: float, cache: Any = "easycache", **evidence: Any) -> Point:
    values = settings(cache={"name": cache} if isinstance(cache, str) else cache)
    return Point(values, {"psnr": spread(psnr), "ssim": spread(0.9, 0.01)}, speedup,
                 {"steps": STEPS, "guidance": 3.0, **evidence})  # fmt: skip


@functools.cache
def calibration() -> CacheCalibration:
    """Of dense runs of `STEPS` steps of a tiny pipeline."""
    call = {"num_inference_steps": STEPS, "height": 64, "width": 96, "num_frames": 17, "guidance_scale": 3.0,
            "negative_prompt": "blurry"}  # fmt: skip
    made = vidaccel.calibrate_cache(tiny.tiny_wan(), PROMPTS[:1], probes=0, **call)
    return dataclasses.replace(made, reference="")


class Clock:
    """Seconds that pass only where somebody says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class FakeLab(Lab):
    """A lab in which a candidate's quality and work are what a function says; each generation takes its time."""

    def __init__(self, judge: Any, prompts: int = 2, total: float = 1000.0, path: Path | None = None) -> None:
        self.judge, self.clock, self.ran = judge, Clock(), []
        self.journal = Journal((path or Path(tempfile.mkdtemp())) / "journal.jsonl")
        self.budget = Budget(total, self.journal.spent, self.clock)
        self.cells = [SimpleNamespace(prompt=PROMPTS[index], seed=0) for index in range(prompts)]  # type: ignore[misc]
        self.say = lambda _: None
        if not list(self.journal.of(DENSE_RUN)):
            self.journal.add(DENSE_RUN, 0.0, prompt=0, seconds=1.0, calls=1.0, passes=2)

    def attempt(self, candidate: Settings, index: int) -> dict[str, Any] | None:
        own = key(candidate)
        for line in self.journal.lines:
            if line.get("candidate") == own and (line["kind"] == FAILED or line.get("prompt") == index):
                return line if line["kind"] == RUN else None
        self.ran.append((own, index))
        snr, share = self.judge(candidate, index)
        self.clock.now += share
        work = Work(round(100 * share), 0, 100 - round(100 * share), 0.0)
        return self.journal.add(RUN, self.budget.spent, candidate=own, settings=candidate, prompt=index, snr=snr,
                                **dataclasses.asdict(work))  # fmt: skip

    def pace(self, candidate: Settings) -> float | None:
        return 1.0 if candidate["method"] == DENSE else 0.5

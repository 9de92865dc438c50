"""The last word: candidates decoded on prompts of their own, in turns with dense runs, until the target is met."""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import vidaccel
from vidaccel import points
from vidaccel.eval import env
from vidaccel.eval.clip import Clip
from vidaccel.eval.metrics import compare_videos
from vidaccel.eval.paired import paired_bootstrap
from vidaccel.eval.runner import Run, Runner, attached
from vidaccel.points import Point
from vidaccel.target import METRICS, SPEEDUP, Target
from vidaccel.tune.candidate import Settings, key, words
from vidaccel.tune.front import Found, front, spread
from vidaccel.tune.lab import IDENTICAL, Lab

CLIP = "clip"
"""A kind of lines in the journal: a candidate beside a dense run, decoded."""
FIRST_BATCH, BATCH, MOST = 8, 2, 14
"""Candidates that are measured at once, and points after which only the target counts."""
MOST_PROMPTS, LEAST_PROMPTS = 8, 2
FIRST_SHARE = 0.6
"""Of the time for all batches, what the first may take."""
SLACK = 0.02
"""Relative; a speed that is predicted to be so little short may still be met."""
LOWEST, SLOWEST = 5.0, 0.98
"""dB of the final latents below which, and share of the dense time above which, nothing is shown to anyone."""
Tell = Callable[[str], None]


class Final:
    """Measures points.

    Args:
        lab: what the search knows.
        prompts: to measure on, two or more.
        seed: of the noise.
        target: what is wanted.
        tell: hears what is about to run.
    """

    def __init__(self, lab: Lab, prompts: Sequence[str], seed: int, target: Target, tell: Tell) -> None:
        self.lab, self.prompts, self.seed, self.target, self.tell = lab, list(prompts), seed, target, tell
        self.runner = Runner(lab.pipe, {**lab.cells[0].call, "output_type": "np"})
        self._here = env.provenance()

    def run(self, until: float) -> None:
        """Measure batches until the budget has spent `until` seconds, or no other candidate promises more."""
        self._batches(spread(self.worthy(), FIRST_BATCH), FIRST_SHARE, until)

    def more(self, until: float) -> None:
        """The same once more, with what the search has found since."""
        self._batches(self._next(), 1.0, until)

    def room(self, seconds: float) -> bool:
        """Whether that is enough to measure one more candidate, however slow it is."""
        return seconds >= LEAST_PROMPTS * self._takes([Found({}, 1.0, 0.0)])

    def _batches(self, batch: list[Found], share: float, until: float) -> None:
        while batch:
            left = until - self.lab.budget.spent
            count = self._count(batch, left * share if len(batch) > BATCH else left)
            if not count:
                batch = self._fewer(batch)
                continue
            if not self._batch(batch, self.prompts[:count], until):
                return
            batch, share = self._next(), 1.0

    def _next(self) -> list[Found]:
        kept = self.worthy()
        return self._promising(kept) or self._between(kept)

    def worthy(self) -> list[Found]:
        """What of the search's front may be measured."""
        return [each for each in front(self.lab.found()) if each.snr >= LOWEST and each.time <= SLOWEST]

    def points(self) -> list[Point]:
        """What was measured on two prompts or more."""
        lines: dict[str, list[dict[str, Any]]] = {}
        for line in self.lab.journal.of(CLIP):
            lines.setdefault(line["candidate"], []).append(line)
        return [self._point(each) for each in lines.values() if len(each) >= LEAST_PROMPTS]

    def best(self) -> Point | None:
        """The point for the target; None where none meets it."""
        return points.best(self.points(), self.target)

    def nearest(self) -> Point:
        """The point that comes nearest to a target that none meets: the best in its first limit that is not met."""
        for condition in self.target.conditions:
            values = [(each, each.assured(condition.metric)) for each in self.points()]
            known = [(each, value) for each, value in values if value is not None]
            if known and not any(condition.met(value) for _, value in known):
                return (max if METRICS[condition.metric] else min)(known, key=lambda pair: pair[1])[0]
        return max(self.points(), key=lambda each: each.quality)

    def _count(self, batch: Sequence[Found], seconds: float) -> int:
        """How many prompts a batch can have in that time; 0 where it is too short for two."""
        count = min(len(self.prompts), MOST_PROMPTS, int(seconds / self._takes(batch)) * self.lab.width)
        return count if count >= LEAST_PROMPTS else 0

    def _takes(self, batch: Sequence[Found]) -> float:
        """Seconds of a batch on one prompt, or on as many as run at once."""
        generating = self.lab.dense["seconds"] * (1 + sum(one.time for one in batch))
        return generating + self._decoding() * (1 + len(batch))

    def _decoding(self) -> float:
        """Seconds of decoding: as measured, and before that a guess."""
        known = [line["decoding"] for line in self.lab.journal.of(CLIP)]
        return statistics.median(known) if known else 0.3 * self.lab.dense["seconds"]

    def _fewer(self, batch: list[Found]) -> list[Found]:
        """A smaller batch: without every other one."""
        return batch[len(batch) % 2 :: 2] if len(batch) > 1 else []

    def _batch(self, batch: Sequence[Found], prompts: Iterable[str], until: float) -> bool:
        """Rounds of a dense run and each candidate; whether all of them were in time."""
        texts = list(prompts)
        for at in range(0, len(texts), self.lab.width):
            missing = {prompt: found for prompt in texts[at : at + self.lab.width]
                       if (found := self._missing(batch, prompt))}  # fmt: skip
            if missing and max(map(self._takes, missing.values())) > until - self.lab.budget.spent:
                return False
            self._ahead(missing)
            for prompt in missing:
                self._in_turns(self._missing(batch, prompt), prompt)
        return True

    def _missing(self, batch: Sequence[Found], prompt: str) -> list[Found]:
        """Those of a batch that were not measured on a prompt."""
        done = {line["candidate"] for line in self.lab.journal.of(CLIP) if line["prompt"] == prompt}
        return [each for each in batch if key(each.settings) not in done]

    def _ahead(self, missing: dict[str, list[Found]]) -> None:
        """Have all processes measure, a prompt each, so that a speedup has both its times from one; nothing alone."""
        if self.lab.team is None:
            return
        self.tell(f"measuring on {len(missing)} prompts at once")
        jobs = [self.lab.job(CLIP, prompt=prompt, settings=[each.settings for each in found])
                for prompt, found in missing.items()]  # fmt: skip
        for lines in self.lab.team.run(jobs):
            for line in lines:
                self.lab.journal.add(CLIP, self.lab.budget.spent, **line)

    def decoded(self, candidates: Sequence[Settings], prompt: str) -> list[dict[str, Any]]:
        """What is to be said of candidates in the journal, after a dense run and theirs."""
        dense = self._run(prompt)
        return [self._values(each, prompt, dense) for each in candidates]

    def _in_turns(self, batch: Sequence[Found], prompt: str) -> None:
        if not batch:
            return
        self.tell("measuring: dense")
        dense = self._run(prompt)
        for each in batch:
            self.tell(f"measuring: {words(each.settings)}")
            self._one(each.settings, prompt, dense)

    def _one(self, candidate: Settings, prompt: str, dense: Run) -> None:
        self.lab.journal.add(CLIP, self.lab.budget.spent, **self._values(candidate, prompt, dense))

    def _values(self, candidate: Settings, prompt: str, dense: Run) -> dict[str, Any]:
        session = self.lab.session(candidate)
        try:
            with attached(session):
                fast = self._run(prompt)
        finally:
            vidaccel.disable(self.lab.pipe)
        metrics = self._metrics(Clip.of(dense), Clip.of(fast))
        return {"candidate": key(candidate), "settings": candidate, "prompt": prompt, "dense": _denoising(dense),
                "fast": _denoising(fast), "metrics": metrics, "decoding": fast.seconds - _denoising(fast)}  # fmt: skip

    def _metrics(self, dense: Clip, fast: Clip) -> dict[str, float]:
        """Of what a target may name those that there are; identical clips have as good a value as can be written."""
        names = [name for name in METRICS if name != SPEEDUP]
        values = compare_videos(dense.frames, fast.frames, reference_latents=dense.latents,
                                other_latents=fast.latents, metrics=names)  # fmt: skip
        if values["ssim"] == 1 and values["psnr"] is None:
            values["psnr"] = IDENTICAL
        if values["latent_error"] == 0:
            values["latent_snr"] = IDENTICAL
        return {name: values[name] for name in names if values[name] is not None}

    def _run(self, prompt: str) -> Run:
        return self.runner.run("final", prompt, self.seed)

    def _point(self, lines: Sequence[dict[str, Any]]) -> Point:
        names = [name for name in lines[0]["metrics"] if all(name in line["metrics"] for line in lines)]
        metrics = {name: spread_of([line["metrics"][name] for line in lines]) for name in names}
        seconds = {side: [round(line[side], 3) for line in lines] for side in ("dense", "fast")}
        speedup = statistics.median(seconds["dense"]) / statistics.median(seconds["fast"])
        return Point(lines[0]["settings"], metrics, round(speedup, 4), self._evidence(lines, seconds))

    def _evidence(self, lines: Sequence[dict[str, Any]], seconds: dict[str, list[float]]) -> dict[str, Any]:
        """What a point was measured on, and what the search thought of it."""
        cell, used = self.lab.cells[0], [line["prompt"] for line in lines]
        call = {name: item for name, item in cell.call.items() if isinstance(item, int | float | str)}
        found = next(each for each in self.lab.found() if each.settings == lines[0]["settings"])
        same = {each.prompt for each in self.lab.cells} >= set(used)
        searched = {"prompts": len(self.lab.cells), "same_prompts": same,
                    "latent_snr": round(found.snr, 2), "speedup": round(1 / found.time, 3)}  # fmt: skip
        return {"steps": self.lab.steps, "guidance": call.get("guidance_scale"), "call": call,
                "prompts": {"count": len(used), "sha256": digest(used)}, "seed": self.seed,
                "model": cell.reference["model"], "dtype": cell.reference["dtype"], "seconds": seconds,
                "searched": searched, **self._here}  # fmt: skip

    def _promising(self, kept: Sequence[Found]) -> list[Found]:
        """Candidates of the front that should be better for the target than what was measured, the best first."""
        measured = {key(dict(each.settings)): each for each in self.points()}
        pairs = [(each, measured[key(each.settings)]) for each in kept if key(each.settings) in measured]
        if len(pairs) < 2:
            return []
        best = points.best([point for _, point in pairs], self.target)
        guesses = [(each, self._guess(each, pairs)) for each in kept if key(each.settings) not in measured]
        fit = [(each, guess) for each, guess in guesses if self.target.met(guess.get)]
        rank = SPEEDUP if self.target.metrics else "rank"
        least = None if best is None else best.speedup if self.target.metrics else best.quality
        better = [(each, guess) for each, guess in fit if least is None or guess[rank] > least]
        return [each for each, _ in sorted(better, key=lambda pair: -pair[1][rank])[:BATCH]]

    def _between(self, kept: Sequence[Found]) -> list[Found]:
        """Candidates of the front far from those that were measured, for other targets; none once there are many."""
        measured = {key(dict(each.settings)) for each in self.points()}
        known = [each for each in kept if key(each.settings) in measured]
        free = [each for each in kept if key(each.settings) not in measured]
        if not known or len(known) >= MOST:
            return []
        return sorted(free, key=lambda each: -min(abs(math.log(each.time / one.time)) for one in known))[:BATCH]

    def _guess(self, each: Found, pairs: Sequence[tuple[Found, Point]]) -> dict[str, float]:
        """What a candidate should have of each metric that the target names, from those beside it on the front."""
        near = sorted(pairs, key=lambda pair: abs(pair[0].snr - each.snr))[:2]
        guess = {SPEEDUP: (1 + SLACK) / each.time * statistics.median(point.speedup * one.time for one, point in pairs)}
        for metric in self.target.metrics:
            known = [(one.snr, value) for one, point in near if (value := point.assured(metric)) is not None]
            if len(known) == 2:
                guess[metric] = _line(known, each.snr)
        guess["rank"] = _line([(one.snr, point.quality) for one, point in near], each.snr)
        return guess


def spread_of(values: Sequence[float]) -> dict[str, float]:
    """Mean of a metric over clips, and the 95 % bootstrap interval of it."""
    found = paired_bootstrap(values, [0.0] * len(values))
    low, high = min(found.low, found.mean), max(found.high, found.mean)
    return {"mean": round(found.mean, 5), "low": round(low, 5), "high": round(high, 5)}


def digest(prompts: Iterable[str]) -> str:
    """SHA-256 of prompts, in their order."""
    return hashlib.sha256(json.dumps(list(prompts)).encode()).hexdigest()


def _denoising(run: Run) -> float:
    return run.seconds if run.denoising is None else run.denoising


def _line(two: Sequence[tuple[float, float]], at: float) -> float:
    """A straight line through two points."""
    (x0, y0), (x1, y1) = two
    return y0 if x0 == x1 else y0 + (y1 - y0) * (at - x0) / (x1 - x0)

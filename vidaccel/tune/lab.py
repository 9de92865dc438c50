"""The model of a tuning: its dense references, and candidates that are run against them, each once."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import vidaccel
from vidaccel.eval import env
from vidaccel.eval.cells import Cell
from vidaccel.eval.clip import Clip
from vidaccel.eval.failing import described
from vidaccel.eval.metrics import compare_videos
from vidaccel.eval.runner import LATENT, Run, Runner, attached
from vidaccel.eval.store import Store, reference_name
from vidaccel.processes import appears
from vidaccel.profile import Profile
from vidaccel.session import Session
from vidaccel.tune.budget import Budget
from vidaccel.tune.calls import Work, timed_calls, work_of
from vidaccel.tune.candidate import Settings, attention, is_sparse, key, words
from vidaccel.tune.front import Found
from vidaccel.tune.journal import Journal
from vidaccel.tune.team import Job, Team

IDENTICAL = 150.0
"""dB that stand for latents without any error."""
PROBED_STEPS = 3
"""Steps of a run that tells the pace of sparse calls; the first of them is warm-up."""
MOST_TURNS, HOPELESS, CLEAR = 4, 1.3, 0.7
"""Turns of a probe, a pace from which one is enough, and one below which two are."""
DENSE_RUN, RUN, FAILED, PACE = "dense", "run", "failed", "pace"
"""Kinds of lines in the journal."""
FAILURES = (ValueError, RuntimeError, FloatingPointError)
"""What a candidate that cannot run raises."""
Say = Callable[[str], None]


class Lab:
    """Runs candidates on the prompts of the search; latents alone. Use it while nothing else is enabled on the model.

    Args:
        pipe: a pipeline.
        cells: dense cells of an eval, one for each prompt: what the references are of.
        store: keeps references.
        journal: keeps results; what is in it is not run again.
        budget: told in the journal.
        base: a profile with the heads and calibrations that candidates go by.
        say: hears of what happens.

    Attributes:
        team: the processes that run candidates beside this one; None for none.
    """

    team: Team | None = None

    def __init__(self, pipe: Any, cells: Sequence[Cell], store: Store, journal: Journal, budget: Budget, base: Profile,
                 say: Say) -> None:  # fmt: skip
        self.pipe, self.cells, self.store, self.journal, self.budget = pipe, cells, store, journal, budget
        self.base, self.say = base, say
        self.runner = Runner(pipe, {**cells[0].call, "output_type": LATENT})
        self._references: dict[int, Clip] = {}

    @property
    def steps(self) -> int:
        """Of a run."""
        return self.runner.steps

    @property
    def width(self) -> int:
        """How many generations run at once."""
        return 1 if self.team is None else self.team.size

    @property
    def dense(self) -> dict[str, float]:
        """Of the dense runs so far: median ``seconds`` of denoising, the share ``calls`` of it that the transformer
        takes, and transformer calls a step, ``passes``."""
        lines = list(self.journal.of(DENSE_RUN))
        return {name: statistics.median(line[name] for line in lines) for name in ("seconds", "calls", "passes")}

    def prepare(self) -> None:
        """Make the references that are not there yet."""
        done = {line["prompt"] for line in self.journal.of(DENSE_RUN)}
        lacking = [index for index in range(len(self.cells)) if index not in done or not self._kept(index)]
        if self.team is None:
            for index in lacking:
                self._reference(index)
            return
        found = self.team.run([{"kind": DENSE_RUN, "prompt": index} for index in lacking])
        for index, values in zip(lacking, found, strict=True):
            appears(self.store.references / reference_name(self.cells[index].reference))
            self.journal.add(DENSE_RUN, self.budget.spent, prompt=index, **values)

    def session(self, candidate: Settings, **more: Any) -> Session:
        """What a user's `enable` of these settings makes, not attached.

        Raises:
            ValueError: settings that cannot be.
        """
        session = vidaccel.enable(self.pipe, dataclasses.replace(self.base, **candidate), **more)
        session.detach()
        return session

    def knows(self, candidate: Settings) -> bool:
        """Whether it has run, or cannot."""
        own = key(candidate)
        return any(line.get("candidate") == own for line in self.journal.lines if line["kind"] in (RUN, FAILED))

    def attempt(self, candidate: Settings, index: int) -> dict[str, Any] | None:
        """The line of a candidate's run on a prompt; None where it cannot run."""
        if (line := self._line(candidate, index)) is not None:
            return line if line["kind"] == RUN else None
        try:
            pace = self.pace(candidate)
            if pace is None:
                raise ValueError("its attention was dropped")
        except FAILURES as error:
            return self._noted(candidate, index, _why(error))
        finally:
            vidaccel.disable(self.pipe)
        return self._noted(candidate, index, self.outcome(candidate, index, pace))

    def ahead(self, pairs: Sequence[tuple[Settings, int]]) -> None:
        """Have all processes run candidates on prompts at once: `attempt` finds them then. Does nothing alone."""
        if self.team is None:
            return
        new = {(key(candidate), index): (candidate, index) for candidate, index in pairs
               if self._line(candidate, index) is None}  # fmt: skip
        paced = [(candidate, index, self._pace_if_any(candidate)) for candidate, index in new.values()]
        # The others fail, which `attempt` finds out and says.
        able = [each for each in paced if each[2] is not None]
        jobs = [self.job(RUN, settings=candidate, prompt=index, pace=pace) for candidate, index, pace in able]
        for (candidate, index, _), outcome in zip(able, self.team.run(jobs), strict=True):
            if self._line(candidate, index) is None:
                self._noted(candidate, index, outcome)

    def job(self, kind: str, **values: Any) -> Job:
        """A job for the team, with the names of the calibrations that it may go by."""
        return {"kind": kind, "calibrations": list(self.base.calibrations), **values}

    def outcome(self, candidate: Settings, index: int, pace: float) -> dict[str, Any]:
        """What a run of a candidate on a prompt measured, or ``why`` it cannot be; see `Work` for the pace."""
        try:
            return self._measured(candidate, index, pace)
        except FAILURES as error:
            return _why(error)
        finally:
            vidaccel.disable(self.pipe)

    def _line(self, candidate: Settings, index: int) -> dict[str, Any] | None:
        """That of a run, or of the candidate's failure."""
        own = key(candidate)
        return next((line for line in self.journal.lines if line.get("candidate") == own
                     and (line["kind"] == FAILED or line.get("prompt") == index)), None)  # fmt: skip

    def _noted(self, candidate: Settings, index: int, outcome: dict[str, Any]) -> dict[str, Any] | None:
        """The line of an outcome; None where it is a failure."""
        own, spent = key(candidate), self.budget.spent
        if "why" not in outcome:
            return self.journal.add(RUN, spent, candidate=own, settings=candidate, prompt=index, **outcome)
        self.journal.add(FAILED, spent, candidate=own, settings=candidate, why=outcome["why"])
        self.say(f"{words(candidate)} cannot run: {outcome['why']}")
        return None

    def _pace_if_any(self, candidate: Settings) -> float | None:
        try:
            return self.pace(candidate)
        except FAILURES:
            return None
        finally:
            vidaccel.disable(self.pipe)

    def _given_costs(self) -> dict[str, float]:
        """What a call takes that a cache gives, by policy: candidates of as many calls are then equally fast."""
        costs: dict[str, list[float]] = {}
        for line in self.journal.of(RUN):
            if line["given"]:
                costs.setdefault(_policy(line), []).append(line["given_cost"])
        return {name: statistics.median(each) for name, each in costs.items()}

    def pace(self, candidate: Settings) -> float | None:
        """What a sparse call of these settings takes over a dense one; None where no call would be sparse.

        Raises:
            ValueError: settings that cannot be.
        """
        if not is_sparse(candidate):
            return 1.0
        own = self.paced(candidate)
        for line in self.journal.of(PACE):
            if line["attention"] == own:
                return None if line["ratio"] is None else float(line["ratio"])
        ratio, why = self._paced(candidate)
        self.journal.add(PACE, self.budget.spent, attention=own, settings=attention(candidate), ratio=ratio, why=why)
        return ratio

    @staticmethod
    def paced(candidate: Settings) -> str:
        """What a pace is of: which steps are dense does not matter."""
        return key({**attention(candidate), "schedule": {}})

    def found(self) -> list[Found]:
        """All candidates that ran; those that were not on all prompts are lifted by what whole ones gained there."""
        lines: dict[str, list[dict[str, Any]]] = {}
        for line in self.journal.of(RUN):
            lines.setdefault(line["candidate"], []).append(line)
        whole = [each for each in lines.values() if len(each) == len(self.cells)]
        gains = [_mean(each) - each[0]["snr"] for each in whole if each[0]["prompt"] == 0]
        # Not the mean: what is identical on one prompt has a difference that says nothing of others.
        gain = statistics.median(gains) if gains else 0.0
        given, inside = self._given_costs(), self.dense["calls"]
        return [self._found(each, gain, given, inside) for each in lines.values()]

    def _found(self, lines: list[dict[str, Any]], gain: float, given: dict[str, float], inside: float) -> Found:
        """A candidate of its lines. Its time is predicted: calls are counted, and what a call of each kind takes was
        measured, so that the noise of one run's time does not matter."""
        whole, first = len(lines) == len(self.cells), lines[0]
        pace, cost = self.pace(first["settings"]) or 1.0, given.get(_policy(first), 0.0)
        shares = [Work(line["dense"], line["sparse"], line["given"], cost).share(pace) for line in lines]
        time = 1 - inside + inside * statistics.mean(shares)
        return Found(lines[0]["settings"], time, _mean(lines) if whole else lines[0]["snr"] + gain, whole)

    def _measured(self, candidate: Settings, index: int, pace: float) -> dict[str, Any]:
        session, reference = self.session(candidate), self._reference(index)
        with attached(session), timed_calls(self.pipe) as calls:
            run = self._run(index)
        values = compare_videos(None, None, reference_latents=reference.latents, other_latents=Clip.of(run).latents,
                                metrics=["latent_snr", "latent_error"])  # fmt: skip
        snr = IDENTICAL if values["latent_error"] == 0 else values["latent_snr"]
        if snr is None:
            raise ValueError(f"its latents cannot be compared: {values['latent_snr_reason']}")
        counts = work_of(session, len(calls), self.steps, pace)
        return {"snr": round(float(snr), 4), "seconds": run.denoising or run.seconds, **dataclasses.asdict(counts)}

    def _paced(self, candidate: Settings) -> tuple[float | None, str | None]:
        """Short runs with every step sparse, and dense ones, in turns."""
        sparse = self.session({**attention(candidate), "schedule": {**candidate["schedule"], "dense_first_steps": 0,
                                                                    "dense_last_steps": 0}})  # fmt: skip
        took: dict[bool, list[float]] = {False: [], True: []}
        for turn in range(MOST_TURNS):
            for kind in (False, True):
                took[kind] += self._short(sparse if kind else None)
            ratio = statistics.median(took[True]) / statistics.median(took[False])
            if not sparse.summary().tally.sparse:
                return None, "; ".join(sparse.summary().tally.remarks) or "no call of it is sparse"
            if ratio > HOPELESS or (turn > 0 and ratio < CLEAR):
                break
        return round(ratio, 4), None

    def _short(self, session: Session | None) -> list[float]:
        """Seconds of the transformer calls after the first step of a short run."""
        steps = min(PROBED_STEPS, self.steps)
        try:
            if session is not None:
                session.attach()
            with timed_calls(self.pipe) as calls:
                self._run(0, num_inference_steps=steps)
        finally:
            vidaccel.disable(self.pipe)
        return calls[len(calls) // steps :] if steps > 1 else calls

    def _reference(self, index: int) -> Clip:
        if not self._kept(index):
            values = self.dense_run(index)
            self.journal.add(DENSE_RUN, self.budget.spent, prompt=index, **values)
        return self._references[index]

    def dense_run(self, index: int) -> dict[str, float]:
        """Make the reference of a prompt and keep it: what is to be said of it in the journal.

        Raises:
            ValueError: a pipeline that does not hand out its latents.
        """
        with timed_calls(self.pipe) as calls:
            run = self._run(index)
        clip, seconds = Clip.of(run), run.denoising or run.seconds
        if clip.latents is None:
            name = type(self.pipe).__name__
            raise ValueError(f"{name} does not hand out its latents, by which candidates are judged")
        self.store.keep_reference(self.cells[index].reference, clip, env.provenance())
        self._references[index] = clip
        return {"seconds": seconds, "calls": sum(calls) / seconds, "passes": len(calls) / self.steps}

    def _kept(self, index: int) -> bool:
        """Whether there is a reference in the store, which is then at hand."""
        if index not in self._references:
            clip, wrong = self.store.reference(self.cells[index].reference)
            if wrong is not None:
                self.say(f"{wrong}; it is made again")
            if clip is None:
                return False
            self._references[index] = clip
        return True

    def _run(self, index: int, **overrides: Any) -> Run:
        return self.runner.run("tuning", self.cells[index].prompt, self.cells[index].seed, **overrides)


def _why(error: Exception) -> dict[str, Any]:
    return {"why": described(error)}


def _policy(line: dict[str, Any]) -> str:
    return str((line["settings"]["cache"] or {}).get("name"))


def _mean(lines: Sequence[dict[str, Any]]) -> float:
    return float(statistics.mean(line["snr"] for line in lines))

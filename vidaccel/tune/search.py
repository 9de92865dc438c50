"""The search by real generations: optuna over all that there is, then what is near the front."""

from __future__ import annotations

import contextlib
import itertools
import math
import random
from collections.abc import Callable, Sequence
from typing import Any

from vidaccel.tune.candidate import Settings, key, words
from vidaccel.tune.front import Found, front, shortfall
from vidaccel.tune.lab import FAILED, RUN, Lab
from vidaccel.tune.neighbours import neighbour
from vidaccel.tune.space import Space

TRIAL = "trial"
"""A kind of lines in the journal: what optuna asked for, and which candidate that was."""
GLOBAL = 0.45
"""Share of the time that goes to all that there is; the rest to what is near the front."""
MARGIN, LIKE = 1.0, 0.3
"""Decibels below the front at which a candidate stops after its first prompt, and one that is like others does."""
LOWEST = 5.0
"""dB of the final latents below which nothing is worth its time."""
WORST = -20.0
"""dB that stand for what could not run."""
GAP = math.log(1.06)
"""Between the times of candidates, from which another may stand between them."""
STALE = 60
"""Proposals in a row without a new candidate, after which there is none."""
Tell = Callable[[str], None]


class Search:
    """Proposes candidates and runs them until the time is over.

    Args:
        lab: where they run.
        space: of all candidates.
        seed: of the proposals.
        most: candidates that run at most; None for no limit.
        tell: hears what has just been found, before each generation.
    """

    def __init__(self, lab: Lab, space: Space, seed: int, most: int | None, tell: Tell) -> None:
        self.lab, self.space, self.seed, self.most, self.tell = lab, space, seed, most, tell

    def run(self, until: float) -> None:
        """Go on until the budget has spent `until` seconds, or nothing new is proposed."""
        began = min(self.lab.budget.spent, self._started())
        self._global(began + GLOBAL * (until - began))
        self._local(until)

    def refine(self, until: float) -> bool:
        """Go on near the front until the budget has spent `until` seconds; whether the front has something new."""
        before = {key(each.settings) for each in front(self.lab.found())}
        self._local(until)
        return not before >= {key(each.settings) for each in front(self.lab.found())}

    def trials(self) -> int:
        """How many candidates ran."""
        return len({line["candidate"] for line in self.lab.journal.of(RUN)})

    def _started(self) -> float:
        """Seconds that were spent when the first trial was."""
        return min((float(line["spent"]) for line in self.lab.journal.of(TRIAL)), default=float("inf"))

    def _more(self, share: float) -> bool:
        """Whether another candidate may run, of this share of all."""
        return self.most is None or self.trials() < max(1, share * self.most)

    def _fits(self, until: float, time: float = 1.0) -> bool:
        """Whether a generation ends in time that takes so much of a dense one."""
        return self.lab.budget.spent + time * self.lab.dense["seconds"] <= until

    def _global(self, until: float) -> None:
        """Trials of optuna: those of the journal are told again, then new ones are asked for."""
        study = self._study()
        stale = 0
        while self._fits(until) and self._more(GLOBAL) and stale < STALE:
            trials = [study.ask() for _ in range(self._room(GLOBAL))]
            before, told = len(self.lab.journal.lines), 0
            self._ahead([each for each in map(self._candidate, trials) if each is not None], until, MARGIN)
            for trial in trials:
                values, candidate = self._values(trial, until)
                if candidate is not None:
                    self.lab.journal.add(TRIAL, self.lab.budget.spent, params=trial.params, candidate=candidate)
                    told += 1
                study.tell(trial, values)
            # The lines of the trials themselves are no news.
            stale = 0 if len(self.lab.journal.lines) > before + told else stale + len(trials)

    def _room(self, share: float) -> int:
        """How many candidates may run at once now, of this share of all; 1 at least."""
        left = self.lab.width if self.most is None else math.ceil(share * self.most) - self.trials()
        return max(1, min(self.lab.width, left))

    def _ahead(self, candidates: Sequence[Settings], until: float, margin: float) -> None:
        """Have all processes run candidates at once, as far as `_rungs` is about to ask for them; nothing alone."""
        if self.lab.team is None:
            return
        kept, going = front(self.lab.found()), list(candidates)
        for index in range(len(self.lab.cells)):
            if not going or not self._fits(until):
                return
            self.tell(f"{self.trials()} candidates; {len(going)} at once")
            self.lab.ahead([(each, index) for each in going])
            found = {key(each.settings): each for each in self.lab.found()}
            going = [each for each in going if key(each) in found and self._worth(found[key(each)], kept, margin)]

    @staticmethod
    def _worth(found: Found, kept: list[Found], margin: float) -> bool:
        """Whether a candidate may reach the front, as far as it ran."""
        return found.snr >= LOWEST and shortfall(found.time, found.snr, _others(kept, found.settings)) <= margin

    def _candidate(self, trial: Any) -> Settings | None:
        """What a trial asks for; None where that is no candidate."""
        try:
            candidate = self.space.candidate(trial)
        except ValueError:
            return None
        return None if candidate["cache"] is None and candidate["method"] == "dense" else candidate

    def _values(self, trial: Any, until: float) -> tuple[tuple[float, float], str | None]:
        """Time and quality of a trial, and the key of its candidate."""
        candidate = self._candidate(trial)
        if candidate is None:
            return (1.0, WORST), None
        found = self._rungs(candidate, until)
        # Where the time was over before it ran, it is not as good as tried.
        own = key(candidate) if self.lab.knows(candidate) else None
        return (1.0, WORST) if found is None else (found.time, found.snr), own

    def _rungs(self, candidate: Settings, until: float, margin: float = MARGIN) -> Found | None:
        """Run a candidate on one prompt after the other, as long as it may reach the front; None where it cannot."""
        found: Found | None = None
        kept = front(self.lab.found())
        for index in range(len(self.lab.cells)):
            self.tell(f"{self.trials()} candidates; {words(candidate)}")
            if not self._fits(until, 1.0 if found is None else found.time):
                break
            if self.lab.attempt(candidate, index) is None:
                return None
            found = next(each for each in self.lab.found() if each.settings == candidate)
            if not self._worth(found, kept, margin):
                break
        return found

    def _local(self, until: float) -> None:
        """What was given up too early, then in turns what the front has nothing near to, and neighbours of its own."""
        draw, stale = random.Random(f"{self.seed}, {len(self.lab.journal.lines)}"), 0
        turns = itertools.cycle((True, False))
        tried: dict[str, int] = {}
        while self._fits(until, 0.5) and self._more(1.0) and stale < STALE:
            kept = [each for each in front(self.lab.found()) if each.snr >= LOWEST]
            if not kept:
                return
            room, before = self._room(1.0), len(self.lab.journal.lines)
            proposed = self._reopened(kept)[:room]
            if not proposed:
                gaps = [self._between(kept) if next(turns) else None for _ in range(room)]
                found = [self._near(kept, tried, draw) if gap is None else gap for gap in gaps]
                proposed = [each for each in found if each is not None]
            # As they are like some of the front, what they gain or lose on one prompt tells more.
            self._ahead(proposed, until, LIKE)
            for each in proposed:
                self._rungs(each, until, LIKE)
            stale = 0 if len(self.lab.journal.lines) > before else stale + room

    def _reopened(self, kept: list[Found]) -> list[Settings]:
        """Candidates that have not run on all prompts, but may reach the front by what is known now: what one prompt
        says of the others is estimated from whole candidates, of which there are more with time."""
        failed = {line["candidate"] for line in self.lab.journal.of(FAILED)}
        partial = [each for each in self.lab.found() if not each.whole and key(each.settings) not in failed]
        return [each.settings for each in partial if self._worth(each, kept, LIKE)]

    def _between(self, kept: Sequence[Found]) -> Settings | None:
        """A static cache for a time at which the front has nothing, the widest gap first; None where it has no gap."""
        untried = [each for each in self.space.statics() if not self.lab.knows(each[1])]
        gaps = [(min(abs(math.log(share / each.time)) for each in kept), candidate) for share, candidate in untried]
        widest, candidate = max(gaps, key=lambda gap: gap[0], default=(0.0, None))
        return candidate if widest >= GAP else None

    def _near(self, kept: Sequence[Found], tried: dict[str, int], draw: random.Random) -> Settings | None:
        """A neighbour of a candidate that has had fewest."""
        near = min(kept, key=lambda each: (tried.get(key(each.settings), 0), draw.random()))
        tried[key(near.settings)] = tried.get(key(near.settings), 0) + 1
        return neighbour(near.settings, self.space, draw)

    def _study(self) -> Any:
        """A study that knows the trials of the journal, and the seeds that are not among them."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        past = list(self.lab.journal.of(TRIAL))
        seeds = list(self.space.seeds())
        # Told to expect little of what is asked for beside it, or it would ask for the same several times at once.
        sampler = optuna.samplers.TPESampler(seed=self.seed + len(past), n_startup_trials=len(seeds),
                                             constant_liar=self.lab.width > 1)  # fmt: skip
        study = optuna.create_study(directions=["minimize", "maximize"], sampler=sampler)
        found = {key(each.settings): each for each in self.lab.found()}
        for line in past:
            # Asked again for what it asked for then; the sampler learns by it, and nothing runs.
            study.enqueue_trial(line["params"])
            trial = study.ask()
            with contextlib.suppress(ValueError):
                self.space.candidate(trial)
            each = found.get(line["candidate"])
            study.tell(trial, (1.0, WORST) if each is None else (each.time, each.snr))
        for params in seeds:
            if not any(line["params"].items() <= params.items() for line in past):
                study.enqueue_trial(params)
        return study


def _others(kept: list[Found], candidate: Settings) -> list[Found]:
    return [each for each in kept if each.settings != candidate]

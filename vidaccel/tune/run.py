"""`vidaccel.tune.tune`: from a model and prompts to a profile with measured points."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from vidaccel import points
from vidaccel.api import set_aside
from vidaccel.calibration.settings import check_whole
from vidaccel.eval.cells import Cell, plan_cells
from vidaccel.eval.identity import key_of
from vidaccel.eval.settings import Settings
from vidaccel.eval.sources import Source
from vidaccel.eval.store import Store
from vidaccel.pipelines import experts
from vidaccel.points import Point
from vidaccel.processes import Crew, check_agreed
from vidaccel.profile import Profile
from vidaccel.stored_cache import files_of
from vidaccel.target import Target
from vidaccel.tune.budget import Budget
from vidaccel.tune.final import LEAST_PROMPTS, Final, digest
from vidaccel.tune.hand import Hand
from vidaccel.tune.journal import Journal
from vidaccel.tune.lab import Lab
from vidaccel.tune.ready import Given, base_of, calibrated, keep, space_of, under_sparse
from vidaccel.tune.search import Search
from vidaccel.tune.space import CALIBRATION
from vidaccel.tune.team import Team

JOURNAL = "journal.jsonl"
ASKED = "asked"
"""A kind of lines in the journal: what the tuning is of, so that a folder serves one."""
TARGET, BUDGET = "psnr>=30", 1800.0
MOST_SEARCHED = 3
"""Prompts of the search."""
FINAL = 0.35
"""Share of the budget that is kept for the last measurements."""
SPARSE = 0.85
"""Share of the search's time after which the best sparse attention is given calibrations of its own."""
Progress = Callable[[str, float, float], None]
"""Called with what happens, the seconds spent and the budget."""


@dataclass(frozen=True)
class Tuned:
    """What a tuning found.

    Args:
        profile: with all points that are worth their time; its own settings are those of `chosen`.
        chosen: the point for the target, or where none meets it the one that comes nearest.
        met: whether it meets it.
        target: what was wanted.
        trials: candidates that ran.
        seconds: spent, over all starts.
    """

    profile: Profile
    chosen: Point
    met: bool
    target: Target
    trials: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, without the profile's heads and calibrations."""
        return {"kind": "tuned", "target": str(self.target), "met": self.met, "chosen": self.chosen.to_dict(),
                "points": [each.to_dict() for each in self.profile.points], "trials": self.trials,
                "seconds": self.seconds}  # fmt: skip


def tune(
    model: Any,
    prompts: Sequence[str],
    work: str | os.PathLike[str],
    *,
    target: str | Target = TARGET,
    budget: float = BUDGET,
    trials: int | None = None,
    heads: Profile | None = None,
    cache_file: str | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
    **call: Any,
) -> Tuned:
    """Search sparse attention and step caching together, by real generations, for settings that are fast and faithful.

    Candidates run on the first half of the prompts, three at most, and are judged by their latents; times of the search
    are counted from its calls, whose paces were measured. The best are then decoded on the other prompts, in turns with
    dense runs: only that is in the points. With two or three prompts, all serve both.

    Args:
        model: a diffusers pipeline, or a `Source`.
        prompts: two or more.
        work: a folder that keeps references and results: called again with the same arguments, it goes on there.
        target: see `vidaccel.target.Target`; of a metric, the worse end of the mean's 95 % interval counts.
        budget: seconds, over all starts, loading included.
        trials: candidates of the search at most; None for as many as there is time for.
        heads: a profile with calibrated heads, for the methods that go by them.
        cache_file: a calibration of step caching for dense runs of these steps; without one it is made, if there is
            time.
        seed: of the noise and of the search.
        progress, say: hear of what happens.
        call: of the runs: ``steps``, ``height``, ``width``, ``frames``, ``guidance``, ``negative_prompt``.

    Raises:
        ValueError: bad arguments, or no optuna, before anything is loaded; or nothing that is worth its time, or a
            budget that ended before two prompts were measured.
    """
    found = shared_tune(Crew(), model, prompts, work, target=target, budget=budget, trials=trials, heads=heads,
                        cache_file=cache_file, seed=seed, progress=progress, say=say, **call)  # fmt: skip
    assert found is not None
    return found


def shared_tune(
    crew: Crew, model: Any, prompts: Sequence[str], work: str | os.PathLike[str], *, target: str | Target,
    budget: float, trials: int | None, heads: Profile | None, cache_file: str | None, seed: int,
    progress: Progress | None, say: Callable[[str], None] | None, **call: Any,
) -> Tuned | None:  # fmt: skip
    """`tune` over several processes, which run as many generations at once.

    Candidates of the search are asked for in groups, and each prompt of the last measurements is of one process, so
    that a speedup has both its times from one. Paces are measured in the main process, while the others wait.

    Args:
        crew: the processes, each of which calls this with the same arguments and a folder that all of them see.

    Returns:
        None in other processes than the main one.

    Raises:
        ValueError: as for `tune`, or processes that would tune for other runs.
        RuntimeError: another process has gone.
    """
    with crew.together():
        wanted, texts, given = _checked(target, prompts, budget, trials), list(prompts), Given(heads, cache_file)
        source = model if isinstance(model, Source) else Source.of(model)
        source.check_family()
        searched, held_out = divided(texts)
        cells = plan_cells([source], Settings.of({"method": "dense", "prompt": searched, "seed": seed, "quick": True,
                                                  "baselines": False, **call}))  # fmt: skip
        asked = _asked(cells, texts, seed, given)
    about = {name: item for name, item in cells[0].reference.items() if name not in ("prompt", "seed")}
    check_agreed(crew, {**about, **asked}, "tune for other runs")
    # What a cell is beside its reference does not matter: only the latter is run here.
    with Store(work, crew) as store:
        with crew.together():
            journal = Journal(store.out / JOURNAL if crew.main else None)
            _same_tuning(journal, asked)
        told = Budget(budget, journal.spent)
        report = progress or (lambda *_: None)
        hear = say or (lambda _: None)

        def tell(what: str) -> None:
            report(what, told.spent, told.total)

        tell("loading")
        with crew.together():
            pipe = source.load()
            check_whole(experts(pipe))
            base = base_of(pipe, source, given)
        with set_aside(pipe):
            lab = Lab(pipe, cells, store, journal, told, base, hear)
            final = Final(lab, held_out, seed, wanted, tell)
            team = Team(crew, Hand(lab, final, crew).do)
            if not crew.main:
                if (own := given.calibration) is not None:
                    keep(lab, CALIBRATION, own)
                team.serve()
                return None
            lab.team = team if crew.size > 1 else None
            return _tuned(lab, final, given, wanted, seed, trials, tell)


def divided(prompts: Sequence[str]) -> tuple[list[str], list[str]]:
    """Prompts of the search, and those that points are measured on: others, where there are four or more."""
    if len(prompts) < 2 * LEAST_PROMPTS:
        return list(prompts), list(prompts)
    count = min(MOST_SEARCHED, len(prompts) // 2)
    return list(prompts[:count]), list(prompts[count:])


def _checked(target: str | Target, prompts: Sequence[str], budget: float, trials: int | None) -> Target:
    """Refuse arguments that need no model to be seen as wrong."""
    if isinstance(prompts, str) or len(set(prompts)) < max(LEAST_PROMPTS, len(prompts)):
        raise ValueError(f"a tuning needs {LEAST_PROMPTS} prompts or more, each another one")
    if not isinstance(budget, int | float) or not 0 < budget < float("inf"):
        raise ValueError(f"budget {budget!r} is not a number of seconds above 0")
    if trials is not None and (not isinstance(trials, int) or isinstance(trials, bool) or trials < 1):
        raise ValueError(f"trials {trials!r} is not a whole number of at least 1")
    if importlib.util.find_spec("optuna") is None:
        raise ValueError("the tuner needs optuna, which is not installed: pip install 'vidaccel[tune]'")
    return Target.of(target)


def _asked(cells: Sequence[Cell], prompts: Sequence[str], seed: int, given: Given) -> dict[str, Any]:
    """What tells a tuning from others."""
    return {"references": key_of({"all": [cell.reference for cell in cells]}), "prompts": digest(prompts),
            "seed": seed, **given.described()}  # fmt: skip


def _same_tuning(journal: Journal, asked: dict[str, Any]) -> None:
    """Refuse a folder in which another tuning was begun."""
    before = next(journal.of(ASKED), None)
    if before is None:
        journal.add(ASKED, 0.0, **asked)
        return
    if other := [name for name, value in asked.items() if before.get(name) != value]:
        where = "" if journal.path is None else journal.path.parent
        raise ValueError(f"{where} is of another tuning: it differs in {', '.join(other)} "
                         "(references: of model, call, device or versions); choose another folder")  # fmt: skip


def _tuned(lab: Lab, final: Final, given: Given, target: Target, seed: int, trials: int | None,
           tell: Callable[[str], None]) -> Tuned:  # fmt: skip
    """What is done with a model that is loaded, and the other processes let go in the end."""
    search, budget, folder = _searched(lab, given, seed, trials, tell), lab.budget, lab.store.out
    final.run(budget.total)
    _refined(search, final)
    if lab.team is not None:
        lab.team.end()
    if not (found := final.points()):
        raise ValueError(_nothing(lab, final, folder))
    best = final.best()
    chosen = final.nearest() if best is None else best
    profile = finished(lab.base, found, chosen)
    return Tuned(profile, chosen, best is not None, target, search.trials(), budget.spent)


def _searched(lab: Lab, given: Given, seed: int, trials: int | None, tell: Callable[[str], None]) -> Search:
    """The search, after what it goes by."""
    budget, folder = lab.budget, lab.store.out
    tell("dense references")
    lab.prepare()
    calibrated(lab, given, folder, tell)
    search, until = Search(lab, space_of(lab, tell), seed, trials, tell), budget.total * (1 - FINAL)
    search.run(until * (SPARSE if search.space.attentions else 1))
    under_sparse(lab, search.space, folder, until, tell)
    return search


def _refined(search: Search, final: Final) -> None:
    """As long as there is time, look for more beside what was measured, and measure that, too."""
    budget = search.lab.budget
    while final.room(budget.left / 2) and search.refine(budget.spent + budget.left / 2):
        final.more(budget.total)


def _nothing(lab: Lab, final: Final, folder: Any) -> str:
    """Why there is no point."""
    took = lab.dense["seconds"]
    if lab.budget.left > LEAST_PROMPTS * 2 * took and not final.worthy():
        return f"nothing was found that is faster than dense and near it, in {lab.budget.spent:.0f} s"
    return (f"the budget of {lab.budget.total:.0f} s ended before any settings were measured on {LEAST_PROMPTS} "
            f"prompts: a dense run takes {took:.1f} s here; give more, and it goes on in {folder}")


def finished(base: Profile, found: Sequence[Point], chosen: Point) -> Profile:
    """The profile of what was measured: the front of all points, the chosen one among them, and what they go by."""
    kept = points.front(found)
    kept = kept if chosen in kept else [*kept, chosen]
    files = set().union(*(files_of(each.settings["cache"]) for each in kept))
    own = {name: each for name, each in base.calibrations.items() if name in files}
    made = dataclasses.replace(base, points=tuple(kept), calibrations=own).at(chosen)
    if any(each.settings["method"] in ("head_profile", "mixed") for each in kept):
        return made
    return dataclasses.replace(made, heads=None, heads_at=(), calibration=None)

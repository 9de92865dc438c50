"""What a search goes by: heads and calibrations that there are or are made, and which attention is faster here."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import vidaccel
from vidaccel import architecture
from vidaccel.api import facts
from vidaccel.caching.calibration import CacheCalibration
from vidaccel.calibration.cache import SAMPLES
from vidaccel.calibration.cache import measured as calibrated_cache
from vidaccel.eval.runner import attached
from vidaccel.eval.sources import Source
from vidaccel.heads import heads_digest
from vidaccel.patched import DENSE
from vidaccel.pipelines import experts, family_of
from vidaccel.processes import Crew
from vidaccel.profile import REPOSITORY, Profile
from vidaccel.tune.candidate import Settings, attention, is_sparse, key, settings, words
from vidaccel.tune.front import front
from vidaccel.tune.lab import PACE, Lab
from vidaccel.tune.space import CALIBRATION, Space, block_for, lowest, methods, precisions

GRID, NOTE = "grid", "note"
"""Kinds of lines in the journal."""
CALIBRATE = "calibrate"
"""A kind of jobs: of all processes together."""
SLOW = 0.97
"""Pace from which sparse calls save nothing worth a search."""
CALIBRATED, PROBES = 2, 4
"""Prompts of a calibration that is made here, and its further generations."""
SHARE, PACES = 0.25, 0.15
"""Of the budget, what a calibration may take at most, and after which no further method is looked at."""
UPGRADED = 2
"""Kinds of sparse attention that are given a calibration of their own."""
SHARES = (0.35, 0.5, 0.65, 0.8)
"""Of a run's steps, that static caches under sparse attention compute."""
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Given:
    """What a tuning is given to go by.

    Args:
        heads: a profile with calibrated heads; None for none.
        cache_file: a calibration of step caching for dense runs; None for none.

    Raises:
        ValueError: a profile without heads, or a calibration that cannot be read or is not of dense runs.
    """

    heads: Profile | None = None
    cache_file: str | None = None

    def __post_init__(self) -> None:
        if self.heads is not None and self.heads.heads is None:
            raise ValueError(f"the profile {self.heads.reference} has no heads: vidaccel profile makes one that has")
        made = self.calibration
        if made is not None and made.attention != DENSE:
            raise ValueError(f"the cache calibration {self.cache_file} is of sparse runs: the search begins with dense")

    @property
    def calibration(self) -> CacheCalibration | None:
        """The calibration that is given."""
        return None if self.cache_file is None else CacheCalibration.of(self.cache_file)

    def described(self) -> dict[str, str | None]:
        """By content, to tell one tuning from another."""
        table = None if self.heads is None else self.heads.heads
        heads = None if self.heads is None or table is None else heads_digest(table, self.heads.heads_at)
        made = self.calibration
        return {"heads": heads, "cache_file": None if made is None else made.digest}


def base_of(pipe: Any, source: Source, given: Given) -> Profile:
    """A profile of the model with all that candidates may go by, which leaves everything alone.

    Raises:
        ValueError: heads of another model.
    """
    models = {name: facts(module) for name, module in experts(pipe).items()}
    ids = (source.name,) if re.fullmatch(REPOSITORY, source.name) else ()
    made = Profile(DENSE, models=ids, source="vidaccel tune", model=architecture.describe(models), calibrations={})
    if given.heads is None:
        return made
    given.heads.check(models)
    return dataclasses.replace(made, heads=given.heads.heads, heads_at=given.heads.heads_at,
                               calibration=given.heads.calibration)  # fmt: skip


def calibrated(lab: Lab, given: Given, folder: Path, tell: Tell) -> None:
    """Have a calibration of dense runs among those of the lab: the given one, one that was made before, or a new one if
    there is time.

    Raises:
        ValueError: a given one of other runs.
    """
    made = given.calibration
    if made is not None:
        if made.steps != lab.steps:
            raise ValueError(f"the cache calibration {given.cache_file} is for runs of {made.steps} steps, not of "
                             f"{lab.steps}: give another, or none, and one is made")  # fmt: skip
        keep(lab, CALIBRATION, made)
        return
    made = _made(lab, CALIBRATION, folder, 1.0, lambda: tell("calibrating step caches"), None)
    if made is None:
        lab.say("no calibration of step caches: policies that need one are left out")


def space_of(lab: Lab, tell: Tell) -> Space:
    """What is searched, after a look at each method's pace at the lowest density: what is not faster there never is."""
    found: dict[str, dict[str, Any]] = {}
    least: dict[str, float] = {}
    until = lab.budget.spent + PACES * lab.budget.total
    for name, options in methods(lab.base.heads is not None, block_for(_tokens(lab))):
        if lab.budget.spent > until:
            lab.say(f"no time to look at {name}")
            continue
        tell(f"pace of {name}")
        density, pace = _pace(lab, name, options)
        if pace is not None and pace < SLOW:
            found[name], least[name] = options, density
    transformer: Any = next(iter(experts(lab.pipe).values()))
    family = family_of(transformer)
    guided = lab.dense["passes"] > 1.5 and not family.batched_guidance
    probe = family.probe(transformer, getattr(lab.pipe, "_execution_device", None) or transformer.device)
    return Space(lab.steps, found, dict(lab.base.calibrations), guided, precisions(probe), least)


def under_sparse(lab: Lab, space: Space, folder: Path, until: float, tell: Tell) -> None:
    """Give the best sparse attention calibrations of its own, with which its steps can be cached as dense ones are."""
    sparse = [each for each in front(lab.found()) if is_sparse(each.settings)]
    own = {key(attention(each.settings)): attention(each.settings) for each in reversed(sparse)}
    for name, candidate in list(own.items())[:UPGRADED]:
        pace = min(1.0, lab.pace(candidate) or 1.0)
        named, left = f"sparse-{name}", until - lab.budget.spent
        if left < (CALIBRATED + PROBES + len(SHARES)) * pace * lab.dense["seconds"]:
            return
        report = f"calibrating step caches under {words(candidate)}"
        with attached(lab.session(candidate)):
            made = _made(lab, named, folder, pace, lambda what=report: tell(what), candidate)  # type: ignore[misc]
        if made is None:
            return
        space.calibrations[named] = lab.base.calibrations[named]
        caches = [_static(candidate, named, max(2, round(share * lab.steps)), space) for share in SHARES]
        pairs = [(each, index) for each in caches for index in range(len(lab.cells))]
        for at in range(0, len(pairs), lab.width):
            if until - lab.budget.spent > lab.dense["seconds"]:
                lab.ahead(pairs[at : at + lab.width])
                for each, index in pairs[at : at + lab.width]:
                    lab.attempt(each, index)


def _static(candidate: Settings, name: str, count: int, space: Space) -> Settings:
    cache = {"name": "static", "computed_steps": count, "file": name, "predictor": {"name": "fitted", "outputs": 2}}
    return settings(**{**candidate, "cache": {**cache, **space.short}})


def _made(lab: Lab, name: str, folder: Path, pace: float, tell: Callable[[], None], candidate: Settings | None
          ) -> CacheCalibration | None:  # fmt: skip
    """A calibration of what is enabled now, which is that candidate's attention, as it was made before or is made now;
    None where there is no time, or the model's steps cannot be cached."""
    path = file_of(folder, name)
    if path.exists():
        return keep(lab, name, CacheCalibration.load(path))
    if any(line["about"] == name for line in lab.journal.of(NOTE)):
        return None
    needed = (len(lab.cells[:CALIBRATED]) + PROBES) * pace * lab.dense["seconds"]
    if needed > SHARE * lab.budget.total:
        lab.say(f"no time to calibrate step caches: about {needed:.0f} s")
        return None
    tell()
    path.parent.mkdir(exist_ok=True)
    crew = Crew() if lab.team is None else lab.team.crew
    if lab.team is not None:
        lab.team.everyone(lab.job(CALIBRATE, name=name, settings=candidate))
    try:
        made = measured_calibration(lab, name, folder, candidate is not None, tell, crew)
        assert made is not None
        made.save(path)
    except ValueError as error:
        why = " ".join(str(error).split())
        lab.journal.add(NOTE, lab.budget.spent, about=name, why=why)
        lab.say(f"step caches cannot be calibrated: {why}")
        return None
    return keep(lab, name, made)


def measured_calibration(lab: Lab, name: str, folder: Path, sparse: bool, tell: Callable[[], None], crew: Crew
                         ) -> CacheCalibration | None:  # fmt: skip
    """A calibration of what is enabled now, by all processes together; None in others than the main one.

    Raises:
        ValueError: the model's steps cannot be cached.
    """
    call = {name: item for name, item in lab.cells[0].call.items() if item is not None}
    prompts = [cell.prompt for cell in lab.cells[:CALIBRATED]]
    return calibrated_cache(lab.pipe, prompts, call, samples=SAMPLES, seed=lab.cells[0].seed, sparse=sparse,
                            work=file_of(folder, name).with_suffix(".work"), probes=PROBES,
                            progress=lambda *_: tell(), crew=crew)  # fmt: skip


def file_of(folder: Path, name: str) -> Path:
    """Where a calibration that was made here lies."""
    return folder / "calibrations" / f"{name}.json"


def keep(lab: Lab, name: str, made: CacheCalibration) -> CacheCalibration:
    """Put a calibration among those of the lab; where it was read from is no part of the profile."""
    calibrations = {**lab.base.calibrations, name: dataclasses.replace(made, reference="")}
    lab.base = dataclasses.replace(lab.base, calibrations=calibrations)
    return made


def _pace(lab: Lab, name: str, options: dict[str, Any]) -> tuple[float, float | None]:
    """The lowest density that a method can have here, and its pace there: None where no call of it can be sparse."""
    for density, candidate in lowest(name, options):
        try:
            if (pace := lab.pace(candidate)) is not None:
                return density, pace
        except (ValueError, RuntimeError) as error:
            vidaccel.disable(lab.pipe)
            lab.journal.add(PACE, lab.budget.spent, attention=lab.paced(candidate), settings=candidate, ratio=None,
                            why=" ".join(str(error).split()))  # fmt: skip
    return 1.0, None


def _tokens(lab: Lab) -> int:
    """The length of a sequence, of a run of one step in which nothing is sparse."""
    for line in lab.journal.of(GRID):
        return int(line["tokens"])
    with vidaccel.enable(lab.pipe, "radial", schedule={"dense_first_steps": 1.0}, min_tokens=0) as session:
        lab.runner.run("grid", lab.cells[0].prompt, lab.cells[0].seed, num_inference_steps=1)
        layout = session.summary().tally.layout
    assert layout is not None
    lab.journal.add(GRID, lab.budget.spent, tokens=layout.tokens)
    return layout.tokens

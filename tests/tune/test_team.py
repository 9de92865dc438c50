"""A tuning whose generations several processes share."""

from __future__ import annotations

import functools
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import tiny
from tests.crews import in_crew
from tests.tune.cases import CALL, PROMPTS, calibration, steady
from tests.tune.test_tune import fidelity
from vidaccel.caching.calibration import CacheCalibration
from vidaccel.processes import Crew, launched
from vidaccel.tune import hand, ready, run
from vidaccel.tune import lab as labs
from vidaccel.tune.run import shared_tune
from vidaccel.tune.team import Team

pytest.importorskip("optuna")
SECONDS = 400


@functools.cache
def pipes() -> list[Any]:
    """Of each process the same model; made one after the other, as they draw from torch's one generator."""
    return [tiny.tiny_wan() for _ in range(2)]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    pipes()
    steady(monkeypatch)
    monkeypatch.setattr(launched, "POLL", 0.005)
    monkeypatch.setattr(ready, "methods", lambda heads, block: iter([("radial", {"block": 16})]))


def tuned(crew: Crew, work: Path, cache_file: Path | None, **options: Any) -> Any:
    given = {"target": "speedup>=0.01", "budget": 1e6, "trials": 4, "heads": None, "seed": 0, "progress": None,
             "say": None, **CALL, **options}  # fmt: skip
    return shared_tune(crew, pipes()[crew.rank], PROMPTS, work, cache_file=cache_file and str(cache_file), **given)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, str, str]]:
    """Of each generation the thread, its label and the prompt."""
    made: list[tuple[int, str, str]] = []
    whole = labs.Runner.run

    def noted(self: Any, label: str, prompt: str, *args: Any, **kwargs: Any) -> Any:
        made.append((threading.get_ident(), label, prompt))
        return whole(self, label, prompt, *args, **kwargs)

    monkeypatch.setattr(labs.Runner, "run", noted)
    return made


def test_a_team_does_every_job_once() -> None:
    def work(crew: Crew) -> Any:
        done: list[Any] = []
        team = Team(crew, lambda job: done.append(job["n"]) or job["n"] ** 2)
        if not crew.main:
            team.serve()
            return done
        first, none, second = team.run([{"n": n} for n in range(9)]), team.run([]), team.run([{"n": 20}])
        team.everyone({"n": 99})
        team.end()
        return done, first, none, second

    (mine, first, none, second), theirs = in_crew(2, work)
    assert first == [n**2 for n in range(9)] and none == [] and second == [400]
    assert sorted([*mine, *theirs]) == [*range(9), 20, 99] and theirs[-1] == 99


def test_two_processes_share_a_tuning(tmp_path: Path, runs: list[tuple[int, str, str]]) -> None:
    calibration().save(tmp_path / "cache.json")
    found, other = in_crew(2, lambda crew: tuned(crew, tmp_path / "work", tmp_path / "cache.json"), SECONDS)
    assert other is None and found.met and found.trials == 4, (found, other)
    lines = [json.loads(line) for line in (tmp_path / "work" / run.JOURNAL).read_text().splitlines()]
    done = [(line["candidate"], line["prompt"]) for line in lines if line["kind"] in (labs.RUN, "clip")]
    assert len(done) == len(set(done)), "nothing ran twice"
    assert len({thread for thread, label, _ in runs if label == "tuning"}) == 2
    final = {prompt: {thread for thread, label, each in runs if (label, each) == ("final", prompt)}
             for prompt in PROMPTS[2:]}  # fmt: skip
    assert all(len(threads) == 1 for threads in final.values()), "a speedup has both its times from one process"
    assert len(set.union(*final.values())) == 2
    # What a point says is what a user gets: the same prompts, noise and setting again.
    values = [fidelity(tiny.tiny_wan(), found.profile, prompt) for prompt in PROMPTS[2:]]
    assert np.mean(values) == pytest.approx(found.chosen.metrics["psnr"]["mean"], abs=1e-3)
    # One process goes on with it, and has nothing to search.
    before = len(runs)
    again = tuned(Crew(), tmp_path / "work", tmp_path / "cache.json")
    assert again.trials == 4 and [label for _, label, _ in runs[before:] if label == "tuning"] == []


@pytest.mark.slow
def test_calibrations_are_made_together_and_known_to_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    took: list[int] = []
    whole = hand.measured_calibration

    def noted(*args: Any) -> Any:
        took.append(args[-1].rank)
        return whole(*args)

    for module in (hand, ready):
        monkeypatch.setattr(module, "measured_calibration", noted)
    # Tiny pipelines are never faster sparse: let the clock say that they are.
    monkeypatch.setattr(labs.Lab, "_paced", lambda self, candidate: (0.3, None))
    monkeypatch.setattr(ready, "methods", lambda heads, block: iter([("antidiagonal", {"block": 16})]))
    found, other = in_crew(2, lambda crew: tuned(crew, tmp_path, None, target="psnr>=1", trials=10), SECONDS)
    assert other is None and found.met, (found, other)
    assert sorted(took)[: len(took) // 2] == [0] * (len(took) // 2) and len(took) >= 4, "dense, and under sparse"
    alone = CacheCalibration.load(tmp_path / "calibrations" / "dense.json")
    assert alone.attention == "dense" and alone.prompts["count"] == 2
    files = {path.stem for path in (tmp_path / "calibrations").glob("sparse-*.json")}
    lines = [json.loads(line) for line in (tmp_path / run.JOURNAL).read_text().splitlines()]
    used = {(line["settings"]["cache"] or {}).get("file") for line in lines if line["kind"] == labs.RUN}
    assert files and files <= used, "steps of sparse runs were cached by their own"
    assert not [line["why"] for line in lines if line["kind"] == labs.FAILED]


def test_a_bug_in_one_process_ends_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calibration().save(tmp_path / "cache.json")
    whole = hand.Hand._candidate

    def broken(self: Any, job: Any) -> Any:
        if not self.crew.main:
            raise KeyError("oops")
        return whole(self, job)

    monkeypatch.setattr(hand.Hand, "_candidate", broken)
    main, other = in_crew(2, lambda crew: tuned(crew, tmp_path / "work", tmp_path / "cache.json"), SECONDS)
    assert type(main) is RuntimeError and "process 1" in str(main) and "oops" in str(main)
    assert type(other) is KeyError


def test_processes_that_would_tune_otherwise_are_refused(tmp_path: Path) -> None:
    for found in in_crew(2, lambda crew: tuned(crew, tmp_path / "work", None, seed=crew.rank), SECONDS):
        assert isinstance(found, ValueError) and "process 1 would tune for other runs than the main one" in str(found)
    assert not (tmp_path / "work").exists()

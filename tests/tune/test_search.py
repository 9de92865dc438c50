"""The outer search, on candidates whose quality and time are a formula."""

from __future__ import annotations

import pytest

from tests.tune.cases import STEPS, FakeLab, calibration
from vidaccel.caching import cache as make_cache
from vidaccel.stored_cache import resolved
from vidaccel.tune import search as searching
from vidaccel.tune.candidate import key
from vidaccel.tune.front import front
from vidaccel.tune.search import Search
from vidaccel.tune.space import Space

pytest.importorskip("optuna")
GOOD = (0, 2, 4)
"""Steps that are better computed than a calibration says."""


def space(attentions=()) -> Space:
    return Space(STEPS, {name: {"block": 16} for name in attentions}, {"dense": calibration()}, True)


def judge(candidate, index):
    """The more is computed the better; `GOOD` is better still; sparse attention halves the time for 3 dB."""
    known = {"dense": calibration()}
    cache = candidate["cache"]
    steps = STEPS if cache is None or cache["name"] != "static" else None
    good = 0
    if steps is None:
        computed = make_cache(resolved(cache, known)).policy.schedule
        steps, good = len(computed), 8 * (set(computed) == set(GOOD))
    sparse = candidate["method"] != "dense"
    pace = 0.5 if sparse else 1.0
    worse = 2 * (cache["predictor"].get("outputs", 2) - 2) if cache and isinstance(cache["predictor"], dict) else 0
    return 10.0 + 5 * steps + good - 3 * sparse - worse + 2 * index, pace * steps / STEPS


def searched(lab: FakeLab, until: float, attentions=(), most=None) -> Search:
    made = Search(lab, space(attentions), 0, most, lambda _: None)
    made.run(until)
    return made


def test_it_stays_in_its_time_and_runs_nothing_twice():
    lab = FakeLab(judge, total=60)
    made = searched(lab, 40)
    assert 30 < lab.clock.now <= 40 + 1e-6 and len(lab.ran) == len(set(lab.ran)) and made.trials() > 10
    whole = [each for each in lab.found() if each.whole]
    assert len(whole) < made.trials(), "some are stopped after their first prompt"


def test_what_no_calibration_says_is_found_near_the_front():
    lab = FakeLab(judge, total=400)
    searched(lab, 300)
    kept = front(lab.found())
    three = [each for each in kept if each.settings["cache"].get("compute") == list(GOOD)]
    assert three and three[0].snr == pytest.approx(10 + 15 + 8 + 1)


def test_sparse_attention_is_searched_with_caches():
    lab = FakeLab(judge, total=400)
    searched(lab, 100, ("radial",))
    kept = front(lab.found())
    both = [each for each in kept if each.settings["method"] == "radial" and each.settings["cache"] is not None]
    alone = [each for each in kept if each.settings["method"] == "radial" and each.settings["cache"] is None]
    assert both and alone and kept[0].time < 0.3


def test_a_limit_of_candidates():
    lab = FakeLab(judge, total=400)
    assert searched(lab, 300, most=7).trials() == 7


def test_killed_it_goes_on_and_learns_from_what_it_had(tmp_path):
    first = FakeLab(judge, total=400, path=tmp_path)
    searched(first, 15)
    again = FakeLab(judge, total=400, path=tmp_path)
    assert again.budget.spent == pytest.approx(first.clock.now, abs=1)
    searched(again, 45)
    assert not set(first.ran) & set(again.ran) and again.ran
    seeds = {key(space().candidate(_Asked(params))) for params in space().seeds()}
    before, after = ({own for own, _ in each.ran} & seeds for each in (first, again))
    assert before and after and not before & after, "seeds that had no turn have it now, and no other"


class _Asked:
    def __init__(self, params):
        self.params = params

    def suggest_categorical(self, name, choices):
        return self.params[name]

    def suggest_int(self, name, low, high):
        return self.params[name]

    def suggest_float(self, name, low, high, **_):
        return self.params[name]


def test_what_cannot_run_is_told_and_left(monkeypatch):
    lab = FakeLab(judge, total=60)
    run = lab.attempt

    def attempt(candidate, index):
        if candidate["cache"] is not None and candidate["cache"]["name"] == "static":
            lab.clock.now += 0.1
            return None
        return run(candidate, index)

    monkeypatch.setattr(lab, "attempt", attempt)
    searched(lab, 30)
    names = {each.settings["cache"]["name"] for each in lab.found()}
    assert names and "static" not in names


def test_nothing_new_ends_it(monkeypatch):
    monkeypatch.setattr(searching, "STALE", 5)
    lab = FakeLab(lambda candidate, index: (1.0, 0.5), total=1e9)
    searched(lab, 1e9, most=300)
    assert lab.budget.spent < 1e6


@pytest.mark.parametrize("fails", [False, True])
def test_what_was_given_up_too_early_is_run_on(fails):
    lab = FakeLab(judge, total=1000)
    made = Search(lab, space(), 0, None, lambda _: None)
    caches = {round(share * STEPS): each for share, each in made.space.statics()}
    for steps, prompts in ((2, 2), (3, 1), (5, 2)):
        for index in range(prompts):
            lab.attempt(caches[steps], index)
    assert made._reopened(front(lab.found())) == [caches[3]]
    if fails:
        lab.journal.add("failed", 0.0, candidate=key(caches[3]), settings=caches[3], why="its memory")
        assert not made._reopened(front(lab.found()))
        return
    made.refine(lab.budget.spent + 3)
    assert (key(caches[3]), 1) in lab.ran and len(lab.ran) == len(set(lab.ran))


def test_a_prompt_on_which_nothing_changes_says_nothing_of_others():
    def latents(candidate, index):
        same = candidate["cache"]["name"] == "easycache" and index == 0
        return 150.0 if same else 30.0 + index, 0.5

    lab = FakeLab(latents)
    first, *others = (each for _, each in space().statics())
    easy = {**first, "cache": {"name": "easycache", "threshold": 0.1}}
    for candidate in (easy, *others):
        for index in range(2):
            lab.attempt(candidate, index)
    lab.attempt(first, 0)
    found = next(each for each in lab.found() if each.settings == first)
    assert not found.whole and found.snr == pytest.approx(30.5)


def test_gaps_of_the_front_are_filled_widest_first():
    lab = FakeLab(judge, total=1000)
    made = Search(lab, space(), 0, None, lambda _: None)
    for steps in (2, 5):
        cache = next(each for share, each in made.space.statics() if share == steps / STEPS)
        for index in range(2):
            lab.attempt(cache, index)
    first = made._between(front(lab.found()))
    assert first is not None and first["cache"]["computed_steps"] == 3, "as far from 2 as from 5, as ratios"
    assert made.refine(100)
    asked = [line["settings"]["cache"].get("computed_steps") for line in lab.journal.of("run")]
    assert {2, 3, 4, 5} <= set(asked) and len(lab.ran) == len(set(lab.ran))
    assert made._between(front(lab.found())) is None
    # Where nothing more is to be found it says so.
    while made.refine(lab.budget.spent + 100):
        pass
    assert not made.refine(lab.budget.spent + 100)
    assert not list(Space(STEPS, {}, {}, True).statics()), "without a calibration nobody knows which steps"

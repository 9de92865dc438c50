"""Budgets, the journal, fronts, what calls took, and what candidates there are."""

from __future__ import annotations

import itertools
import json
import random

import pytest
import torch

from tests import tiny
from tests.tune.cases import STEPS, Clock, calibration
from vidaccel.api import enable
from vidaccel.caching import cache as make_cache
from vidaccel.methods import METHODS
from vidaccel.stored_cache import resolved
from vidaccel.tune.budget import Budget, seconds_of
from vidaccel.tune.calls import Work, timed_calls, work_of
from vidaccel.tune.candidate import key, settings, words
from vidaccel.tune.front import Found, front, shortfall, spread
from vidaccel.tune.journal import Journal
from vidaccel.tune.neighbours import neighbour
from vidaccel.tune.space import Space, block_for, by_hand, methods


@pytest.mark.parametrize("text, seconds", [("90s", 90), ("30m", 1800), ("1.5 h", 5400), (" 2m ", 120)])
def test_times(text, seconds):
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "30", "30min", "-3m", "0s", "1e3s", "99999999999h", "1,5h"])
def test_what_is_no_time(text):
    with pytest.raises(ValueError, match="is not a time such as 90s, 30m or 1.5h"):
        seconds_of(text)


def test_a_budget_counts_earlier_starts():
    clock = Clock()
    budget = Budget(100, 30, clock)
    clock.now += 50
    assert (budget.spent, budget.left) == (80, 20)


def test_a_journal_loses_at_most_the_line_that_was_cut(tmp_path):
    path = tmp_path / "j.jsonl"
    made = Journal(path)
    made.add("run", 1.234, snr=3)
    made.add("pace", 2.5, ratio=None)
    path.write_text(path.read_text() + '{"kind": "run", "sp')
    again = Journal(path)
    assert again.lines == made.lines and again.spent == 2.5
    again.add("run", 4, snr=5)
    assert [line["snr"] for line in Journal(path).of("run")] == [3, 5]
    for text, complaint in (("x\n", "is damaged"), ("[1]\n", "no journal of a tuning"), ("{}\n", "no journal")):
        path.write_text(text)
        with pytest.raises(ValueError, match=complaint):
            Journal(path)


def found(time: float, snr: float, whole: bool = True) -> Found:
    return Found(settings(cache={"name": f"{time} {snr}"}), time, snr, whole)


def test_the_front_is_of_whole_candidates_that_nothing_beats():
    a, b, c = found(0.3, 10), found(0.5, 20), found(0.9, 40)
    others = [found(0.5, 19), found(0.6, 20), found(0.2, 50, whole=False), found(0.95, 39)]
    assert front([*others, c, a, b]) == [a, b, c]
    assert shortfall(0.5, 17, [a, b, c]) == 3 and shortfall(0.4, 17, [a, b, c]) == -7
    assert shortfall(0.1, 5, [a, b, c]) == float("-inf")
    many = [found(0.1 * at, at) for at in range(1, 11)]
    chosen = spread(many, 4)
    assert len(chosen) == 4 and chosen[0] == many[0] and chosen[-1] == many[-1] and spread(many[:3], 4) == many[:3]


def test_work_counts_each_kind():
    assert Work(10).share(0.5) == 1
    assert Work(0, 10).share(0.5) == 0.5
    assert Work(5, 2, 3, 0.1).share(0.5) == pytest.approx((5 + 1 + 0.3) / 10)


def test_calls_of_a_run_are_counted_and_timed():
    pipe = tiny.tiny_wan()
    cases = {
        "dense": (None, "easycache", Work(8)),
        "sparse": ("radial", None, Work(2, 6)),
        "cached": (None, {"name": "static", "compute": [0, 2], "min_steps": 1}, Work(4, 0, 4)),
    }
    for name, (method, cache, expected) in cases.items():
        options = {} if method is None else {"min_tokens": 0, "block": 16, "schedule": {"dense_first_steps": 1}}
        with enable(pipe, method, cache=cache, **options) as session, timed_calls(pipe) as calls:
            tiny.generate(pipe, num_inference_steps=4, output_type="latent")
        made = work_of(session, len(calls), 4, 0.5)
        assert len(calls) == 8 and all(each > 0 for each in calls)
        assert (made.dense, made.sparse, made.given) == (expected.dense, expected.sparse, expected.given), name
        assert (0 < made.given_cost < 1) is (name == "cached"), made
    assert not pipe.transformer._forward_pre_hooks and not pipe.transformer._forward_hooks


# candidates


class Told:
    """A trial that draws what it is not told."""

    def __init__(self, params: dict, draw: random.Random) -> None:
        self.given, self.draw, self.params = params, draw, {}

    def _take(self, name, drawn, fits):
        value = self.given.get(name, drawn)
        assert fits(value), f"{name} {value}"
        self.params[name] = value
        return value

    def suggest_categorical(self, name, choices):
        return self._take(name, self.draw.choice(choices), lambda value: value in choices)

    def suggest_int(self, name, low, high):
        return self._take(name, self.draw.randint(low, high), lambda value: low <= value <= high)

    def suggest_float(self, name, low, high, step=None, log=False):
        drawn = low + (step or 0.1) * self.draw.randint(0, int((high - low) / (step or 0.1)))
        return self._take(name, drawn, lambda value: low <= value <= high + 1e-9)


def space(guided: bool = True, fitted: bool = True, attentions=("radial", "nabla")) -> Space:
    known = {"dense": calibration()} if fitted else {}
    return Space(STEPS, {name: {"block": 16} for name in attentions}, known, guided, (None, "int8"))


def check(candidate: dict, known) -> None:
    """That `enable` would take it, as far as can be told without a model."""
    made = make_cache(resolved(candidate["cache"], known))
    assert made is None or made.min_steps == 1, "so short a run would not be cached"
    if candidate["method"] != "dense":
        METHODS[candidate["method"]].for_family("wan", **candidate["options"])
        # What a calibration of dense runs says of more than steps is not for sparse ones.
        assert made is None or not made.calibrations
    assert json.loads(json.dumps(candidate)) == candidate and words(candidate)


@pytest.mark.parametrize("guided, fitted", list(itertools.product((True, False), repeat=2)))
def test_every_seed_and_every_draw_is_a_candidate(guided, fitted):
    draw, made = random.Random(0), space(guided, fitted)
    seeds = list(made.seeds())
    assert len(seeds) >= 5 and len({key(made.candidate(Told(each, draw))) for each in seeds}) == len(seeds)
    refused = 0
    for params in [*seeds, *[{}] * 300]:
        try:
            candidate = made.candidate(Told(params, draw))
        except ValueError as error:
            assert not params and "goes by a calibration of dense runs, and these are sparse" in str(error), error
            refused += 1
            continue
        check(candidate, made.calibrations)
        assert guided or "guidance_interval" not in (candidate["cache"] or {})
    assert refused < 150


def test_neighbours_are_candidates_and_other_ones():
    draw, made = random.Random(1), space()
    begun = [made.candidate(Told(params, draw)) for params in made.seeds()]
    kinds = set()
    for first in begun:
        now = first
        for _ in range(40):
            near = neighbour(now, made, draw)
            if near is None:
                assert first["cache"] is None and first["method"] == "dense"
                break
            assert near != now
            check(near, made.calibrations)
            kinds.update(name for name in ("cache", "options", "schedule") if near[name] != now[name])
            cache = near["cache"] or {}
            if "compute" in cache:
                assert cache["compute"][0] == 0 and cache["compute"] == sorted(set(cache["compute"]))
                assert 2 <= len(cache["compute"]) < STEPS
            now = near
    assert kinds == {"cache", "options", "schedule"}


def test_steps_by_hand_are_those_of_the_calibration():
    static = {"name": "static", "file": "dense", "computed_steps": 4, "warmup": 2, "min_steps": 1,
              "predictor": {"name": "fitted", "outputs": 3}}  # fmt: skip
    known = {"dense": calibration()}
    made = by_hand(static, known)
    assert set(made) == {"name", "compute", "predictor", "min_steps"} and made["predictor"]["file"] == "dense"
    one, two = (make_cache(resolved(each, known)) for each in (static, made))
    assert one.policy.schedule == two.policy.schedule == tuple(made["compute"]) and len(made["compute"]) == 4
    assert one.predictor.weights((0, 1), 3) == two.predictor.weights((0, 1), 3)


def test_which_methods_are_looked_at():
    with_heads, without = dict(methods(True, 32)), dict(methods(False, 32))
    assert set(with_heads) - set(without) == {"head_profile", "mixed"} == set(list(with_heads)[:2])
    assert without["radial"] == {"block": 32} and not {"oracle", "random"} & set(without)
    assert [block_for(tokens) for tokens in (100, 1521, 4096, 7000, 75_600)] == [16, 16, 32, 64, 128]
    for name, options in without.items():
        METHODS[name].for_family("wan", **options, density=0.3)


def test_a_key_is_of_what_json_has():
    one = settings("radial", {"density": 0.3}, {"dense_first_steps": 0.2}, {"name": "static", "compute": (0, 2)})
    assert key(one) == key(settings(**json.loads(json.dumps(one)))) != key(settings())
    assert torch.tensor(one["cache"]["compute"]).tolist() == [0, 2]

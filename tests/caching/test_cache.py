"""What a user may write for a cache, and what it comes to."""

from __future__ import annotations

import json

import pytest

from tests.caching.cases import Told, ToldOutput
from tests.caching.made import made as calibration
from vidaccel.caching import POLICIES, Cache, Place, cache
from vidaccel.caching.easycache import EasyCache
from vidaccel.caching.predictors import Affine, Fitted, Taylor
from vidaccel.schedule import Schedule


def test_forms() -> None:
    assert cache(None) is None
    assert cache("easycache") == cache({"name": "easycache"}) == cache(EasyCache()) == Cache(EasyCache())
    given = {"name": "easycache", "threshold": 0.1, "predictor": {"name": "taylor", "order": 2}, "most_reused": 3}
    assert cache(given) == Cache(EasyCache(threshold=0.1), Taylor(2), most_reused=3)
    made = Cache(EasyCache())
    assert cache(made) is made and made.predictor == Taylor()


def test_every_cache_is_json() -> None:
    for policy in (EasyCache(), Told((1, 2)), ToldOutput()):
        made = json.loads(json.dumps(Cache(policy, Taylor(1)).to_dict()))
        assert made["name"] == policy.name
        assert made["predictor"] == {"name": "taylor", "order": 1, "start": 2, "trend": 0.7}
        assert Cache(policy).computed == (1 if policy.name != "easycache" else 0.1, 1)


@pytest.mark.parametrize("given, message", [
    ("tea", "unknown cache policy 'tea'; choose "), ({"threshold": 1}, "unknown cache policy"), (3, "unknown cache"),
    ({"name": "easycache", "limit": 1}, "has no option 'limit'; it has threshold, "),
    ({"name": "easycache", "predictor": "spline"}, "unknown predictor 'spline'; choose hold, taylor, fitted, affine"),
    ({"name": "easycache", "reuse": "attention"}, "reuse 'attention' is none of stack, output, prediction"),
    ({"name": "rehash", "predictor": "affine"}, "needs a policy with calibrated corrections"),
])  # fmt: skip
def test_refusals(given: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cache(given)


def test_what_a_reused_step_is_given_by_default() -> None:
    """The fitted sum of outputs where there is a calibration for it, and all blocks or none run."""
    file = calibration()
    assert cache({"name": "magcache", "file": file}).predictor == Fitted()  # type: ignore[union-attr]
    assert cache({"name": "magcache", "file": file}).place is Place.PREDICTION  # type: ignore[union-attr]
    for given in ({"name": "magcache", "file": calibration(guided=None)}, {"name": "easycache"},
                  {"name": "magcache", "file": file, "reuse": "stack"},
                  {"name": "block_profile", "file": file}):  # fmt: skip
        assert cache(given).predictor == Taylor()  # type: ignore[union-attr]
    made = cache({"name": "easycache", "predictor": {"name": "fitted", "file": file}})
    assert made is not None and made.calibrations == {file: True} and made.to_dict()["fitted_to"] == file.digest
    assert made.place is Place.PREDICTION and cache({"name": "magcache", "file": file}).calibrations == {file: True}  # type: ignore[union-attr]
    assert cache({"name": "magcache", "file": file, "predictor": "hold"}).calibrations == {file: False}  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="predictor 'fitted' is for reuse='prediction', not 'stack'"):
        cache({"name": "magcache", "file": file, "predictor": "fitted", "reuse": "stack"})
    with pytest.raises(ValueError, match="'fitted' needs a calibration"):
        cache({"name": "easycache", "predictor": "fitted"})


def test_affine_is_for_corrections() -> None:
    assert any(each.corrects for each in POLICIES.values())
    with pytest.raises(ValueError, match="ertacache"):
        Cache(EasyCache(), Affine())


def test_error_budget_is_shared() -> None:
    """Dense steps leave all of a threshold, sparser ones less."""
    made = Cache(EasyCache(), sparse_share=0.4)
    assert made.allowance(1.0) == 1 and made.allowance(0.5) == pytest.approx(0.8) and made.allowance(0.0) == 0.6
    assert Cache(EasyCache(), sparse_share=0).allowance(0.1) == 1


def test_plan_of_reusable_steps() -> None:
    plan = Schedule().resolve(20, 4, (0.1, 1))
    assert [step for step in range(20) if plan.may_reuse(step)] == list(range(2, 19))
    # There is nothing before the first step, whatever is asked for; and without a cache nothing is reused.
    assert not Schedule().resolve(20, 4, (0, 0)).may_reuse(0) and Schedule().resolve(20, 4, (0, 0)).may_reuse(19)
    assert not any(Schedule().resolve(20, 4).may_reuse(step) for step in range(20))


@pytest.mark.parametrize("computed", [(0.1, 0), (1, 1), (1, 0.1)])
def test_steps_must_be_known(computed: tuple[float, float]) -> None:
    schedule = Schedule(dense_first_steps=1)
    with pytest.raises(ValueError, match="pass num_inference_steps, or a count of first_steps and last_steps=0"):
        schedule.resolve(None, 4, computed)
    assert schedule.resolve(None, 4, (2, 0)).may_reuse(1000)

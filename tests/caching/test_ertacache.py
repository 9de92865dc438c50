"""ERTACache against its sweep, written out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import vidaccel
from tests import tiny
from tests.caching.cases import run
from tests.caching.made import computed_by, made, turn
from vidaccel.caching import cache
from vidaccel.caching.calibration import CacheCalibration
from vidaccel.caching.ertacache import ErtaCache
from vidaccel.calibration.cache import calibrate_cache


def errors(calibration: CacheCalibration, expert: str, step: int, kept: int) -> float:
    tracks = list(calibration.tracks[expert].values())
    return sum(each.output[step - each.first_step][kept - each.first_step] for each in tracks) / len(tracks)


def sweep(calibration: CacheCalibration, limit: float, switch: int | None, forced: tuple[int, ...] = ()) -> list[int]:
    """The computed steps, as the paper has them; `forced` ones refresh, too."""
    computed: list[int] = []
    for step in range(calibration.steps):
        expert = "transformer_2" if switch is not None and step >= switch else "transformer"
        fresh = step in (0, switch) or step in forced
        if fresh or not errors(calibration, expert, step, computed[-1]) < limit:
            computed.append(step)
    return computed


@pytest.mark.parametrize("switch", [None, 9])
@pytest.mark.parametrize("limit", [0.05, 0.2, 0.5, 99.0])
def test_steps_are_the_sweeps(limit: float, switch: int | None) -> None:
    calibration = made(20, switch=switch)
    policy = ErtaCache(calibration, limit)
    expected = sweep(calibration, limit, switch)
    assert list(policy.schedule) == expected and policy.limit == limit
    assert computed_by(policy, 20, switch=switch) == expected
    forced = (0, 4, 5, 19)
    assert computed_by(policy, 20, switch=switch, forced=forced) == sweep(calibration, limit, switch, forced)


def test_least_threshold_for_a_number_of_steps() -> None:
    calibration = made(20)
    for count in (1, 5, 10, 19, 20):
        policy = ErtaCache(calibration, computed_steps=count)
        assert len(policy.schedule) <= count
        # Just below it, more are computed.
        assert count == 20 or len(sweep(calibration, policy.limit * 0.9999, None)) > count
    assert len(ErtaCache(calibration, computed_steps=0.5).schedule) <= 10
    with pytest.raises(ValueError, match="computed_steps 1 of 20 cannot be: the first step of each of 2 experts"):
        ErtaCache(made(20, switch=9), computed_steps=1)


def test_allowance_and_indicator() -> None:
    calibration = made()
    policy = ErtaCache(calibration, 99.0)
    verdict = policy.decide(turn(6, 2), None, {})  # type: ignore[arg-type]
    assert verdict.reuse and verdict.indicator is not None
    assert verdict.indicator == pytest.approx(errors(calibration, "transformer", 6, 4))
    share = verdict.indicator / 99
    assert not policy.decide(turn(6, 2, allowance=share), None, {}).reuse  # type: ignore[arg-type]
    assert not policy.decide(turn(6, 0), None, {}).reuse  # type: ignore[arg-type]


def test_correction_is_that_of_the_branch_and_steps() -> None:
    calibration = made(switch=7)
    policy = ErtaCache(calibration, 0.1)
    assert policy.corrects and cache({"name": "ertacache", "file": calibration, "threshold": 0.1,
                                      "predictor": "affine"})  # fmt: skip
    for expert, branch, step, kept in (("transformer", "cond", 5, 2), ("transformer_2", "uncond", 10, 7)):
        track = calibration.track(expert, branch)
        expected = track.affine[step - track.first_step][kept - track.first_step]
        assert policy.correction(turn(step, step - kept, expert=expert, branch=branch), kept) == expected


def test_scale_of_steps() -> None:
    """1 - |v held - v| / |v - v next|, as far as means over prompts tell it; 1 for what is computed."""
    calibration = made(20)
    policy = ErtaCache(calibration, 0.12)
    reused, between = 0, 0
    for step in range(20):
        kept = max(each for each in policy.schedule if each <= step)
        expected = []
        for track in calibration.tracks["transformer"].values():
            if kept == step or step == 19:
                expected.append(1.0)
                continue
            error = track.output[step][kept] * track.residual_size[step]
            expected.append(min(1, max(0, 1 - error / (track.change[step + 1] * track.output_size[step]))))
        assert policy.step_scale(step) == pytest.approx(sum(expected) / 2)
        reused, between = reused + (kept != step), between + (0 < policy.step_scale(step) < 1)
    assert reused > 3 and between > 0
    with pytest.raises(ValueError, match="step 20 is not one of the 20"):
        policy.step_scale(20)


@pytest.mark.parametrize("switch", [None, 7])
def test_stride_is_the_scale_of_what_is_kept(switch: int | None) -> None:
    """Of any kept step, not only the schedule's; up to the end of the expert's steps, the last of which is whole."""
    calibration = made(switch=switch)
    policy = ErtaCache(calibration, 0.1, adjust_time=True)
    assert policy.adjusts and not ErtaCache(calibration, 0.1).adjusts
    tracks = list(calibration.tracks["transformer"].values())
    between = 0
    for step, kept in ((3, 2), (5, 1), (5, 4)):
        errors = [each.output[step][kept] * each.residual_size[step] for each in tracks]
        moved = [each.change[step + 1] * each.output_size[step] for each in tracks]
        shares = [min(1.0, max(0.0, 1 - error / move)) for error, move in zip(errors, moved, strict=True)]
        share, until = policy.stride(turn(step, step - kept), kept)
        assert share == pytest.approx(sum(shares) / 2) and until == (switch or 12)
        between += 0 < share < 1
    assert between
    last = (switch or 12) - 1
    assert policy.stride(turn(last, 2), last - 2) == (1.0, last + 1)
    if switch is not None:
        assert policy.stride(turn(8, 1, expert="transformer_2"), 7)[1] == 12


@pytest.mark.parametrize("two_experts", [False, True])
def test_adjusted_runs(two_experts: bool) -> None:
    """A calibrated run ends at no noise, with other clips than without; each expert has its own steps."""
    family, pipe = "wan2.2" if two_experts else "wan", tiny.tiny_wan(two_experts=two_experts)
    given = tiny.wan_inputs(pipe, num_inference_steps=8)
    call = {name: value for name, value in given.items() if name not in ("prompt", "generator", "output_type")}
    calibration = calibrate_cache(pipe, ["a red circle"], **call)
    found = {}
    for adjust in (False, True):
        options = {"name": "ertacache", "file": calibration, "computed_steps": 5, "adjust_time": adjust, "min_steps": 1}
        with vidaccel.enable(pipe, None, cache=options) as session:
            found[adjust] = run(family, pipe, num_inference_steps=8)
            decisions = session.summary().to_dict()["cache"]["decisions"]
            experts = [each["expert"] for each in decisions if each["branch"] == "cond"]
            sigmas = pipe.scheduler.sigmas.tolist()
        assert {each["what"] for each in decisions} > {"computed"} and sigmas[-1] == 0
        assert experts == [name for name in calibration.tracks for _ in calibration.covered(name)]
    assert np.abs(found[True] - found[False]).max() > 1e-3
    assert sigmas != pipe.scheduler.sigmas.tolist()


@pytest.mark.parametrize(
    ("options", "told"),
    [({"file": None}, "needs a calibration"), ({}, "either a threshold"), ({"threshold": -1.0}, "threshold"),
     ({"threshold": 0.1, "computed_steps": 3}, "either a threshold"), ({"computed_steps": 13}, "computed_steps"),
     ({"threshold": 0.1, "adjust_time": "yes"}, "adjust_time 'yes' is neither True nor False")],
)  # fmt: skip
def test_bad_options(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        ErtaCache(**({"file": made()} | options))


def test_other_runs() -> None:
    with pytest.raises(ValueError, match="of 12 steps, and the run has 20"):
        ErtaCache(made(), 0.1).decide(turn(0, 0, 20), None, {})  # type: ignore[arg-type]

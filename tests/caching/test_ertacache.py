"""ERTACache against its sweep, written out."""

from __future__ import annotations

from typing import Any

import pytest

from tests.caching.made import computed_by, made, turn
from vidaccel.caching import cache
from vidaccel.caching.calibration import CacheCalibration
from vidaccel.caching.ertacache import ErtaCache


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


@pytest.mark.parametrize(
    ("options", "told"),
    [({"file": None}, "needs a calibration"), ({}, "either a threshold"), ({"threshold": -1.0}, "threshold"),
     ({"threshold": 0.1, "computed_steps": 3}, "either a threshold"), ({"computed_steps": 13}, "computed_steps")],
)  # fmt: skip
def test_bad_options(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        ErtaCache(**({"file": made()} | options))


def test_other_runs() -> None:
    with pytest.raises(ValueError, match="of 12 steps, and the run has 20"):
        ErtaCache(made(), 0.1).decide(turn(0, 0, 20), None, {})  # type: ignore[arg-type]

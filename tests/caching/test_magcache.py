"""MagCache against the authors' loop, written out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from tests.caching.made import computed_by, made, turn
from vidaccel.caching.calibration import CacheCalibration
from vidaccel.caching.magcache import MagCache


def loop(
    gammas: Sequence[float], threshold: float, max_skips: int, retention: float, forced: Sequence[int] = (0,)
) -> list[int]:  # fmt: skip
    """The computed steps of one expert and branch, as the paper has them."""
    product, error, skipped, computed = 1.0, 0.0, 0, []
    for step, gamma in enumerate(gammas):
        reuse = False
        if step >= int(len(gammas) * retention) and step not in forced:
            product, skipped = product * gamma, skipped + 1
            error += abs(1 - product)
            reuse = error < threshold and skipped <= max_skips
        if not reuse:
            product, error, skipped = 1.0, 0.0, 0
            computed.append(step)
    return computed


def ratios(calibration: CacheCalibration, expert: str, branch: str) -> tuple[float, ...]:
    return calibration.track(expert, branch).ratio


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("threshold", "max_skips", "retention"), [(0.12, 4, 0.2), (0.03, 2, 0.0), (9.0, 3, 0.45)])
def test_steps_are_the_papers(seed: int, threshold: float, max_skips: int, retention: float) -> None:
    calibration = made(30, seed=seed)
    policy = MagCache(calibration, threshold, max_skips, retention)
    for branch in ("cond", "uncond"):
        for forced in ((0, 29), (0, 11, 12, 29)):
            expected = loop(ratios(calibration, "transformer", branch), threshold, max_skips, retention, forced)
            assert computed_by(policy, 30, forced=forced, branch=branch) == expected
            assert 3 < len(expected) < 30


def test_branches_have_tables_of_their_own() -> None:
    policy = MagCache(made(30), 0.06, 4)
    assert not policy.leads
    assert computed_by(policy, 30, branch="cond") != computed_by(policy, 30, branch="uncond")
    with pytest.raises(ValueError, match="no guidance branch 'pass2'"):
        policy.decide(turn(9, 1, 30, branch="pass2"), None, {})  # type: ignore[arg-type]


def test_each_expert_begins_anew() -> None:
    calibration = made(40, switch=24)
    policy = MagCache(calibration, 9.0, 9, 0.25)
    computed = computed_by(policy, 40, switch=24)
    first = loop(ratios(calibration, "transformer", "cond"), 9.0, 9, 0.25)
    second = loop(ratios(calibration, "transformer_2", "cond"), 9.0, 9, 0.25)
    assert computed == first + [24 + step for step in second]
    assert computed[:6] == [0, 1, 2, 3, 4, 5] and [each for each in computed if each > 23][:4] == [24, 25, 26, 27]


@pytest.mark.parametrize("steps", [1, 2, 15, 30, 47, 60])
def test_other_numbers_of_steps_take_the_nearest_entries(steps: int) -> None:
    """Each step's place in the run, from 0 to 1, and the entry whose place is nearest; index 0 for step 0 alone."""
    calibration = made(30)
    table = ratios(calibration, "transformer", "cond")
    gammas = [table[0]]
    for step in range(1, steps):
        place = step / (steps - 1)
        # The later of two as near.
        gammas.append(table[min(range(29, 0, -1), key=lambda entry: round(abs(entry / 29 - place), 9))])
    expected = loop(gammas, 0.12, 4, 0.2)
    assert computed_by(MagCache(calibration), steps) == expected
    assert MagCache.any_steps


def test_what_was_dropped_is_computed() -> None:
    policy = MagCache(made(30), 9.0, 9)
    assert policy.decide(turn(20, 2, 30), None, {}).reuse  # type: ignore[arg-type]
    assert not policy.decide(turn(20, 0, 30), None, {}).reuse  # type: ignore[arg-type]


def test_threshold_shrinks_with_the_allowance() -> None:
    policy = MagCache(made(30))
    full = policy.decide(turn(20, 1, 30), None, {})  # type: ignore[arg-type]
    assert full.reuse and full.indicator is not None
    assert full.indicator == pytest.approx(abs(1 - ratios(made(30), "transformer", "cond")[20]))
    share = full.indicator / 0.12
    assert not policy.decide(turn(20, 1, 30, allowance=share), None, {}).reuse  # type: ignore[arg-type]
    assert policy.decide(turn(20, 1, 30, allowance=share * 1.01), None, {}).reuse  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "told"),
    [({"file": None}, "needs a calibration"), ({"threshold": 0}, "threshold"), ({"threshold": True}, "threshold"),
     ({"max_skips": 0}, "max_skips"), ({"max_skips": 2.0}, "max_skips"), ({"retention": 1.0}, "retention"),
     ({"retention": -0.1}, "retention"), ({"retention": "x"}, "retention"), ({"file": 3}, "path of a JSON file")],
)  # fmt: skip
def test_bad_options(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        MagCache(**({"file": made()} | options))


def test_steps_must_be_known() -> None:
    with pytest.raises(ValueError, match="give num_inference_steps"):
        MagCache(made()).decide(turn(3, 1, None), None, {})  # type: ignore[arg-type]

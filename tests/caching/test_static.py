"""Schedules against every other one there is, and the policy that follows them."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.caching.made import computed_by, made, turn
from vidaccel.caching import cache
from vidaccel.caching.base import Place
from vidaccel.caching.calibration import CacheCalibration
from vidaccel.caching.optimal import best_blocks, best_steps, step_errors
from vidaccel.caching.static import Static


def total(errors: Sequence[Sequence[float]], chosen: Sequence[int]) -> float:
    """What a schedule costs: each other step holds the last computed one."""
    found = 0.0
    for step in range(len(errors)):
        kept = max(each for each in chosen if each <= step)
        found += errors[step][kept] if kept != step else 0.0
    return found


def brute_force(
    errors: Sequence[Sequence[float]], count: int, forced: Collection[int], longest: int | None
) -> tuple[int, ...] | None:  # fmt: skip
    """The best of all schedules, the earliest of equal ones left open; None where there is none."""
    steps = len(errors)
    able = [each for each in itertools.combinations(range(steps), count) if {0, *forced} <= set(each)]
    if longest is not None:
        able = [each for each in able if all(b - a <= longest for a, b in itertools.pairwise((*each, steps)))]
    return min(able, key=lambda chosen: total(errors, chosen), default=None)


@pytest.mark.parametrize("seed", range(6))
def test_schedules_are_the_best_of_all(seed: int) -> None:
    rng = np.random.default_rng(seed)
    steps = int(rng.integers(2, 11))
    errors = [rng.uniform(0, 1, step).tolist() for step in range(steps)]
    if steps > 4:
        # An expert takes over.
        errors = [[math.inf if kept < 3 <= step else each for kept, each in enumerate(row)]
                  for step, row in enumerate(errors)]  # fmt: skip
    for count in range(1, steps + 1):
        for forced, longest in (((0,), None), ((steps - 1,), None), ((1, steps // 2), 3), ((), 2)):
            expected = brute_force(errors, count, forced, longest)
            if expected is None or total(errors, expected) == math.inf:
                with pytest.raises(ValueError, match="computed steps of"):
                    best_steps(errors, count, forced, longest)
                continue
            found = best_steps(errors, count, forced, longest)
            assert len(found) == count and {0, *forced} <= set(found) and list(found) == sorted(set(found))
            assert total(errors, found) == pytest.approx(total(errors, expected), rel=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_blocks_are_the_best_of_all(seed: int) -> None:
    rng = np.random.default_rng(seed)
    changes = rng.uniform(0, 1, int(rng.integers(1, 9))).tolist()
    for count, runs in itertools.product(range(1, len(changes) + 1), (1, 2, 3)):
        able = [each for each in itertools.combinations(range(len(changes)), count)
                if sum(block - 1 not in each for block in each) <= runs]  # fmt: skip
        found = best_blocks(changes, count, runs)
        blocks = [block for start, end in found for block in range(start, end)]
        assert len(found) <= runs and len(blocks) == count and blocks == sorted(set(blocks))
        assert all(left[1] < right[0] for left, right in itertools.pairwise(found))
        least = min(sum(changes[block] for block in each) for each in able)
        assert sum(changes[block] for block in blocks) == pytest.approx(least)


@pytest.mark.parametrize("at_output", [False, True])
def test_errors_of_steps(at_output: bool) -> None:
    """Summed over branches, times the step's share of the time, and never across experts."""
    calibration = made(switch=7)
    times = [*calibration.timesteps, 0.0]
    found = step_errors(calibration, at_output)
    for step in range(12):
        expert = "transformer" if step < 7 else "transformer_2"
        for kept in range(step):
            if (step < 7) != (kept < 7):
                assert found[step][kept] == math.inf
                continue
            pairs = 0.0
            for track in calibration.tracks[expert].values():
                table = track.output if at_output else track.stack
                pairs += table[step - track.first_step][kept - track.first_step]
            assert found[step][kept] == pytest.approx(pairs * (times[step] - times[step + 1]) / 1000)


@pytest.mark.parametrize("keep", ["stack", "output"])
def test_best_schedule_of_a_calibration(keep: str) -> None:
    calibration = made(switch=7)
    policy = Static(file=calibration, computed_steps=7, warmup=2, forced=(4,), keep=keep)
    errors = step_errors(calibration, keep == "output")
    # Warm-up of both experts, the switch to sparse attention, and the last step.
    expected = brute_force(errors, 7, (0, 1, 4, 7, 8, 11), None)
    assert expected is not None and total(errors, policy.schedule) == pytest.approx(total(errors, expected))
    assert policy.schedule == expected and policy.place is Place(keep)
    assert computed_by(policy, 12, switch=7, forced=(0,)) == list(expected)
    # Steps that the plan computes, too, move no others.
    assert computed_by(policy, 12, switch=7, forced=(0, 2)) == sorted({*expected, 2})


def test_shares_are_rounded_down() -> None:
    calibration = made(10)
    assert len(Static(file=calibration, computed_steps=0.55).schedule) == 5
    assert Static(file=calibration, computed_steps=1.0).schedule == tuple(range(10))
    assert Static(file=calibration, computed_steps=0.5, warmup=0.3).schedule[:3] == (0, 1, 2)
    longest = Static(file=calibration, computed_steps=5, longest=3).schedule
    assert max(b - a for a, b in itertools.pairwise(longest)) <= 3


def test_steps_by_hand() -> None:
    policy = Static(compute=[0, 1, 4, 9], forced=[6])
    assert policy.compute == (0, 1, 4, 9) and policy.schedule == (0, 1, 4, 6, 9) and policy.calibration is None
    assert computed_by(policy, 12) == [0, 1, 4, 6, 9]
    with pytest.raises(ValueError, match="compute names step 9, and the run has 8 steps"):
        policy.decide(turn(0, 0, 8), None, {})  # type: ignore[arg-type]
    assert not policy.decide(turn(5, 0), None, {}).reuse, "nothing is there to reuse"  # type: ignore[arg-type]
    assert policy.decide(turn(5, 1, None), None, {}).reuse  # type: ignore[arg-type]


BAD: list[tuple[dict[str, Any], str]] = [
    ({}, "either 'compute'"), ({"compute": [0], "file": made()}, "either 'compute'"), ({"file": made()}, "how much"),
    ({"compute": []}, "begin with step 0"), ({"compute": [1, 2]}, "begin with step 0"), ({"compute": 3}, "not a list"),
    ({"compute": [0, 2, 2]}, "does not rise"), ({"compute": [0, 3, 2]}, "does not rise"),
    ({"compute": [0, 1.5]}, "whole number"), ({"compute": [0, True]}, "whole number"),
    ({"compute": [0], "computed_steps": 3}, "computed_steps is for a calibration"),
    ({"compute": [0], "longest": 3}, "longest is for a calibration"),
    ({"compute": list(range(300))}, "at most 250"), ({"file": made(), "computed_steps": 13}, "count from 1 to 12"),
    ({"file": made(), "computed_steps": 0.0}, "computed_steps 0.0"), ({"file": made(), "computed_steps": 1}, "2 to 12"),
    ({"file": made(), "computed_steps": 4, "longest": 2}, "too few"), ({"compute": [0], "keep": "blocks"}, "keep"),
    ({"file": made(), "computed_steps": 4, "longest": 0}, "longest"), ({"compute": [0], "forced": [-1]}, "forced"),
    ({"file": made(), "computed_steps": 4, "forced": [12]}, "forced names step 12"),
    ({"file": made(), "computed_steps": 4, "warmup": 0}, "warmup"),
    ({"file": "none.json", "computed_steps": 4}, "none"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "told"), BAD, ids=[told for _, told in BAD])
def test_bad_options(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Static(**options)


def test_runs_that_a_calibration_is_not_of() -> None:
    policy = Static(file=made(switch=7), computed_steps=6)
    with pytest.raises(ValueError, match="of 12 steps, and the run has 20"):
        policy.decide(turn(0, 0, 20), None, {})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="transformer run the steps 0 to 6, and here it runs step 7"):
        policy.decide(turn(7, 1), None, {})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="knows transformer, transformer_2, not denoiser"):
        policy.decide(turn(7, 1, expert="denoiser"), None, {})  # type: ignore[arg-type]


def test_record_names_the_file_and_what_was_in_it(tmp_path: Path) -> None:
    path = tmp_path / "cache.json"
    made().save(path)
    policy = Static(file=str(path), computed_steps=6)
    # Read once: what happens to the file later is none of the policy.
    path.write_text("")
    record = policy.to_dict()
    assert record["name"] == "static" and record["calibration"] == {"file": str(path), "sha256": made().digest}
    assert record["options"] == {"file": str(path), "compute": None, "computed_steps": 6, "warmup": 1, "forced": [],
                                 "longest": None, "keep": "stack"}  # fmt: skip
    assert Static(compute=(0, 3)).to_dict() == {"name": "static", "options": record["options"] | {
        "file": None, "compute": [0, 3], "computed_steps": None}}  # fmt: skip
    made().save(path)
    again = cache({"name": record["name"], **record["options"]})
    assert again is not None and again.policy == policy
    assert Static(file=CacheCalibration.load(path), computed_steps=6).to_dict() == record
    assert dataclasses.replace(policy, computed_steps=4).schedule == Static(file=made(), computed_steps=4).schedule

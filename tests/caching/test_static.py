"""Schedules against every other one there is, and the policy that follows them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.caching.made import computed_by, made, turn
from vidaccel.caching import Cache, cache
from vidaccel.caching.calibration import CacheCalibration
from vidaccel.caching.guided import Guided
from vidaccel.caching.optimal import GroupCost, best_blocks, best_steps, group_costs
from vidaccel.caching.predictors import Fitted, Hold, Predictor, Taylor
from vidaccel.caching.static import Static


def total(cost: GroupCost, steps: int, chosen: Sequence[int]) -> float:
    """What a schedule costs: the sum over its groups, each with the computed step before it."""
    ends = (*chosen[1:], steps)
    return sum(cost(k, i)[end - i - 1] for k, i, end in zip((-1, *chosen), chosen, ends, strict=False))


def brute_force(
    cost: GroupCost, steps: int, count: int, forced: Collection[int], longest: int | None = None
) -> tuple[int, ...] | None:  # fmt: skip
    """The best of all schedules, the earliest of equal ones left open; None where there is none."""
    able = [each for each in itertools.combinations(range(steps), count) if {0, *forced} <= set(each)]
    if longest is not None:
        able = [each for each in able if all(b - a <= longest for a, b in itertools.pairwise((*each, steps)))]
    return min(able, key=lambda chosen: total(cost, steps, chosen), default=None)


@pytest.mark.parametrize("seed", range(6))
def test_schedules_are_the_best_of_all(seed: int) -> None:
    rng = np.random.default_rng(seed)
    steps = int(rng.integers(2, 11))
    errors = rng.uniform(0, 1, (steps + 1, steps, steps + 1)).cumsum(2)

    def cost(k: int, i: int) -> Sequence[float]:
        # An expert takes over at step 3.
        return [math.inf if steps > 4 and i < 3 < end else float(errors[k, i, end]) for end in range(i + 1, steps + 1)]

    for count in range(1, steps + 1):
        for forced, longest in (((0,), None), ((steps - 1,), None), ((1, steps // 2), 3), ((), 2)):
            expected = brute_force(cost, steps, count, forced, longest)
            if expected is None or total(cost, steps, expected) == math.inf:
                with pytest.raises(ValueError, match="computed steps of"):
                    best_steps(cost, steps, count, forced, longest)
                continue
            found = best_steps(cost, steps, count, forced, longest)
            assert len(found) == count and {0, *forced} <= set(found) and list(found) == sorted(set(found))
            assert total(cost, steps, found) == pytest.approx(total(cost, steps, expected), rel=1e-12)


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


@pytest.mark.parametrize("predictor", [Hold(), Taylor(), Fitted()], ids=["hold", "taylor", "fitted"])
def test_groups_cost_what_their_errors_do(predictor: Predictor) -> None:
    """Errors of outputs whose products are known, as vectors; never across experts."""
    outputs = np.cumsum(np.random.default_rng(0).standard_normal((12, 8)), 0)
    inner = (outputs @ outputs.T).tolist()
    effects = tuple(np.linspace(0.3, 0.1, 12).tolist())
    guided = Guided(tuple(tuple(row[: step + 1]) for step, row in enumerate(inner)), effects)
    calibration = made(switch=7, guided=guided)
    bound = predictor.bound(calibration)
    cost = group_costs(calibration, bound)
    for k, i in ((-1, 0), (2, 3), (0, 4), (5, 7), (8, 9)):
        past = [k, i] if k >= 0 and (k < 7) == (i < 7) and bound.tensors > 1 else [i]
        moved, found = 0.0, cost(k, i)
        assert len(found) == 12 - i and found[0] == 0
        for step in range(i + 1, 12):
            if (step < 7) != (i < 7):
                assert found[step - i] == math.inf
                continue
            predicted = np.array(bound.weights(past, step)) @ outputs[past]
            moved += effects[step] * np.linalg.norm(predicted - outputs[step])
            assert found[step - i] == pytest.approx(moved**2, rel=1e-6)


@pytest.mark.parametrize("predictor", [Hold(), Taylor(2), Fitted()], ids=["hold", "taylor", "fitted"])
def test_best_schedule_of_a_calibration(predictor: Predictor) -> None:
    calibration = made(switch=7)
    known = Cache(Static(file=calibration, computed_steps=7, warmup=2, forced=(4,)), predictor)
    policy = known.policy
    assert isinstance(policy, Static)
    cost = group_costs(calibration, known.predictor)
    # Warm-up of both experts, and the switch to sparse attention.
    expected = brute_force(cost, 12, 7, (0, 1, 4, 7, 8))
    assert expected is not None and total(cost, 12, policy.schedule) == pytest.approx(total(cost, 12, expected))
    assert policy.schedule == expected and known.computed[1] == 0
    assert computed_by(policy, 12, switch=7, forced=(0,)) == list(expected)
    # Steps that the plan computes, too, move no others.
    assert computed_by(policy, 12, switch=7, forced=(0, 2)) == sorted({*expected, 2})


def test_the_predictor_decides_which_steps() -> None:
    """A line is continued by two of its points, and held from near by."""
    at = np.arange(12.0)
    guided = Guided(tuple(tuple((1 + at[i] * at[j]).tolist() for j in range(i + 1)) for i in range(12)), (0.1,) * 12)
    file = made(guided=guided)
    for name, chosen in (("hold", (0, 4, 8)), ("taylor", (0, 1, 2))):
        found = cache({"name": "static", "file": file, "computed_steps": 3, "predictor": {"name": name}})
        assert found is not None and isinstance(found.policy, Static)
        assert found.policy.schedule == chosen if name == "hold" else len(found.policy.schedule) == 3
    assert cache({"name": "static", "file": file, "computed_steps": 3}).predictor == Fitted()  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="no products of guided outputs"):
        cache({"name": "static", "file": made(guided=None), "computed_steps": 3})


def schedule(**options: Any) -> tuple[int, ...]:
    found = Cache(Static(**options)).policy
    assert isinstance(found, Static)
    return found.schedule


def test_shares_are_rounded_down() -> None:
    calibration = made(10)
    assert len(schedule(file=calibration, computed_steps=0.55)) == 5
    assert schedule(file=calibration, computed_steps=1.0) == tuple(range(10))
    assert schedule(file=calibration, computed_steps=0.5, warmup=0.3)[:3] == (0, 1, 2)
    longest = schedule(file=calibration, computed_steps=5, longest=3)
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
    ({"file": made(), "computed_steps": 0.0}, "computed_steps 0.0"),
    ({"file": made(), "computed_steps": 1, "forced": (3,)}, "2 to 12"),
    ({"file": made(), "computed_steps": 4, "longest": 2}, "too few"),
    ({"file": made(), "computed_steps": 4, "longest": 0}, "longest"), ({"compute": [0], "forced": [-1]}, "forced"),
    ({"file": made(), "computed_steps": 4, "forced": [12]}, "forced names step 12"),
    ({"file": made(), "computed_steps": 4, "warmup": 0}, "warmup"),
    ({"file": "none.json", "computed_steps": 4}, "none"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "told"), BAD, ids=[told for _, told in BAD])
def test_bad_options(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Cache(Static(**options))


def test_runs_that_a_calibration_is_not_of() -> None:
    policy = Cache(Static(file=made(switch=7), computed_steps=6)).policy
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
                                 "longest": None}  # fmt: skip
    assert Static(compute=(0, 3)).to_dict() == {"name": "static", "options": record["options"] | {
        "file": None, "compute": [0, 3], "computed_steps": None}}  # fmt: skip
    made().save(path)
    again = cache({"name": record["name"], **record["options"]})
    assert again is not None and again.policy == policy
    assert Static(file=CacheCalibration.load(path), computed_steps=6).to_dict() == record
    assert schedule(file=CacheCalibration.load(path), computed_steps=4) == schedule(file=made(), computed_steps=4)

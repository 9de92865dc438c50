"""EasyCache: against its formula step by step, and what it waits for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.caching.turns import PLANS, STEPS, Fake, drift, drive, plan_of, turn_of
from vidaccel.caching.base import Place
from vidaccel.caching.easycache import EasyCache
from vidaccel.schedule import Schedule

SHAPE = (2, 4, 3, 2, 2)


def by_hand(
    threshold: float, inputs: list[Tensor], outputs: list[Tensor], forced: set[int], allowance: list[float],
    cleared: set[int],
) -> tuple[list[int], list[float | None]]:  # fmt: skip
    """Computed steps, and the sums that decided."""
    computed: list[int] = []
    found: list[float | None] = []
    rate, last, total = None, None, 0.0
    for step, (x, v) in enumerate(zip(inputs, outputs, strict=True)):
        if step in cleared:
            rate = last = None
        reuse = False
        if step in forced or rate is None or last is None:
            total = 0.0
            found.append(None)
        else:
            total += rate * float((x - inputs[step - 1]).abs().mean() / outputs[last].abs().mean())
            found.append(total)
            reuse = total < threshold * allowance[step]
            total = total if reuse else 0.0
        if not reuse:
            if last is not None:
                rate = float((v - outputs[last]).abs().mean() / (x - inputs[last]).abs().mean())
            last = step
            computed.append(step)
    return computed, found


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_steps_are_as_the_formula_says(plan: dict[str, Any], dtype: torch.dtype) -> None:
    inputs = [each.to(dtype) for each in drift(*SHAPE)]
    outputs = [each.to(dtype) for each in drift(*SHAPE, seed=1)]
    # What the runtime keeps has rounding in it; the policy can know no other output.
    residuals = [v - x for v, x in zip(outputs, inputs, strict=True)]
    outputs = [x.double() + each.double() for x, each in zip(inputs, residuals, strict=True)]
    ran = drive(EasyCache(threshold=0.4), [{"latents": each} for each in inputs], residuals, **plan)
    forced, allowance = plan_of(plan)
    cleared = set(plan.get("cleared", ()))
    computed, sums = by_hand(0.4, [each.double() for each in inputs], outputs, forced, allowance, cleared)
    assert ran.computed == computed and 3 < len(computed) < STEPS - 1
    found = [each.indicator for each in ran.verdicts]
    assert [each is None for each in found] == [each is None for each in sums]
    assert [each for each in found if each] == pytest.approx([each for each in sums if each], rel=1e-4)
    assert ran.waits == [0 if each is None else 1 for each in found]


def test_two_computed_steps_come_first_and_again_after_the_state_was_emptied() -> None:
    inputs, residuals = drift(*SHAPE), drift(*SHAPE, seed=1)
    ran = drive(EasyCache(threshold=1e6), [{"latents": each} for each in inputs], residuals, cleared=(7,))
    assert ran.computed == [0, 1, 7, 8]


def test_a_step_with_nothing_to_reuse_is_computed() -> None:
    policy, state = EasyCache(threshold=1e6), dict[str, Any]()
    inputs, residuals = drift(*SHAPE), drift(*SHAPE, seed=1)
    for step in range(3):
        signals = Fake({"latents": inputs[step]})
        verdict = policy.decide(turn_of(step, since=min(step, 1)), signals, state)
        policy.observe(turn_of(step, since=min(step, 1)), signals, residuals[step], state)
    assert verdict.reuse
    assert not policy.decide(turn_of(3, since=0), Fake({"latents": inputs[3]}), state).reuse


def test_latents_that_change_where_they_lie_are_remembered_as_they_were() -> None:
    inputs, residuals = drift(*SHAPE), drift(*SHAPE, seed=1)
    wanted = drive(EasyCache(threshold=0.4), [{"latents": each} for each in inputs], residuals)
    policy, state, place, last = EasyCache(threshold=0.4), dict[str, Any](), torch.empty(SHAPE), 0
    for step, verdict in enumerate(wanted.verdicts):
        turn, signals = turn_of(step, step - last, step == 0), Fake({"latents": place.copy_(inputs[step])})
        assert policy.decide(turn, signals, state) == verdict
        if not verdict.reuse:
            policy.observe(turn, signals, residuals[step], state)
            last = step


def test_inputs_that_stand_still_are_reused_and_broken_ones_are_not() -> None:
    inputs, residuals = drift(*SHAPE), drift(*SHAPE, seed=1)
    still = [inputs[0], inputs[1], *[inputs[1]] * 4]
    assert drive(EasyCache(), [{"latents": each} for each in still], residuals).computed == [0, 1]
    inputs[4] = torch.full_like(inputs[4], torch.nan)
    ran = drive(EasyCache(threshold=1e6), [{"latents": each} for each in inputs], residuals)
    assert 4 in ran.computed


def test_what_it_keeps_and_when() -> None:
    policy = EasyCache()
    assert policy.place is Place.OUTPUT and policy.leads and policy.segments(30) == ((0, 30),)
    assert [Schedule(policy.first_steps).resolve(steps, 1).first_step for steps in (50, 20, 12)] == [5, 2, 1]
    assert policy.to_dict() == {"name": "easycache", "options": {"threshold": 0.05}}
    shape = (1, 16, 5, 8, 8)
    state = drive(policy, [{"latents": each} for each in drift(*shape)], drift(*shape, seed=1)).state
    kept = {each.data_ptr(): each.nbytes for each in state.values() if isinstance(each, Tensor) and each.numel() > 1}
    assert sum(kept.values()) <= 3 * 4 * torch.Size(shape).numel()


@pytest.mark.parametrize("threshold", [0, -1, float("nan"), "0.1", True, None])
def test_bad_thresholds_are_refused(threshold: Any) -> None:
    with pytest.raises(ValueError, match="threshold .* is not a number above 0"):
        EasyCache(threshold=threshold)

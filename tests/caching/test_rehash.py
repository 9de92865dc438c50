"""Adjacent-step reuse: against its rule step by step, and what it waits for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.caching.turns import PLANS, STEPS, Fake, drift, drive, plan_of, turn_of
from vidaccel.caching.rehash import Rehash

SIGNALS: list[dict[str, Tensor]] = [{}] * STEPS


def by_hand(threshold: float, residuals: list[Tensor], forced: set[int], allowance: list[float],
            cleared: set[int]) -> list[int]:  # fmt: skip
    """Computed steps."""
    computed: list[int] = []
    start = 0
    for step in range(STEPS):
        start = step if step in cleared else start
        reuse = False
        if step not in forced and step - 2 >= start and {step - 1, step - 2} <= set(computed):
            new, old = residuals[step - 1].double(), residuals[step - 2].double()
            change = float((new - old).abs().sum() / old.abs().sum())
            reuse = change < threshold * allowance[step]
        if not reuse:
            computed.append(step)
    return computed


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("seed", range(3))
def test_steps_are_as_the_rule_says(plan: dict[str, Any], seed: int) -> None:
    residuals = drift(2, 5, 6, seed=seed)
    ran = drive(Rehash(threshold=0.25), SIGNALS, residuals, **plan)
    forced, allowance = plan_of(plan)
    assert ran.computed == by_hand(0.25, residuals, forced, allowance, set(plan.get("cleared", ())))
    # Only where two computed steps came before does anything wait.
    may = [step for step in range(STEPS) if ran.verdicts[step].indicator is not None]
    assert ran.waits == [int(step in may) for step in range(STEPS)]
    assert may and not forced & set(may)


def test_at_most_every_third_step_is_reused() -> None:
    ran = drive(Rehash(threshold=1e6), SIGNALS, drift(1, 3, 4))
    assert ran.computed == [step for step in range(STEPS) if step % 3 != 2]
    assert len(drive(Rehash(threshold=1e-9), SIGNALS, drift(1, 3, 4)).computed) == STEPS


def test_the_change_is_of_the_residuals() -> None:
    old, new = drift(1, 3, 4)[:2]
    ran = drive(Rehash(), SIGNALS[:3], [old, new, new])
    assert ran.verdicts[2].indicator == pytest.approx(float((new - old).abs().mean() / old.abs().mean()))


def test_what_is_compared_is_not_copied_and_nothing_is_reused_that_is_not_there() -> None:
    policy, state, signals, residuals = Rehash(threshold=1e6), dict[str, Any](), Fake({}), drift(1, 3, 4)
    for step in range(2):
        policy.observe(turn_of(step, since=step), signals, residuals[step], state)
    kept = [each for each in state.values() if isinstance(each, Tensor) and each.numel() > 1]
    assert [each.data_ptr() for each in kept] == [residuals[1].data_ptr()]
    assert policy.decide(turn_of(2, since=1), signals, dict(state)).reuse
    assert not policy.decide(turn_of(2, since=0), signals, state).reuse


def test_broken_residuals_are_not_reused() -> None:
    residuals = drift(1, 3, 4)
    residuals[1] = torch.full_like(residuals[1], torch.nan)
    assert 2 in drive(Rehash(threshold=1e6), SIGNALS, residuals).computed


@pytest.mark.parametrize("threshold", [0, -1, float("inf"), "0.1", True, None])
def test_bad_thresholds_are_refused(threshold: Any) -> None:
    with pytest.raises(ValueError, match="threshold .* is not a number above 0"):
        Rehash(threshold=threshold)

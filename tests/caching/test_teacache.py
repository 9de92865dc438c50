"""TeaCache: against its formula step by step, its published numbers, its fit, and what it waits for."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.caching.turns import PLANS, STEPS, TIMESTEPS, Fake, drift, drive, plan_of, turn_of
from tests.tiny import tiny_wan_transformer
from vidaccel.caching.published import TEACACHE
from vidaccel.caching.teacache import TeaCache, distances, fit
from vidaccel.pipelines.wan import Wan

CURVED = (30.0, -4.0, 2.0, 0.5, -0.02)
NOTHING: list[dict[str, Tensor]] = [{}] * STEPS


def embed(timesteps: Sequence[float]) -> Tensor:
    """Sines of timesteps: ``[timesteps, 8]``."""
    angles = torch.tensor(timesteps)[:, None] / 1000 * torch.arange(1, 9)
    return torch.cat((angles.sin(), angles.cos()), 1)


def by_hand(
    policy: TeaCache, series: Sequence[Tensor], forced: set[int], allowance: list[float], cleared: set[int],
    keeps: bool,
) -> tuple[list[int], list[float | None]]:  # fmt: skip
    """Computed steps, and the sums that decided; the signal before a cleared step counts only where it `keeps`."""
    computed: list[int] = []
    sums: list[float | None] = []
    total = 0.0
    for step, now in enumerate(series):
        if step in cleared:
            total = 0.0
        if step == 0 or (step in cleared and not keeps):
            computed.append(step)
            sums.append(None)
            continue
        before = series[step - 1].double()
        total += polynomial(policy, float((now.double() - before).abs().sum() / before.abs().sum()))
        sums.append(total)
        if step in forced or total >= (policy.threshold or 0) * allowance[step]:
            computed.append(step)
            total = 0.0
    return computed, sums


def polynomial(policy: TeaCache, d: float) -> float:
    """P of a distance, by powers."""
    if policy.range is not None:
        d = policy.range[0] if d < policy.range[0] else policy.range[1] if d > policy.range[1] else d
    rising = list(reversed(policy.coefficients or ()))
    value = sum(coefficient * d**power for power, coefficient in enumerate(rising))
    return value if value > 0 else 0.0


def close(found: list[float | None], wanted: list[float | None]) -> None:
    assert [each is None for each in found] == [each is None for each in wanted]
    assert [each for each in found if each is not None] == pytest.approx([each for each in wanted if each is not None],
                                                                         rel=1e-4)  # fmt: skip


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("options", [{"coefficients": (1, 0)}, {"coefficients": CURVED, "range": (0.08, 0.3)}])
def test_input_is_as_the_formula_says(plan: dict[str, Any], options: dict[str, Any]) -> None:
    policy = TeaCache(threshold=0.5, signal="input", **options)
    series = drift(2, 5, 6)
    ran = drive(policy, [{"modulated": each} for each in series], **plan)
    forced, allowance = plan_of(plan)
    computed, sums = by_hand(policy, series, forced, allowance, set(plan.get("cleared", ())), keeps=False)
    assert ran.computed == computed and 3 < len(computed) < STEPS - 2
    found = [each.indicator for each in ran.verdicts]
    # What was not asked for, as the step is computed in any case, has not been waited for.
    close(found, [None if step in forced else each for step, each in enumerate(sums)])
    assert ran.waits == [0 if step in forced else 1 for step in range(STEPS)]


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("options", [{"coefficients": (1, 0), "threshold": 0.7},
                                     {"coefficients": CURVED, "range": (0.05, 0.2), "threshold": 0.4}])  # fmt: skip
def test_time_is_as_the_formula_says_and_waits_once(plan: dict[str, Any], options: dict[str, Any]) -> None:
    policy = TeaCache(**options)
    series = list(embed(TIMESTEPS))
    ran = drive(policy, NOTHING, embed=embed, **plan)
    forced, allowance = plan_of(plan)
    computed, sums = by_hand(policy, series, forced, allowance, set(plan.get("cleared", ())), keeps=True)
    assert ran.computed == computed and 3 < len(computed) < STEPS - 2
    close([each.indicator for each in ran.verdicts], sums)
    # One copy of all distances, and another where the state was emptied.
    starts = (1, *plan.get("cleared", ()))
    asked = [step for step, each in enumerate(ran.signals) if each.asked]
    assert asked == [0, *starts[1:]]
    assert not any(ran.waits)


def test_time_without_known_timesteps_goes_step_by_step_to_the_same() -> None:
    policy = TeaCache(threshold=0.4, coefficients=CURVED)
    known, unknown = (drive(policy, NOTHING, must=(0, 5), embed=embed, timesteps=given) for given in (TIMESTEPS, None))
    assert known.computed == unknown.computed
    assert unknown.waits == [0 if step in (0, 5) else 1 for step in range(STEPS)]


def test_auto_takes_time_where_the_family_has_it_and_else_asks_once() -> None:
    policy = TeaCache(threshold=0.5, coefficients=(1, 0))
    both = [{"modulated": each} for each in drift(1, 3, 4)]
    with_time, without = drive(policy, both, embed=embed), drive(policy, both)
    assert not any("modulated" in each.asked for each in with_time.signals)
    assert [each.asked for each in without.signals] == [["time_embedding", "modulated"], *[["modulated"]] * (STEPS - 1)]
    for signal, other in (("time", with_time), ("input", without)):
        same = drive(TeaCache(threshold=0.5, coefficients=(1, 0), signal=signal), both, embed=embed)
        assert same.verdicts == other.verdicts
    with pytest.raises(ValueError, match="no signal of the timestep alone"):
        drive(TeaCache(threshold=0.5, coefficients=(1, 0), signal="time"), both)


def test_a_step_with_nothing_to_reuse_is_computed_and_starts_the_sum_again() -> None:
    policy, state, signals = TeaCache(threshold=100, coefficients=(1, 0)), dict[str, Any](), Fake({}, embed)
    assert policy.decide(turn_of(3, since=1), signals, state).reuse
    assert not policy.decide(turn_of(4, since=0), signals, state).reuse
    again = policy.decide(turn_of(5, since=1), signals, state)
    assert again == policy.decide(turn_of(5, since=1), signals, {}) and again.reuse


def test_what_is_negative_counts_as_nothing_and_no_number_is_computed() -> None:
    falling = TeaCache(threshold=0.1, coefficients=(-1, 0))
    assert falling.expected(0.5) == 0.0 and math.isnan(falling.expected(math.nan))
    ranged = TeaCache(threshold=0.1, coefficients=(1, 0), range=(0.1, 0.2))
    assert [ranged.expected(each) for each in (0.0, 0.15, 3.0)] == pytest.approx([0.1, 0.15, 0.2])
    for policy in (falling, ranged):
        series = drift(1, 3, 4)
        series[4] = torch.full_like(series[4], math.nan)
        ran = drive(policy, [{"modulated": each} for each in series])
        assert {4, 5} <= set(ran.computed)


def test_distances_are_rows_against_the_one_before() -> None:
    rows = torch.stack(drift(7))
    wanted = [float((now - before).abs().mean() / before.abs().mean()) for before, now in itertools.pairwise(rows)]
    assert distances(rows).tolist() == pytest.approx(wanted)
    assert distances(rows[:1]).tolist() == []


def test_distances_of_a_real_time_embedding() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = tiny_wan_transformer()
    rows = Wan().time_embedding(model, torch.tensor(TIMESTEPS)).detach()
    policy = TeaCache(threshold=float(distances(rows).sum()) / 3, coefficients=(1, 0))
    ran = drive(policy, NOTHING, embed=lambda given: Wan().time_embedding(model, torch.tensor(given)))
    assert ran.computed == by_hand(policy, list(rows), {0}, [1.0] * STEPS, set(), keeps=True)[0]
    assert 2 < len(ran.computed) < 6


def test_fit_finds_a_polynomial_and_is_the_nearest() -> None:
    at = np.linspace(0.02, 0.4, 40)
    assert fit(at.tolist(), np.polyval(CURVED, at).tolist()) == pytest.approx(CURVED, rel=1e-6)
    noise = np.random.default_rng(0).normal(size=40) * 0.05
    noisy = np.polyval(CURVED, at) + noise
    columns = np.stack([at**power for power in (4, 3, 2, 1, 0)], 1)
    best = np.linalg.lstsq(columns, noisy, rcond=None)[0]
    assert np.allclose(columns @ np.array(fit(at.tolist(), noisy.tolist())), columns @ best)


@pytest.mark.parametrize(
    ("pairs", "why"),
    [
        (([0.1] * 9, [0.1] * 9), "1 different distances: a fit needs 5"),
        (([0.1, 0.2, 0.3, 0.4, math.nan], [1.0] * 5), "not all finite"),
        (([0.1, 0.2], [1.0]), "are not pairs"),
    ],
)
def test_fit_refuses(pairs: tuple[list[float], list[float]], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        fit(*pairs)


@pytest.mark.parametrize("model", TEACACHE)
def test_published_numbers(model: str) -> None:
    policy, known = TeaCache(model=model), TEACACHE[model]
    assert (policy.threshold, policy.coefficients, policy.signal) == (known.slow, known.coefficients, known.signal)
    assert len(known.coefficients) == 5 and 0 < known.slow <= known.fast < 1
    assert TeaCache(model=model, threshold=known.fast).threshold == known.fast
    # Fitted to changes from one step to the next: somewhere in 0 to 1 they are small and positive.
    assert any(0 < policy.expected(each) < 0.3 for each in np.linspace(0, 1, 101))
    again = TeaCache(**json.loads(json.dumps(policy.to_dict()))["options"])
    assert again == policy and hash(again) == hash(policy)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({}, "coefficients.*or a model.*wan2.1-t2v-14b"),
        ({"threshold": 0.1}, "coefficients.*or a model.*hunyuanvideo"),
        ({"model": "wan2.2"}, "'wan2.2'; choose wan2.1-t2v-1.3b"),
        ({"coefficients": (1, 0)}, "needs a threshold"),
        ({"coefficients": (1, 0), "threshold": 0}, "threshold 0 is not a number above 0"),
        ({"coefficients": (), "threshold": 0.1}, "coefficients .* not a list of finite"),
        ({"coefficients": (1, math.inf), "threshold": 0.1}, "coefficients .* not a list of finite"),
        ({"coefficients": "1, 0", "threshold": 0.1}, "coefficients .* not a list of finite"),
        ({"coefficients": (1, 0), "model": "hunyuanvideo"}, "has its own coefficients"),
        ({"model": "hunyuanvideo", "signal": "time"}, "of signal 'input'"),
        ({"model": "hunyuanvideo", "signal": "both"}, "signal 'both' is not one of auto, time, input"),
        ({"model": "hunyuanvideo", "range": (0.2, 0.1)}, "range .* is not a smallest"),
        ({"model": "hunyuanvideo", "range": (0.2,)}, "range .* is not a smallest"),
        ({"model": "hunyuanvideo", "threshold": "slow"}, "threshold 'slow'"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        TeaCache(**options)

"""First block cache: against its formula, and against diffusers' own on real transformers, decision by decision."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.hooks import FirstBlockCacheConfig, apply_first_block_cache
from torch import Tensor

from tests.caching.turns import PLANS, STEPS, TIMESTEPS, drift, drive, plan_of
from tests.tiny import TEXT_DIM, tiny_wan_transformer
from vidaccel.caching.first_block import NOW, FirstBlock


def by_hand(threshold: float, residuals: list[Tensor], forced: set[int], allowance: list[float],
            cleared: set[int]) -> tuple[list[int], list[float | None]]:  # fmt: skip
    """Computed steps, and the changes that decided."""
    computed: list[int] = []
    changes: list[float | None] = []
    reference = None
    for step, now in enumerate(residuals):
        change = None
        if step in cleared:
            reference = None
        if reference is not None and step not in forced:
            change = float((now - reference).abs().sum() / reference.abs().sum())
        changes.append(change)
        if change is None or change > threshold * allowance[step]:
            reference = now
            computed.append(step)
    return computed, changes


@pytest.mark.parametrize("plan", PLANS)
def test_steps_are_as_the_formula_says(plan: dict[str, Any]) -> None:
    residuals = drift(2, 5, 6)
    ran = drive(FirstBlock(threshold=0.3), [{"first_residual": each} for each in residuals], **plan)
    forced, allowance = plan_of(plan)
    computed, changes = by_hand(0.3, residuals, forced, allowance, set(plan.get("cleared", ())))
    assert ran.computed == computed and 3 < len(computed) < STEPS - 1
    found = [each.indicator for each in ran.verdicts]
    assert [each is None for each in found] == [each is None for each in changes]
    assert [each for each in found if each] == pytest.approx([each for each in changes if each], rel=1e-5)
    assert ran.waits == [0 if each is None else 1 for each in found]


def recorded(dtype: torch.dtype, threshold: float) -> tuple[list[Tensor], list[int]]:
    """Residuals of the first block of a small Wan in a run of diffusers' own cache, and the steps that it computed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = tiny_wan_transformer(layers=3).to(dtype)
    first, last = model.blocks[0], model.blocks[-1]
    residuals: list[Tensor] = []
    ran: list[int] = []
    # Beneath diffusers' hooks, which replace `forward`: what blocks really did.
    of_first, of_last = first.forward, last.forward

    def note_first(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        out = of_first(hidden_states, *args, **kwargs)
        residuals.append(out - hidden_states)
        return out

    def note_last(*args: Any, **kwargs: Any) -> Any:
        ran.append(len(residuals) - 1)
        return of_last(*args, **kwargs)

    first.forward, last.forward = note_first, note_last
    apply_first_block_cache(model, FirstBlockCacheConfig(threshold=threshold))
    generator = torch.Generator().manual_seed(1)
    text = torch.randn(2, 4, TEXT_DIM, generator=generator).to(dtype)
    with torch.no_grad():
        for latents, timestep in zip(drift(2, 16, 2, 4, 4), TIMESTEPS, strict=True):
            with model.cache_context("cond"):
                model(latents.to(dtype), torch.full((2,), timestep), text)
    return residuals, ran


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_decisions_are_those_of_diffusers(dtype: torch.dtype) -> None:
    shares = set()
    for threshold in (0.02, 0.05, 0.1, 0.2, 0.4):
        residuals, computed = recorded(dtype, threshold)
        assert len(residuals) == STEPS and residuals[0].dtype == dtype
        ran = drive(FirstBlock(threshold=threshold), [{"first_residual": each} for each in residuals])
        assert ran.computed == computed
        shares.add(len(computed))
    assert len(shares) >= 3


def test_what_does_not_change_is_reused_and_broken_tensors_are_not() -> None:
    nothing = [torch.zeros(1, 3, 4)] * 4
    assert drive(FirstBlock(), [{"first_residual": each} for each in nothing]).computed == [0]
    residuals = drift(1, 3, 4)
    residuals[3] = torch.full_like(residuals[3], torch.nan)
    assert 3 in drive(FirstBlock(threshold=1e6), [{"first_residual": each} for each in residuals]).computed


def test_it_runs_the_first_block_and_keeps_one_residual() -> None:
    policy = FirstBlock()
    assert policy.segments(30) == ((1, 30),) and not policy.leads
    with pytest.raises(ValueError, match="has 1 in all"):
        policy.segments(1)
    ran = drive(FirstBlock(threshold=0.3), [{"first_residual": each} for each in drift(1, 3, 4)])
    assert STEPS - 1 not in ran.computed and NOW not in ran.state
    assert sum(isinstance(each, Tensor) for each in ran.state.values()) == 1


@pytest.mark.parametrize("threshold", [0, -1, float("nan"), "0.1", True, None])
def test_bad_thresholds_are_refused(threshold: Any) -> None:
    with pytest.raises(ValueError, match="threshold .* is not a number above 0"):
        FirstBlock(threshold=threshold)

"""Strides that shrink while a run is on its way, against the run whose sigmas are such from the start."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from diffusers import CogVideoXDDIMScheduler, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

import vidaccel
from tests import tiny
from tests.caching.cases import STEPS, ToldOutput, run
from vidaccel.caching import Cache, Turn
from vidaccel.caching.time_scale import TimeScale, check, spread

SHARES = (1.0, 0.25, 0.02, 1.0, 0.5, 1.0)


@dataclass(frozen=True)
class Shortened(ToldOutput):
    """Reuses the steps that it is told to, and has each take its share of the time up to `until`."""

    name: ClassVar[str] = "shortened"

    until: int = STEPS

    @property
    def adjusts(self) -> bool:
        return True

    def stride(self, turn: Turn, kept_step: int) -> tuple[float, int]:
        assert kept_step == max(step for step in range(turn.step) if step not in self.steps)
        return SHARES[turn.step], self.until if turn.step < self.until else STEPS


def euler(steps: int = STEPS, shift: float = 3.0) -> Any:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(steps)
    return scheduler


def slow(sigmas: list[float], shares: dict[int, float], until: int) -> list[float]:
    """Step by step: what is left of the time is given out as the planned strides are to each other."""
    planned = [early - late for early, late in zip(sigmas, sigmas[1:], strict=False)]
    left, out = sigmas[0] - sigmas[until], [sigmas[0]]
    for step in range(until):
        stride = left * planned[step] / sum(planned[step:until]) * shares.get(step, 1.0)
        left -= stride
        out.append(out[-1] - stride)
    return [*out, *sigmas[until + 1 :]]


def cached(policy: Any, **limits: Any) -> Any:
    return {"method": None, "cache": Cache(policy, **{"min_steps": 1, **limits})}


def stop(pipe: Any, step: int, timestep: Any, kwargs: Any) -> dict[str, Any]:
    if step == 3:
        raise KeyboardInterrupt
    return {}


@pytest.mark.parametrize("until", [12, 9])
def test_strides_are_given_out_again(until: int) -> None:
    scheduler = euler(12)
    before, own = scheduler.sigmas.clone(), (scheduler.sigmas, scheduler.timesteps)
    shares = {2: 0.3, 3: 0.0, 5: 0.9, 6: 1.0, 7: 0.5}
    scale = TimeScale(scheduler, 12)
    for step, share in shares.items():
        scale.shorten(step, share, until, torch.float32)
    expected = slow(before.tolist(), shares, until)
    np.testing.assert_allclose(scheduler.sigmas.numpy(), expected, atol=2e-6)
    # The time adds up, none of it is taken twice, and the model is told the noise that there is.
    assert torch.equal(scheduler.sigmas[until:], before[until:]) and scheduler.sigmas[-1] == 0
    assert (scheduler.sigmas.diff() < 0).all() and (scheduler.timesteps.diff() < 0).all()
    assert torch.equal(scheduler.timesteps, scheduler.sigmas[:-1] * 1000)
    # Where the loop of a pipeline reads them.
    assert scheduler.sigmas is own[0] and scheduler.timesteps is own[1]
    assert scale.note == "5 reused steps took 54% of their time, the steps after them the rest"
    scale.restore()
    assert torch.equal(scheduler.sigmas, before) and torch.equal(scheduler.timesteps, before[:-1] * 1000)


def test_spread_keeps_the_end() -> None:
    assert spread([1.0, 0.8, 0.4, 0.0], 0, 0.5, 3) == pytest.approx([0.9, 0.45])
    assert spread([1.0, 0.8, 0.4, 0.0], 1, 0.0, 3) == pytest.approx([0.8])
    assert spread([1.0, 0.8, 0.4, 0.0], 1, 1.0, 3) == pytest.approx([0.4])


def test_nothing_is_written_for_whole_and_last_steps() -> None:
    scheduler = euler()
    scheduler.sigmas, scheduler.timesteps = (each.clone() for each in (scheduler.sigmas, scheduler.timesteps))
    versions = scheduler.sigmas._version, scheduler.timesteps._version
    scale = TimeScale(scheduler, STEPS)
    assert scale.note is None
    scale.shorten(2, 1.0, STEPS, torch.float32)
    scale.shorten(STEPS - 1, 0.2, STEPS, torch.float32)
    assert (scheduler.sigmas._version, scheduler.timesteps._version) == versions
    sigmas = scheduler.sigmas
    scale.restore()
    assert scheduler.sigmas is sigmas


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_timesteps_differ_as_the_model_gets_them(dtype: torch.dtype) -> None:
    """Two equal ones would be taken for two passes of one step."""
    scheduler = euler(20)
    scale = TimeScale(scheduler, 20)
    for step in range(1, 18):
        scale.shorten(step, 0.0, 20, dtype)
    assert (scheduler.timesteps.to(dtype).float().diff() < 0).all() and scheduler.sigmas[-1] == 0


def test_late_start() -> None:
    """A video-to-video run counts its own steps, and the scheduler those of the whole."""
    scheduler = euler(12)
    before = scheduler.sigmas.tolist()
    TimeScale(scheduler, 8).shorten(2, 0.5, 8, torch.float32)
    np.testing.assert_allclose(scheduler.sigmas.tolist(), slow(before, {6: 0.5}, 12), atol=1e-6)


@pytest.mark.parametrize(
    ("scheduler", "told"),
    [(UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True), "a UniPCMultistepScheduler"),
     (CogVideoXDDIMScheduler(), "a CogVideoXDDIMScheduler, only in a plain FlowMatchEulerDiscreteScheduler"),
     (FlowMatchEulerDiscreteScheduler(stochastic_sampling=True), "with stochastic_sampling"),
     (FlowMatchEulerDiscreteScheduler(invert_sigmas=True), "with invert_sigmas"), (None, "by itself has none")],
)  # fmt: skip
def test_other_schedulers(scheduler: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        check(scheduler)


def test_refused_before_anything_is_changed() -> None:
    pipe = tiny.tiny_wan()
    pipe.scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    for target, told in ((pipe, "a UniPCMultistepScheduler"), (pipe.transformer, "by itself has none")):
        with pytest.raises(ValueError, match=told):
            vidaccel.enable(target, num_inference_steps=STEPS, **cached(Shortened((2,))))
        assert "blocks" not in pipe.transformer.__dict__ and not pipe.transformer._forward_hooks
    # Set later, it is refused before the first step.
    plain = tiny.tiny_wan()
    with vidaccel.enable(plain, **cached(Shortened((2,)))):
        plain.scheduler = pipe.scheduler
        with pytest.raises(ValueError, match="a UniPCMultistepScheduler"):
            run("wan", plain)


def test_timesteps_apart_from_sigmas_are_refused() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(sigmas=[1.0, 0.5, 0.25], timesteps=[1000.0, 600.0, 100.0])
    with pytest.raises(ValueError, match="are not those of its sigmas"):
        TimeScale(scheduler, 3)


def planned(pipe: Any, sigmas: list[float]) -> None:
    """Give all of a pipeline's runs these sigmas."""
    original = pipe.scheduler.set_timesteps

    def set_timesteps(*args: Any, **kwargs: Any) -> None:
        original(*args, **kwargs)
        pipe.scheduler.sigmas = torch.tensor(sigmas)
        pipe.scheduler.timesteps = pipe.scheduler.sigmas[:-1] * 1000

    pipe.scheduler.set_timesteps = set_timesteps


@pytest.mark.parametrize("steps", [(1, 2), (2, 4)])
def test_run_is_that_of_the_sigmas_from_the_start(steps: tuple[int, ...]) -> None:
    """Two generations in a row, and one after an aborted one."""
    pipe, other = tiny.tiny_wan(), tiny.tiny_wan()
    stock = run("wan", pipe)
    sigmas = slow(euler().sigmas.tolist(), {step: SHARES[step] for step in steps}, STEPS)
    planned(other, sigmas)
    with vidaccel.enable(other, **cached(ToldOutput(steps))):
        expected = run("wan", other)
    with vidaccel.enable(pipe, **cached(ToldOutput(steps))):
        whole = run("wan", pipe)
    with vidaccel.enable(pipe, **cached(Shortened(steps))) as session:
        with pytest.raises(KeyboardInterrupt):
            run("wan", pipe, prompt="a blue square", callback_on_step_end=stop)
        assert not torch.equal(pipe.scheduler.sigmas, euler().sigmas)
        for _ in range(2):
            np.testing.assert_allclose(run("wan", pipe), expected, atol=2e-4)
            np.testing.assert_allclose(pipe.scheduler.sigmas.numpy(), sigmas, atol=1e-5)
        assert "2 reused steps took" in str(session.summary())
    assert np.abs(expected - whole).max() > 0.02
    # What is left is what a run without it leaves.
    assert torch.equal(pipe.scheduler.sigmas, euler().sigmas) and torch.equal(pipe.scheduler.timesteps,
                                                                             euler().timesteps)  # fmt: skip
    assert np.array_equal(run("wan", pipe), stock)


def test_aborted_run_is_given_back() -> None:
    pipe = tiny.tiny_wan()
    vidaccel.enable(pipe, **cached(Shortened((1, 2))))
    with pytest.raises(KeyboardInterrupt):
        run("wan", pipe, callback_on_step_end=stop)
    vidaccel.disable(pipe)
    assert torch.equal(pipe.scheduler.sigmas, euler().sigmas)
    assert set(pipe.scheduler.__dict__) == set(euler().__dict__)


@pytest.mark.parametrize("options", [{"policy": Shortened(())}, {"policy": Shortened((2, 4)), "min_steps": 12},
                                     {"policy": Shortened((2, 4)), "first_steps": 1.0}])  # fmt: skip
def test_what_reuses_nothing_is_stock(options: dict[str, Any]) -> None:
    pipe = tiny.tiny_wan()
    stock = run("wan", pipe)
    with vidaccel.enable(pipe, **cached(**options)):
        assert np.array_equal(run("wan", pipe), stock)
        assert torch.equal(pipe.scheduler.sigmas, euler().sigmas)


def test_inference_mode() -> None:
    """Its tensors cannot be written to after it, where the pipeline is given back."""
    pipe = tiny.tiny_wan()
    with vidaccel.enable(pipe, **cached(Shortened((2,)))), torch.inference_mode():
        run("wan", pipe)
    assert torch.equal(pipe.scheduler.sigmas, euler().sigmas)


def test_second_expert_takes_over_where_it_did() -> None:
    """Its first step is at the noise that it would have begun with, as no expert's time goes to the other."""
    pipe = tiny.tiny_wan(two_experts=True)
    boundary = 0.75 * 1000
    first = int((euler().timesteps >= boundary).sum())
    assert 3 <= first < STEPS
    with vidaccel.enable(pipe, **cached(Shortened((1, 2), until=first))) as session:
        run("wan2.2", pipe)
        made = session.summary().to_dict()["cache"]["decisions"]
        sigmas = pipe.scheduler.sigmas
        assert torch.equal(sigmas[first:], euler().sigmas[first:]) and not torch.equal(sigmas, euler().sigmas)
    assert {each["step"] for each in made if each["expert"] == "transformer_2"} == set(range(first, STEPS))

"""State: per branch, expert and layer; new for each generation, also after one that failed."""

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch

import vidaccel
from tests import tiny
from vidaccel.plan import AttentionPlan, BlockMask

SPARSE = {"min_tokens": 0, "schedule": {"dense_first_steps": 0, "dense_first_layers": 0}}


@dataclass(frozen=True)
class Recorder(vidaccel.Method):
    """A dynamic method that keeps everything and writes down where it was asked, and what its state held."""

    name: ClassVar[str] = "recorder"
    log: list = dataclasses.field(default_factory=list)

    def plan(self, query, key, value, site, state):
        self.log.append((site.expert, site.branch, site.layer, site.step, site.steps, state.get("calls", 0)))
        state["calls"] = state.get("calls", 0) + 1
        assert query.shape == key.shape == value.shape and query.shape[1] == site.layout.tokens
        return AttentionPlan(BlockMask.full(site.layout.tokens, site.layout.tokens, 16, 16))


@pytest.fixture(scope="module")
def pipe():
    return tiny.tiny_wan()


@pytest.fixture(autouse=True)
def _disabled(pipe):
    yield
    vidaccel.disable(pipe)


def test_sites_and_state_of_every_call(pipe):
    method = Recorder()
    vidaccel.enable(pipe, method, **SPARSE)
    tiny.generate(pipe)
    expected = [
        ("transformer", branch, layer, step, 4, step)
        for step in range(4)
        for branch in ("cond", "uncond")
        for layer in range(2)
    ]
    assert method.log == expected
    tiny.generate(pipe)
    assert method.log == expected * 2


def test_two_experts_share_the_clock_and_nothing_else():
    pipe, method = tiny.tiny_wan(two_experts=True), Recorder()
    vidaccel.enable(pipe, method, **SPARSE)
    tiny.generate(pipe)
    experts = [entry[0] for entry in method.log]
    switch = experts.index("transformer_2")
    assert set(experts[:switch]) == {"transformer"} and set(experts[switch:]) == {"transformer_2"}
    assert sorted({entry[3] for entry in method.log}) == [0, 1, 2, 3]
    assert method.log[switch][3] > 0 and method.log[switch][5] == 0


def test_without_guidance_there_is_one_branch(pipe):
    method = Recorder()
    vidaccel.enable(pipe, method, **SPARSE)
    tiny.generate(pipe, guidance_scale=1.0)
    assert {entry[1] for entry in method.log} == {"cond"} and len(method.log) == 8


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_run_after_an_interrupted_one_starts_anew(pipe, error):
    method = Recorder()
    vidaccel.enable(pipe, method, **SPARSE)
    whole = tiny.generate(pipe)
    clean = list(method.log)

    def stop(pipe, step, timestep, kwargs):
        raise error

    with pytest.raises(error):
        tiny.generate(pipe, callback_on_step_end=stop)
    method.log.clear()
    assert np.array_equal(tiny.generate(pipe), whole) and method.log == clean


def test_two_resolutions_in_one_process(pipe):
    vidaccel.enable(pipe, "radial", block=16, **SPARSE)
    small, again = {"num_frames": 9, "height": 32, "width": 64}, {}
    first = tiny.generate(pipe, **again), tiny.generate(pipe, **small)
    second = tiny.generate(pipe, **again), tiny.generate(pipe, **small)
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True)) and first[0].shape != first[1].shape


def test_a_batch_equals_its_rows(pipe):
    vidaccel.enable(pipe, "radial", block=16, **SPARSE)
    latents = torch.randn(2, 16, 5, 8, 12)
    together = tiny.generate(
        pipe,
        prompt=["a red circle", "a blue square"],
        negative_prompt=["blurry"] * 2,
        latents=latents,
        output_type="latent",
    )
    for row, prompt in enumerate(("a red circle", "a blue square")):
        alone = tiny.generate(pipe, prompt=prompt, latents=latents[row : row + 1], output_type="latent")
        np.testing.assert_allclose(together[row], alone[0], rtol=1e-3, atol=1e-4)


def test_min_tokens_keeps_short_calls_dense_and_says_so(pipe):
    stock = tiny.generate(pipe)
    vidaccel.enable(pipe, "radial", block=16)
    assert np.array_equal(tiny.generate(pipe), stock)
    summary = vidaccel.summary(pipe)
    assert summary.to_dict()["calls"]["sparse"] == 0
    assert "min_tokens=8192" in str(summary)


def test_enabling_again_replaces_and_a_refused_setting_changes_nothing(pipe):
    stock = pipe.transformer.blocks[0].attn1.processor
    first = vidaccel.enable(pipe, "radial", block=16, **SPARSE)
    with pytest.raises(ValueError, match="unknown method"):
        vidaccel.enable(pipe, "radical")
    assert pipe.transformer._vidaccel_session is first
    second = vidaccel.enable(pipe, "radial", block=32, **SPARSE)
    assert pipe.transformer._vidaccel_session is second and len(pipe.transformer._forward_pre_hooks) == 1
    assert vidaccel.summary(pipe).options["block"] == 32
    vidaccel.disable(pipe)
    assert pipe.transformer.blocks[0].attn1.processor is stock and not pipe.transformer._forward_pre_hooks
    vidaccel.disable(pipe)
    with pytest.raises(ValueError, match="not enabled"):
        vidaccel.summary(pipe)


def test_static_plan_that_cannot_be_made_fails_before_the_first_step(pipe):
    steps = []
    vidaccel.enable(pipe, "radial", density=0.01, block=16, min_tokens=0)
    with pytest.raises(ValueError, match="least of radial"):
        tiny.generate(pipe, callback_on_step_end=lambda *args: steps.append(args) or {})
    assert steps == []


def test_a_layer_outside_its_transformer_is_an_error(pipe):
    vidaccel.enable(pipe, "radial", block=16, **SPARSE)
    with torch.no_grad(), pytest.raises(RuntimeError, match="outside its transformer"):
        pipe.transformer.blocks[0].attn1(torch.randn(1, 8, 128))


def test_processors_replaced_after_enable_are_an_error(pipe):
    session = vidaccel.enable(pipe, "radial", block=16, **SPARSE)
    module = pipe.transformer.blocks[1].attn1
    ours, module.processor = module.processor, session._experts[0].layers[1].stock
    with pytest.raises(RuntimeError, match="WanTransformer3DModel were replaced after sparse attention was enabled"):
        tiny.generate(pipe)
    module.processor = ours
    tiny.generate(pipe)


def test_a_bare_transformer(pipe):
    transformer, method = pipe.transformer, Recorder()
    call = {"hidden_states": torch.randn(1, 16, 5, 8, 12), "encoder_hidden_states": torch.randn(1, 7, tiny.TEXT_DIM)}
    with pytest.raises(ValueError, match="num_inference_steps"):
        vidaccel.enable(transformer, method)
    with torch.no_grad(), vidaccel.enable(transformer, method, min_tokens=0, num_inference_steps=4) as session:
        for timestep in (900.0, 600.0, 300.0, 100.0):
            transformer(timestep=torch.tensor([timestep]), **call)
    assert [entry[3:5] for entry in method.log] == [(1, 4), (2, 4), (3, 4)]
    assert session.summary().to_dict()["dense_calls"] == {"in first layers": 4, "in first steps": 1}


def test_training_goes_through_the_stock_processor(pipe):
    transformer = pipe.transformer
    call = {"timestep": torch.tensor([500.0]), "encoder_hidden_states": torch.randn(1, 7, tiny.TEXT_DIM)}
    states = torch.randn(1, 16, 5, 8, 12, requires_grad=True)
    with vidaccel.enable(transformer, "radial", block=16, num_inference_steps=4, **SPARSE) as session:
        transformer(hidden_states=states, **call)[0].sum().backward()
    assert states.grad is not None and session.summary().to_dict()["calls"] == {"sparse": 0, "dense": 0}

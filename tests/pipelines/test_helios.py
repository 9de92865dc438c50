"""Helios: a past of three resolutions before the video, chunk by chunk, and in a pyramid."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

import vidaccel
from tests.pipelines.cases import (
    NEVER_DENSE,
    SPARSE,
    Everything,
    assert_text_is_kept,
    error,
    forward,
    gradient,
    through,
)
from tests.pipelines.models import helios
from tests.pipelines.signals import embedded_time, read_by_attention
from vidaccel.layout import TokenLayout
from vidaccel.pipelines import family_of
from vidaccel.pipelines.base import Call

RADIAL = {"decay": 0.0, "split": 16, "sink": False}


@pytest.fixture
def transformer() -> Any:
    return helios.build()


def past_of(transformer: Any, **frames: int) -> dict[str, Any]:
    """A forward after so many frames of each part of the past, 10 x 12 latents each, which no patch of 8 x 8 fills."""
    call = helios.inputs(transformer, past=False)
    call["hidden_states"] = torch.randn(2, helios.CHANNELS, 5, 10, 12)
    call["indices_hidden_states"] = torch.arange(50, 55)[None].expand(2, -1)
    for name, count in frames.items():
        call[f"indices_latents_history_{name}"] = torch.arange(count)[None].expand(2, -1)
        call[f"latents_history_{name}"] = torch.randn(2, helios.CHANNELS, count, 10, 12)
    return call


@pytest.mark.parametrize(
    ("frames", "tokens"),
    [
        ({"short": 3}, 3 * 30),
        ({"short": 1, "mid": 3}, 30 + 2 * 3 * 3),
        ({"short": 2, "long": 5}, 60 + 2 * 2 * 2),
        ({"short": 1, "mid": 2, "long": 16}, 30 + 1 * 3 * 3 + 4 * 2 * 2),
    ],
)
def test_tokens_of_the_past_are_counted_as_the_model_does(transformer: Any, frames: Any, tokens: int) -> None:
    call = past_of(transformer, **frames)
    assert family_of(transformer).layout(transformer, Call((), call)) == TokenLayout(5, 5, 6, text_before=tokens)
    # Another number than the model's would be refused in the first layer.
    assert error(through(transformer, call, Everything()), forward(transformer, call)) < 1e-5


def test_a_past_without_its_places_is_left_out_as_the_model_does(transformer: Any) -> None:
    call = past_of(transformer, short=2)
    del call["indices_latents_history_short"]
    assert family_of(transformer).layout(transformer, Call((), call)) == TokenLayout(5, 5, 6)
    assert error(through(transformer, call, Everything()), forward(transformer, call)) < 1e-5


def test_layout_by_position(transformer: Any) -> None:
    call = past_of(transformer, short=1, mid=2, long=16)
    names = ("hidden_states", "timestep", "encoder_hidden_states", "indices_hidden_states",
             *(f"indices_latents_history_{name}" for name in ("short", "mid", "long")),
             *(f"latents_history_{name}" for name in ("short", "mid", "long")))  # fmt: skip
    values = tuple(call[name] for name in names)
    family = family_of(transformer)
    expected = family.layout(transformer, Call((), call))
    assert family.layout(transformer, Call(values, {})) == expected and expected.text_before > 0
    assert family.layout(transformer, Call(values[:3], {})) == TokenLayout(5, 5, 6)


def test_static_plans_keep_the_past() -> None:
    assert_text_is_kept(TokenLayout(5, 4, 6, text_before=helios.PAST_TOKENS))


@pytest.mark.parametrize("mode", ["scalar", "per_head"])
def test_keys_of_the_past_are_weighed_up(mode: str) -> None:
    transformer: Any = helios.build(is_amplify_history=True, history_scale_mode=mode)
    for block in transformer.blocks:
        torch.nn.init.normal_(block.attn1.history_key_scale)
    call = helios.inputs(transformer)
    stock = forward(transformer, call)
    assert error(stock, forward(helios.build(), call)) > 1e-4
    with vidaccel.enable(transformer, "radial", num_inference_steps=4, schedule={"dense_first_steps": 1.0}):
        assert torch.equal(forward(transformer, call), stock)
    for backend in ("reference", "cpu"):
        assert error(through(transformer, call, Everything(), backend=backend), stock) < 1e-5


def steps(method: Everything) -> list[tuple[str, int]]:
    """Guidance pass and step of each call of the first layer."""
    return [(branch, step) for branch, layer, step, _, _ in method.log if layer == 0]


def test_every_chunk_is_a_run() -> None:
    pipe, method = helios.pipeline(), Everything()
    call: dict[str, Any] = {**helios.CALL, "num_frames": 40, "output_type": "latent"}
    with vidaccel.enable(pipe, method, min_tokens=0, schedule=NEVER_DENSE) as session:
        pipe(**call, generator=torch.Generator().manual_seed(0))
    assert steps(method) == 3 * [(branch, step) for step in range(4) for branch in ("cond", "uncond")]
    # What is remembered of a chunk is not there in the next one.
    assert [seen for _, _, step, _, seen in method.log if step == 0] == [0] * 12
    assert session.runs == 3


PYRAMID: dict[str, Any] = {**helios.PYRAMID, "height": 128, "width": 128, "output_type": "latent",
                           "pyramid_num_inference_steps_list": [2, 3]}  # fmt: skip


def pyramid() -> Any:
    return helios.pipeline(helios.HeliosPyramidPipeline, stages=2)


def generated(pipe: Any, **overrides: Any) -> torch.Tensor:
    frames: torch.Tensor = pipe(**PYRAMID | overrides, generator=torch.Generator().manual_seed(0)).frames
    return torch.as_tensor(frames)


def test_every_resolution_of_a_pyramid_is_a_run_on_its_grid() -> None:
    pipe, grids = pyramid(), []
    method, family = Everything(), family_of(pipe.transformer)
    see = lambda module, args, kwargs: grids.append(family.layout(module, Call(args, kwargs)))  # noqa: E731
    hook = pipe.transformer.register_forward_pre_hook(see, with_kwargs=True)
    stock = generated(pipe)
    with vidaccel.enable(pipe, "radial", min_tokens=0, block=16, schedule={"dense_first_steps": 1.0}) as session:
        assert torch.equal(generated(pipe), stock)
        assert session.runs == 2
    grids.clear()
    with vidaccel.enable(pipe, method, min_tokens=0, schedule=NEVER_DENSE):
        torch.testing.assert_close(generated(pipe), stock, atol=2e-3, rtol=0)
    hook.remove()
    both = ("cond", "uncond")
    assert steps(method) == [(each, step) for count in (2, 3) for step in range(count) for each in both]
    # The past keeps its own resolution: 2 x 8 x 8, 1 x 4 x 4 and 2 x 2 x 2 tokens.
    past = 2 * 64 + 16 + 8
    assert grids == 4 * [TokenLayout(5, 4, 4, text_before=past)] + 6 * [TokenLayout(5, 8, 8, text_before=past)]


def test_a_cache_starts_anew_with_every_chunk_and_resolution() -> None:
    some = {"name": "static", "compute": [0], "min_steps": 1, "predictor": "hold"}
    pipe = pyramid()
    seen: list[int] = []
    block: Any = pipe.transformer.blocks[0]
    hook = block.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[1]))
    with vidaccel.enable(pipe, None, cache=some, schedule=NEVER_DENSE) as session:
        found = generated(pipe, num_frames=20)
    hook.remove()
    past = 2 * 64 + 16 + 8
    # In each of two chunks and two resolutions, both passes of the first step alone.
    assert seen == 2 * [past + 80, past + 80, past + 320, past + 320] and found.isfinite().all()
    assert session.runs == 4


def test_training_goes_through_the_stock_processor(transformer: Any) -> None:
    call = helios.inputs(transformer)
    stock = gradient(transformer, call)
    with vidaccel.enable(transformer, "radial", num_inference_steps=4, **SPARSE | RADIAL):
        assert torch.equal(gradient(transformer, call), stock)


@pytest.mark.parametrize("config", [{}, {"zero_history_timestep": False}], ids=["past without noise", "one time"])
def test_signals(config: dict[str, Any]) -> None:
    transformer: Any = helios.build(**config)
    for inputs in (helios.inputs, functools.partial(helios.inputs, past=False)):
        call = inputs(transformer)
        said, read = read_by_attention(transformer, call)
        assert said.shape[1] == 120 and torch.equal(said, read[:, -120:])
    with torch.no_grad():
        embedding, (embedded, *_) = embedded_time(transformer, call, transformer.condition_embedder)
    assert torch.equal(embedding, embedded)


def test_default_schedule(transformer: Any) -> None:
    assert family_of(transformer).schedule(None, transformer).resolve(50, 40).first_step == 17

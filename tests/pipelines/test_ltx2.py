"""LTX-2: two streams, conditions after the clip, further guidance passes, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vidaccel
from tests.pipelines.cases import NEVER_DENSE, Everything, error, forward, gradient
from tests.pipelines.models import ltx2
from vidaccel.layout import TokenLayout
from vidaccel.pipelines.base import Call
from vidaccel.pipelines.ltx2 import FAMILY

SPARSE: dict[str, Any] = {"min_tokens": 0, "schedule": NEVER_DENSE, "num_inference_steps": 4}
MASK = "video_self_attention_mask"


@pytest.fixture
def transformer() -> Any:
    return ltx2.build_later()


@torch.no_grad()
def both(transformer: nn.Module, call: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Video and sound of one pass."""
    video, sound = transformer(**call, return_dict=False)
    return video, sound


def test_layouts_of_all_pipelines(transformer: Any) -> None:
    call = ltx2.conditioned(transformer)
    assert FAMILY.layout(transformer, Call((), call)) == TokenLayout(5, 4, 6, text_after=24)
    values = [call[name] for name in list(ltx2.inputs(transformer))[:4]] + [call["timestep"], *[None] * 5, 5, 4, 6]
    assert FAMILY.layout(transformer, Call(tuple(values), {})) == TokenLayout(5, 4, 6, text_after=24)
    assert FAMILY.timestep(Call(tuple(values), {})).shape == (2, 144)
    for name in ("num_frames", "height", "width"):
        del call[name]
    # Keyframes of LTX-2.5 come with coordinates alone.
    assert FAMILY.layout(transformer, Call((), call)) == TokenLayout(5, 4, 6, text_after=24)
    del call["video_coords"]
    with pytest.raises(ValueError, match="video_coords"):
        FAMILY.layout(transformer, Call((), call))


def test_perturbed_blocks_stay_stock_and_further_passes_have_states_of_their_own(transformer: Any) -> None:
    plain = ltx2.inputs(transformer)
    passes = [plain, plain | {"spatio_temporal_guidance_blocks": [1]}, plain | {"isolate_modalities": True},
              plain | {"spatio_temporal_guidance_blocks": [1], "perturbation_mask": torch.tensor([0.0, 1.0])}]
    stock = [both(transformer, call) for call in passes]
    assert not torch.equal(stock[0][0], stock[1][0]) and not torch.equal(stock[1][0], stock[3][0])
    method = Everything()
    with vidaccel.enable(transformer, method, **SPARSE):
        found = [both(transformer, call) for call in passes]
    for ours, theirs in zip(found, stock, strict=True):
        assert all(error(a, b) < 1e-5 for a, b in zip(ours, theirs, strict=True))
    assert [(branch, layer) for branch, layer, *_ in method.log] == [
        ("cond_uncond", 0), ("cond_uncond", 1), ("pass1", 0), ("pass2", 0), ("pass2", 1), ("pass3", 0)
    ]  # fmt: skip
    with vidaccel.enable(transformer, "radial", **SPARSE | {"schedule": {"dense_first_steps": 1.0}}):
        for call, theirs in zip(passes, stock, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(both(transformer, call), theirs, strict=True))


def test_a_mask_is_refused_before_the_first_step_and_left_alone_without_sparse_attention(transformer: Any) -> None:
    torch.manual_seed(0)
    call = ltx2.inputs(transformer) | {MASK: torch.rand(2, 120, 120).round()}
    stock = forward(transformer, call)
    with vidaccel.enable(transformer, "radial", num_inference_steps=4), pytest.raises(ValueError, match=MASK):
        forward(transformer, call)
    cache = {"name": "static", "compute": [0, 2], "min_steps": 1, "reuse": "stack"}
    with vidaccel.enable(transformer, None, cache=cache, num_inference_steps=4):
        assert torch.equal(forward(transformer, call), stock)
    assert torch.equal(forward(transformer, call), stock)


def test_a_reused_step_has_the_sound_of_the_blocks_as_well(transformer: Any) -> None:
    call = ltx2.conditioned(transformer)
    seen: list[Tensor] = []
    transformer.audio_norm_out.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    cache = {"name": "static", "compute": [0], "min_steps": 1, "predictor": "hold", "reuse": "stack"}
    with vidaccel.enable(transformer, None, cache=cache, num_inference_steps=2, schedule=NEVER_DENSE) as session:
        first = both(transformer, call)
        second = both(transformer, call | {"timestep": call["timestep"] * 0.9})
    assert session.summary().to_dict()["cache"]["computed_share"] == 0.5
    assert error(seen[1], seen[0]) < 1e-6 and error(second[1], first[1]) < 1e-6
    assert not torch.equal(second[0], first[0])


@pytest.mark.parametrize("cache", [{"name": "static", "reuse": "output", "compute": [0]},
                                   {"name": "static", "reuse": "prediction", "compute": [0]}, {"name": "easycache"}],
                         ids=["output", "prediction", "easycache"])  # fmt: skip
def test_caches_of_one_prediction_are_refused_when_enabled(transformer: Any, cache: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="reuse='stack'"):
        vidaccel.enable(transformer, None, cache=cache, num_inference_steps=20)
    assert not transformer._forward_pre_hooks and not transformer._forward_hooks
    vidaccel.enable(transformer, None, cache=cache | {"reuse": "stack"}, num_inference_steps=20).detach()


def test_training_goes_through_the_stock_processor(transformer: Any) -> None:
    call = ltx2.inputs(transformer)
    stock, method = gradient(transformer, call), Everything()
    with vidaccel.enable(transformer, method, **SPARSE):
        assert torch.equal(gradient(transformer, call), stock)
    assert not method.log


@pytest.mark.parametrize("build", [ltx2.build, ltx2.build_later])
def test_signals_are_what_the_model_computes(build: Any) -> None:
    transformer: Any = build()
    seen: dict[str, Any] = {}
    first = transformer.transformer_blocks[0]

    def embedded(module: nn.Module, args: Any, output: Any) -> None:
        seen["embedded"] = output[1]

    def entered(module: nn.Module, args: Any, kwargs: Any) -> None:
        seen["call"] = Call(args, kwargs)

    def attended(module: nn.Module, args: Any, kwargs: dict[str, Tensor]) -> None:
        seen["modulated"] = kwargs["hidden_states"]

    transformer.time_embed.register_forward_hook(embedded)
    first.register_forward_pre_hook(entered, with_kwargs=True)
    first.attn1.register_forward_pre_hook(attended, with_kwargs=True)
    for call in (ltx2.inputs(transformer), ltx2.conditioned(transformer)):
        forward(transformer, call)
        expected = seen["embedded"][0]
        with torch.no_grad():
            assert torch.equal(FAMILY.modulated(first, seen["call"]), seen["modulated"])
            found = FAMILY.time_embedding(transformer, torch.tensor([300.0, 500.0]))[1]
        assert torch.allclose(found, expected, atol=1e-6)

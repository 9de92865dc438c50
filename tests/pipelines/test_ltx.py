"""LTX-Video: where the clip stands among its tokens, in all its pipelines, and what does not go through the session."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    LTXConditionPipeline,
    LTXEulerAncestralRFScheduler,
    LTXI2VLongMultiPromptPipeline,
    LTXImageToVideoPipeline,
)
from torch import Tensor, nn

import vidaccel
from tests import tiny
from tests.pipelines.cases import NEVER_DENSE, Everything, error, forward, gradient
from tests.pipelines.models import ltx
from vidaccel.layout import TokenLayout
from vidaccel.pipelines.base import Call
from vidaccel.pipelines.ltx import FAMILY, clip

CALL = ltx.CALL | {"output_type": "latent"}
DENSE: dict[str, Any] = {"min_tokens": 0, "schedule": {"dense_first_steps": 1.0}}


def parts(scheduler: Any) -> list[Any]:
    return [scheduler, ltx.vae(), tiny.tiny_text_encoder(), tiny.tiny_tokenizer(), ltx.build()]


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ([0, 1, 9, 17, 25], (5, 0, 0)),
        ([0], (1, 0, 0)),
        ([16, 24, 0, 1, 9, 17], (4, 2, 0)),
        ([8, 16, 24, 32, 40, 0, 1, 9], (3, 5, 0)),
        ([0, 1, 9, 17, 0, 1, -8], (4, 0, 3)),
        ([0, 1, 9, 0, 1, 9, -8], (3, 0, 4)),
        ([0, 1, 9, 17, 24], (4, 0, 1)),
        ([9, 17, 25, 33, 9], (4, 0, 1)),
    ],
    ids=["a clip", "a picture", "keyframes before it", "more keyframes than frames", "overlap and reference after it",
         "guiding clip as long as it", "a keyframe after it within the last frame", "a part of a clip"],
)  # fmt: skip
def test_the_clip_is_found_by_its_coordinates(times: list[float], expected: tuple[int, int, int]) -> None:
    frames, before, after = expected
    # A rate that no float divides evenly.
    found = clip(ltx.coordinates([each / 29.97 for each in times], height=3, width=5))
    assert found == TokenLayout(frames, 3, 5, before * 15, after * 15)


def test_tokens_of_another_grid_after_the_clip_are_conditions() -> None:
    places = torch.cat([ltx.coordinates([0, 1, 9]), ltx.coordinates([0, 1], 2, 3, 64.0)], dim=1)
    assert clip(places) == TokenLayout(3, 4, 6, text_after=12)


@pytest.mark.parametrize("order", ["columns first", "shuffled"])
def test_coordinates_of_no_grid_are_refused_before_the_first_step(order: str) -> None:
    transformer = ltx.build()
    call = ltx.conditioned(transformer)
    places = ltx.coordinates([0, 1, 9, 17, 25])
    swap = places.reshape(3, 5, 4, 6).transpose(2, 3).flatten(1)
    torch.manual_seed(0)
    call["video_coords"] = (swap if order == "columns first" else places[:, torch.randperm(120)])[None]
    with vidaccel.enable(transformer, "radial", num_inference_steps=4), pytest.raises(ValueError, match="row by row"):
        transformer(**call | {"hidden_states": torch.randn(2, 120, 8), "timestep": torch.full((2,), 500.0)})


def test_layout_by_name_and_by_position() -> None:
    transformer = ltx.build()
    for call in (ltx.inputs(transformer), ltx.conditioned(transformer)):
        names = ("hidden_states", "encoder_hidden_states", "timestep", "encoder_attention_mask", "num_frames", "height",
                 "width", "rope_interpolation_scale", "video_coords")  # fmt: skip
        values = tuple(call.get(name) for name in names)
        expected = FAMILY.layout(transformer, Call((), call))
        assert FAMILY.layout(transformer, Call(values, {})) == expected
        assert FAMILY.timestep(Call(values, {})).max() == 500.0
        assert FAMILY.latents(transformer, Call((), call)).shape == forward(transformer, call).shape


def generations() -> dict[str, tuple[Any, dict[str, Any], TokenLayout, tuple[int, ...]]]:
    """Pipelines, what their calls have of their own, the last layout, and the steps of each run."""
    flow = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    image = {"image": tiny.tiny_image()}
    keyframes = {"image": [tiny.tiny_image(), tiny.tiny_image(1)], "video": [None, None], "frame_index": [0, 8]}
    windows = {"cond_image": tiny.tiny_image(), "temporal_tile_size": 20, "temporal_overlap": 8, "num_frames": 25}
    return {
        "image": (LTXImageToVideoPipeline(*parts(flow)), image, TokenLayout(5, 4, 6), (4,)),
        "keyframes": (LTXConditionPipeline(*parts(FlowMatchEulerDiscreteScheduler())), keyframes,
                      TokenLayout(5, 4, 6, text_before=24), (4,)),
        "windows": (LTXI2VLongMultiPromptPipeline(*parts(LTXEulerAncestralRFScheduler())), windows,
                    TokenLayout(4, 4, 6, text_after=72), (3, 3)),
    }  # fmt: skip


@pytest.mark.parametrize("name", ["image", "keyframes", "windows"])
def test_every_pipeline_counts_steps_and_finds_its_grid(name: str) -> None:
    pipe, own, layout, runs = generations()[name]
    tiny._ready(pipe)

    def latents() -> np.ndarray:
        return np.asarray(pipe(**CALL | own, generator=torch.Generator().manual_seed(0)).frames)

    stock = latents()
    with vidaccel.enable(pipe, "radial", **DENSE) as session:
        assert np.array_equal(latents(), stock)
        summary = session.summary().to_dict()
    assert TokenLayout(**summary["layout"]) == layout and summary["runs"] == len(runs)
    method = Everything()
    with vidaccel.enable(pipe, method, min_tokens=0, schedule=NEVER_DENSE):
        found = latents()
    # The windows leave out the last of their scheduler's timesteps.
    assert summary["steps"] == 4
    assert method.log == [("cond_uncond", layer, step, 4, step)
                          for steps in runs for step in range(steps) for layer in range(2)]  # fmt: skip
    assert error(torch.tensor(found), torch.tensor(stock)) < 1e-4
    assert FAMILY.schedule(pipe, pipe.transformer).dense_first_steps == 0.35


def test_masked_calls_and_training_go_through_the_stock_processor() -> None:
    transformer = ltx.build()
    call = ltx.inputs(transformer)
    stock = gradient(transformer, call)
    method = Everything()
    with vidaccel.enable(transformer, method, min_tokens=0, schedule=NEVER_DENSE):
        assert torch.equal(gradient(transformer, call), stock)
        block: Any = transformer.transformer_blocks[0]
        states, mask = torch.randn(2, 8, 128), torch.zeros(2, 1, 8).index_fill(2, torch.tensor([3]), -1e4)
        with torch.no_grad():
            found = block.attn1(states, attention_mask=mask)
            expected = block.attn1.processor.inner(block.attn1, states, attention_mask=mask)
    assert torch.equal(found, expected) and not method.log


def test_signals_are_what_the_model_computes() -> None:
    transformer: Any = ltx.build()
    seen: dict[str, Any] = {}

    def embedded(module: nn.Module, args: Any, output: Any) -> None:
        seen["embedded"] = output[1]

    def attended(module: nn.Module, args: Any, kwargs: dict[str, Tensor]) -> None:
        seen["modulated"] = kwargs["hidden_states"]

    def entered(module: nn.Module, args: Any, kwargs: Any) -> None:
        seen["call"] = Call(args, kwargs)

    first = transformer.transformer_blocks[0]
    transformer.time_embed.register_forward_hook(embedded)
    first.register_forward_pre_hook(entered, with_kwargs=True)
    first.attn1.register_forward_pre_hook(attended, with_kwargs=True)
    for call in (ltx.inputs(transformer), ltx.conditioned(transformer)):
        forward(transformer, call)
        with torch.no_grad():
            assert torch.equal(FAMILY.modulated(first, seen["call"]), seen["modulated"])
        last = seen["embedded"][-1]
        with torch.no_grad():
            assert torch.allclose(FAMILY.time_embedding(transformer, torch.tensor([300.0, 500.0]))[1], last, atol=1e-6)

"""Wan Animate: segments are runs, the face's attention is left alone, and a cache holds the face's share."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import vidaccel
from tests.pipelines.cases import DENSE, NEVER_DENSE, Everything, error, forward
from tests.pipelines.models import wan, wan_animate
from vidaccel.layout import TokenLayout
from vidaccel.pipelines import family_of

TWO_SEGMENTS: dict[str, Any] = wan_animate.CALL | {
    "pose_video": wan.clip(33), "face_video": wan_animate.face(33), "output_type": "np",
}  # fmt: skip


def generate(pipe: Any) -> np.ndarray:
    return np.asarray(pipe(**TWO_SEGMENTS, generator=torch.Generator().manual_seed(0)).frames)


def watched(transformer: Any, calls: list[dict[str, Any]]) -> tuple[list[Tensor], list[Tensor]]:
    """What leaves the first block with the face's share, and what leaves all blocks, in each of some forwards."""
    entered: list[Tensor] = []
    left: list[Tensor] = []

    def first(_: nn.Module, args: Any, out: Tensor) -> None:
        entered.append(args[0] + out)

    def last(_: nn.Module, args: Any) -> None:
        left.append(args[0])

    hooks = [transformer.face_adapter[0].register_forward_hook(first),
             transformer.norm_out.register_forward_pre_hook(last)]  # fmt: skip
    for call in calls:
        forward(transformer, call)
    for hook in hooks:
        hook.remove()
    return entered, left


def test_each_segment_is_a_run_of_its_own() -> None:
    pipe, method = wan_animate.pipeline(), Everything()
    stock = generate(pipe)
    assert stock.shape[1] == 33
    with vidaccel.enable(pipe, **DENSE) as session:
        assert np.array_equal(generate(pipe), stock)
    assert session.runs == 2 and TokenLayout(**session.summary().to_dict()["layout"]) == TokenLayout(6, 4, 6)
    with vidaccel.enable(pipe, method, min_tokens=0, schedule=NEVER_DENSE) as session:
        np.testing.assert_allclose(generate(pipe), stock, atol=2e-3)
    # What a method remembers is empty at the start of each: the last number counts its calls.
    run = [(branch, layer, step, 4, step) for step in range(4) for branch in ("cond", "uncond") for layer in range(2)]
    assert method.log == run + run and session.runs == 2


def test_attention_to_the_face_keeps_its_processors() -> None:
    transformer: Any = wan_animate.build()
    before = [each.processor for each in transformer.face_adapter]
    with vidaccel.enable(transformer, "radial", num_inference_steps=4):
        assert [each.processor for each in transformer.face_adapter] == before
        assert all(type(block.attn1.processor).__name__ == "WanProcessor" for block in transformer.blocks)


@pytest.mark.parametrize("blocks", [1, 2], ids=["after every block", "after the first block of two"])
def test_a_reused_stack_gives_what_it_gave_with_the_face_in_it(blocks: int) -> None:
    transformer = wan_animate.build(inject_face_latents_blocks=blocks)
    call = wan_animate.inputs(transformer)
    other = call | {"face_pixel_values": -call["face_pixel_values"]}
    assert error(forward(transformer, other), forward(transformer, call)) > 1e-4
    cache = {"name": "static", "compute": [0], "min_steps": 1, "predictor": "hold"}
    with vidaccel.enable(transformer, None, cache=cache, schedule=NEVER_DENSE, num_inference_steps=4) as session:
        _, left = watched(transformer, [call, call | {"timestep": call["timestep"] - 50}])
    assert session.summary().to_dict()["cache"]["computed_share"] == 0.5
    assert error(left[1], left[0]) < 1e-6


def test_blocks_that_are_reused_after_the_first_add_what_they_added() -> None:
    transformer = wan_animate.build()
    call = wan_animate.inputs(transformer)
    later = call | {"timestep": call["timestep"] - 400, "hidden_states": call["hidden_states"] * 0.9}
    cache = {"name": "first_block", "threshold": 100.0, "min_steps": 1, "first_steps": 1, "predictor": "hold"}
    with vidaccel.enable(transformer, None, cache=cache, schedule=NEVER_DENSE, num_inference_steps=4) as session:
        entered, left = watched(transformer, [call, later])
    assert session.summary().to_dict()["cache"]["computed_share"] == 0.5
    assert error(entered[1], entered[0]) > 1e-3
    assert error(left[1] - entered[1], left[0] - entered[0]) < 1e-5


def test_more_steps_are_dense_as_every_run_is_conditioned() -> None:
    transformer = wan_animate.build()
    assert family_of(transformer).schedule(transformer, transformer).resolve(20, 40).first_step == 7

"""Wan VACE: the condition's blocks come first, reference images are frames, and both experts are served."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from diffusers import WanVACEPipeline

import vidaccel
from tests import tiny
from tests.pipelines.cases import DENSE, NEVER_DENSE, Everything, error, forward, frames
from tests.pipelines.models import wan, wan_vace
from vidaccel.layout import TokenLayout
from vidaccel.pipelines import family_of
from vidaccel.plan import AttentionPlan, BlockMask

CALL = wan.CALL | {"video": wan.clip()}


@dataclass(frozen=True)
class Condition(vidaccel.Method):
    """Leaves half of the pairs out in the condition's blocks, and none in the video's."""

    name: ClassVar[str] = "condition"

    def plan(self, query: Any, key: Any, value: Any, site: Any, state: dict[str, Any]) -> AttentionPlan:
        if site.layer >= 2:
            return AttentionPlan()
        blocks = -(-site.layout.tokens // 16)
        kept = torch.arange(blocks)[:, None] >= torch.arange(blocks)
        return AttentionPlan(BlockMask.from_blocks(kept[None], 16, 16, site.layout.tokens, site.layout.tokens))


def two_experts() -> Any:
    parts = wan.parts(tiny.tiny_wan()) | {"transformer": wan_vace.build(), "transformer_2": wan_vace.build()}
    pipe = WanVACEPipeline(**parts, boundary_ratio=0.75)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_blocks_of_the_condition_run_first() -> None:
    transformer = wan_vace.build()
    sites = family_of(transformer).sites(transformer)
    expected = (*transformer.vace_blocks, *transformer.blocks)
    assert [id(site) for site in sites] == [id(block.attn1) for block in expected]
    method = Everything()
    with vidaccel.enable(transformer, method, min_tokens=0, schedule=NEVER_DENSE):
        forward(transformer, wan_vace.inputs(transformer))
    assert [layer for _, layer, *_ in method.log] == [0, 1, 2, 3, 4]


def test_sparse_attention_of_the_condition_reaches_the_video_by_the_hints() -> None:
    transformer = wan_vace.build()
    call = wan_vace.inputs(transformer)
    silent = call | {"control_hidden_states_scale": torch.zeros(2)}
    stock, unhinted = forward(transformer, call), forward(transformer, silent)
    with vidaccel.enable(transformer, Condition(), min_tokens=0, schedule=NEVER_DENSE):
        assert error(forward(transformer, call), stock) > 1e-6
        assert torch.equal(forward(transformer, silent), unhinted)


@pytest.mark.parametrize("images", [0, 1, 2])
def test_reference_images_are_frames_of_the_grid(images: int) -> None:
    pipe = wan_vace.pipeline()
    given = {"reference_images": [tiny.tiny_image(index) for index in range(images)]} if images else {}
    call = CALL | given
    stock = frames(pipe, **call)
    with vidaccel.enable(pipe, **DENSE) as session:
        assert np.array_equal(frames(pipe, **call), stock)
    summary = session.summary().to_dict()
    assert TokenLayout(**summary["layout"]) == TokenLayout(5 + images, 4, 6)
    assert summary["calls"] == {"sparse": 0, "dense": 2 * 4 * 5}


def test_both_experts_are_served_in_one_run() -> None:
    pipe = two_experts()
    stock, method = frames(pipe, **CALL), Everything()
    with vidaccel.enable(pipe, **DENSE):
        assert np.array_equal(frames(pipe, **CALL), stock)
    with vidaccel.enable(pipe, method, min_tokens=0, schedule=NEVER_DENSE) as session:
        np.testing.assert_allclose(frames(pipe, **CALL), stock, atol=2e-3)
    assert [entry[:4] for entry in method.log] == [
        (branch, layer, step, 4) for step in range(4) for branch in ("cond", "uncond") for layer in range(5)
    ]
    assert session.runs == 1 and session.summary().to_dict()["calls"] == {"sparse": 40, "dense": 0}


def test_more_steps_are_dense_as_every_run_is_conditioned() -> None:
    pipe = wan_vace.pipeline()
    family = family_of(pipe.transformer)
    for target in (pipe, pipe.transformer):
        assert family.schedule(target, pipe.transformer).resolve(20, 5).first_step == 7

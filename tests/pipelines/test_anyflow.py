"""AnyFlow: both guidance passes in one call, a clip that goes on from another, and the causal class refused."""

from __future__ import annotations

import numpy as np
import pytest
from diffusers import AnyFlowFARTransformer3DModel

import vidaccel
from tests import tiny
from tests.pipelines.cases import DENSE, NEVER_DENSE, Everything, forward, frames
from tests.pipelines.models import anyflow, wan
from vidaccel.layout import TokenLayout


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_a_step_is_one_call_also_where_a_clip_goes_on(scale: float) -> None:
    pipe, method = anyflow.pipeline(), Everything()
    call = wan.CALL | {"video": wan.clip(5), "guidance_scale": scale,
                       "negative_prompt": "blurry" if scale > 1 else None}  # fmt: skip
    stock = frames(pipe, **call)
    assert not np.array_equal(stock, frames(pipe, **call | {"video": wan.clip(10)[5:]}))
    with vidaccel.enable(pipe, **DENSE) as session:
        assert np.array_equal(frames(pipe, **call), stock)
    assert TokenLayout(**session.summary().to_dict()["layout"]) == wan.LAYOUT
    with vidaccel.enable(pipe, method, min_tokens=0, schedule=NEVER_DENSE) as session:
        np.testing.assert_allclose(frames(pipe, **call), stock, atol=2e-3)
    assert [entry[:4] for entry in method.log] == [("cond", layer, step, 4) for step in range(4) for layer in range(2)]


def test_a_cache_by_latents_with_channels_after_frames() -> None:
    transformer = anyflow.build()
    call = anyflow.inputs(transformer)
    cache = {"name": "easycache", "min_steps": 1, "first_steps": 2, "threshold": 1e6}
    with vidaccel.enable(transformer, None, cache=cache, num_inference_steps=6, schedule=NEVER_DENSE) as session:
        outs = [forward(transformer, call | {"timestep": call["timestep"] * (1 - step / 10)}) for step in range(4)]
    assert session.summary().to_dict()["cache"]["computed_share"] == 0.5 and outs[-1].isfinite().all()


def test_the_causal_class_is_refused() -> None:
    far = AnyFlowFARTransformer3DModel(num_layers=1, num_attention_heads=2, attention_head_dim=64, in_channels=16,
                                       out_channels=16, text_dim=tiny.TEXT_DIM, freq_dim=32, ffn_dim=64)  # fmt: skip
    with pytest.raises(ValueError, match="AnyFlowFARTransformer3DModel is not supported"):
        vidaccel.enable(far, "radial", num_inference_steps=4)

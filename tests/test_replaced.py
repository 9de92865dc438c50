"""What is copied, replaced or taken away while sparse attention is enabled: said at the next run, or exactly stock."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from diffusers import WanVideoToVideoPipeline

import vidaccel
from tests import tiny

SETTING: dict[str, Any] = {"decay": 0.0, "block": 16, "split": 16, "min_tokens": 0,
                           "schedule": {"dense_first_steps": 1, "dense_first_layers": 0}}  # fmt: skip
CACHE = {"name": "static", "compute": [0, 2], "min_steps": 1}


@pytest.fixture
def pipe() -> Iterator[Any]:
    pipe = tiny.tiny_wan()
    yield pipe
    vidaccel.disable(pipe)


def test_a_replaced_transformer_is_said_before_the_first_step(pipe: Any) -> None:
    vidaccel.enable(pipe, "radial", **SETTING)
    own, pipe.transformer = pipe.transformer, tiny.tiny_wan(seed=1).transformer
    stock = tiny.generate(tiny.tiny_wan(seed=1))
    calls: list[Any] = []
    hook = pipe.transformer.register_forward_pre_hook(lambda *_: calls.append(1))
    with pytest.raises(RuntimeError, match="transformer of WanPipeline was replaced after enable"):
        tiny.generate(pipe)
    assert not calls
    hook.remove()
    session = vidaccel.enable(pipe, "radial", **SETTING)
    tiny.generate(pipe)
    assert session.summary().to_dict()["calls"]["sparse"] > 0
    assert type(own.blocks[0].attn1.processor).__name__ == "WanAttnProcessor" and not own._forward_pre_hooks
    vidaccel.disable(pipe)
    assert "progress_bar" not in pipe.__dict__ and tiny.generate(pipe).shape == stock.shape


def test_disable_undoes_a_replaced_transformer(pipe: Any) -> None:
    vidaccel.enable(pipe, "radial", cache=CACHE, **SETTING)
    own, pipe.transformer = pipe.transformer, tiny.tiny_wan(seed=1).transformer
    vidaccel.disable(pipe)
    assert not own._forward_pre_hooks and not own._forward_hooks and "blocks" not in own.__dict__
    tiny.generate(pipe)


def test_hooks_that_were_dropped_are_missed(pipe: Any) -> None:
    vidaccel.enable(pipe, "radial", **SETTING)
    pipe.transformer._forward_pre_hooks.clear()
    with pytest.raises(RuntimeError, match="hooks of WanTransformer3DModel were removed"):
        tiny.generate(pipe)


def test_processors_that_were_replaced_are_missed(pipe: Any) -> None:
    vidaccel.enable(pipe, "radial", **SETTING)
    pipe.transformer.set_attn_processor(type(pipe.transformer.blocks[0].attn2.processor)())
    with pytest.raises(RuntimeError, match="processors of WanTransformer3DModel were replaced"):
        tiny.generate(pipe)


@pytest.mark.parametrize("cache", [None, CACHE], ids=["no cache", "cache"])
def test_a_deep_copy_is_stock_and_leaves_the_original_alone(pipe: Any, cache: Any) -> None:
    stock = tiny.generate(pipe)
    session = vidaccel.enable(pipe, "radial", cache=cache, **SETTING)
    sparse = tiny.generate(pipe)
    assert not np.array_equal(sparse, stock)
    copied = copy.deepcopy(pipe)
    assert np.array_equal(tiny.generate(copied), stock) and session.runs == 1
    assert list(map(id, copied.transformer.blocks)) == list(map(id, copied.transformer._modules["blocks"]))
    assert np.array_equal(tiny.generate(pipe), sparse)
    with vidaccel.enable(copied, "radial", cache=cache, **SETTING):
        assert np.array_equal(tiny.generate(copied), sparse)
    assert np.array_equal(tiny.generate(pipe), sparse)
    alone = copy.deepcopy(pipe.transformer)
    vidaccel.disable(pipe)
    pipe.transformer = alone
    assert np.array_equal(tiny.generate(pipe), stock)


def test_a_pipeline_made_from_an_enabled_one_shares_what_is_enabled(pipe: Any) -> None:
    session = vidaccel.enable(pipe, "radial", **SETTING)
    other = WanVideoToVideoPipeline.from_pipe(pipe)
    video = [tiny.tiny_image(seed) for seed in range(17)]
    call = tiny.wan_inputs(pipe, num_inference_steps=8)
    del call["num_frames"]
    other.set_progress_bar_config(disable=True)
    other(**call, video=video, strength=0.5)
    summary = session.summary().to_dict()
    assert summary["runs"] == 1 and summary["steps"] == 4 and summary["calls"] == {"sparse": 12, "dense": 4}
    vidaccel.disable(other)
    assert not pipe.transformer._forward_pre_hooks and "progress_bar" not in pipe.__dict__

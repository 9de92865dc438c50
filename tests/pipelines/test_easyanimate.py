"""EasyAnimate: text of one or two encoders first, blocks with and without weights for it, and further channels."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import vidaccel
from tests.pipelines.cases import SPARSE, gradient
from tests.pipelines.models import easyanimate
from tests.pipelines.signals import embedded_time, read_by_attention
from vidaccel.layout import TokenLayout
from vidaccel.pipelines import family_of
from vidaccel.pipelines.base import Call

RADIAL = {"decay": 0.0, "split": 16, "sink": False}


@pytest.fixture
def transformer() -> Any:
    return easyanimate.build()


def test_layout_by_name_by_position_and_of_a_real_size(transformer: Any) -> None:
    family = family_of(transformer)
    # 49 frames of 576 x 1008.
    states, text = torch.empty(1, 16, 13, 72, 126, device="meta"), torch.empty(1, 256, 3584, device="meta")
    second, time = torch.empty(1, 77, 4096, device="meta"), torch.tensor([500.0])
    one, two = TokenLayout(13, 36, 63, text_before=256), TokenLayout(13, 36, 63, text_before=333)
    named = {"encoder_hidden_states": text, "encoder_hidden_states_t5": second}
    for args, kwargs, expected in (
        ((states, time, None, text), {}, one),
        ((states, time, None, text, None), {}, one),
        ((states, time, None, text, second), {}, two),
        ((states, time), named, two),
        ((states, time), {"encoder_hidden_states": text}, one),
    ):
        assert family.layout(transformer, Call(args, kwargs)) == expected
    with pytest.raises(ValueError, match="called without encoder_hidden_states"):
        family.layout(transformer, Call((states, time), {}))


def test_training_goes_through_the_stock_processor(transformer: Any) -> None:
    call = easyanimate.inputs(transformer)
    stock = gradient(transformer, call)
    with vidaccel.enable(transformer, "radial", num_inference_steps=4, **SPARSE | RADIAL):
        assert torch.equal(gradient(transformer, call), stock)


@torch.no_grad()
@pytest.mark.parametrize("layer", [0, 2], ids=["text has its weights", "text shares the video's"])
def test_masked_calls_and_calls_without_text_go_through_the_stock_processor(transformer: Any, layer: int) -> None:
    attn = transformer.transformer_blocks[layer].attn1
    video, text = torch.randn(1, 24, 128), torch.randn(1, 4, 128)
    calls = [(text, torch.rand(1, 1, 28, 28) > 0.3), (None, None)]
    expected = [attn(video, *each) for each in calls]
    with vidaccel.enable(transformer, "radial", num_inference_steps=4, **SPARSE | RADIAL):
        found = [attn(video, *each) for each in calls]
    assert torch.equal(found[0][0], expected[0][0]) and torch.equal(found[0][1], expected[0][1])
    assert torch.equal(found[1][0], expected[1][0]) and found[1][1] is expected[1][1] is None


def test_signals(transformer: Any) -> None:
    call = easyanimate.inputs(transformer)
    said, read = read_by_attention(transformer, call)
    assert torch.equal(said, read)
    with torch.no_grad():
        embedding, embedded = embedded_time(transformer, call, transformer.time_embedding)
    assert torch.equal(embedding, embedded)


@pytest.mark.parametrize(("channels", "dense"), [(easyanimate.CHANNELS, 12), (easyanimate.INPAINTED, 17)])
def test_default_schedule_keeps_more_steps_dense_with_further_channels(channels: int, dense: int) -> None:
    transformer = easyanimate.build(channels)
    assert family_of(transformer).schedule(None, transformer).resolve(50, 48).first_step == dense

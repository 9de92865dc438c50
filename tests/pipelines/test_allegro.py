"""Allegro: other masks and training go to the stock processor, and what the family says of a forward is so."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import vidaccel
from tests.pipelines.cases import SPARSE, error, forward, gradient, through
from tests.pipelines.models import allegro
from tests.pipelines.signals import embedded_time, read_by_attention
from vidaccel.layout import TokenLayout
from vidaccel.pipelines import family_of
from vidaccel.pipelines.base import Call

RADIAL = {"decay": 0.0, "split": 16, "sink": False}


@pytest.fixture
def transformer() -> Any:
    return allegro.build()


def test_a_mask_of_the_video_goes_through_the_stock_processor(transformer: Any) -> None:
    call = allegro.inputs(transformer)
    mask = torch.ones(2, 5, 8, 12)
    mask[:, 3:] = 0
    stock = forward(transformer, call | {"attention_mask": mask})
    assert error(stock, forward(transformer, call)) > 1e-3
    with vidaccel.enable(transformer, "radial", num_inference_steps=4, **SPARSE | RADIAL):
        assert torch.equal(forward(transformer, call | {"attention_mask": mask}), stock)


def test_training_goes_through_the_stock_processor(transformer: Any) -> None:
    call = allegro.inputs(transformer)
    stock = gradient(transformer, call)
    with vidaccel.enable(transformer, "radial", num_inference_steps=4, **SPARSE | RADIAL):
        assert torch.equal(gradient(transformer, call), stock)


def test_no_rotary_embedding(transformer: Any) -> None:
    call = allegro.inputs(transformer) | {"image_rotary_emb": None}
    stock = forward(transformer, call)
    with vidaccel.enable(transformer, "radial", num_inference_steps=4, schedule={"dense_first_steps": 1.0}):
        assert torch.equal(forward(transformer, call), stock)


def test_text_stays_out_of_the_sequence_and_patches_in_one_frame() -> None:
    transformer = allegro.build(patch_size_t=2)
    states = torch.empty(1, 4, 22, 90, 160, device="meta")
    assert family_of(transformer).layout(transformer, Call((states,), {})) == TokenLayout(22, 45, 80)
    # A wrong grid would be refused in the first layer.
    call = allegro.inputs(transformer)
    assert error(through(transformer, call, "radial", density=1.0, block=16), through(transformer, call, "svg")) < 1


def test_signals(transformer: Any) -> None:
    call = allegro.inputs(transformer)
    said, read = read_by_attention(transformer, call)
    assert torch.equal(said, read)
    with torch.no_grad():
        embedding, (_, embedded) = embedded_time(transformer, call, transformer.adaln_single)
    assert torch.equal(embedding, embedded)

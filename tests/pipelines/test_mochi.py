"""Mochi: rows of one batch have texts of different lengths, heads rotate differently, and timesteps rise."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import vidaccel
from tests.pipelines.cases import NEVER_DENSE, SPARSE, Everything, error, forward, gradient, graphs, through
from tests.pipelines.models import mochi
from tests.pipelines.signals import read_by_attention
from vidaccel.layout import TokenLayout
from vidaccel.pipelines import family_of
from vidaccel.pipelines.base import Call
from vidaccel.pipelines.processor import Mode

RADIAL = {"decay": 0.0, "split": 16, "sink": False}
MASKS = {
    "one row": [[1] * 16],
    "no text in a row": [[1] * 16, [0] * 16],
    "holes": [[0, 1, 1, 0] * 4, [1] * 5 + [0] * 10 + [1]],
}


@pytest.fixture
def transformer() -> Any:
    return mochi.build()


def masked(transformer: Any, rows: list[list[int]]) -> dict[str, Any]:
    """A forward with these text masks."""
    call = mochi.inputs(transformer, tuple(len(row) for row in rows))
    return call | {"encoder_attention_mask": torch.tensor(rows, dtype=torch.bool)}


@pytest.mark.parametrize("mask", MASKS)
def test_any_text_mask_is_as_in_stock(transformer: Any, mask: str) -> None:
    call = masked(transformer, MASKS[mask])
    stock = forward(transformer, call)
    with vidaccel.enable(transformer, "radial", num_inference_steps=4, schedule={"dense_first_steps": 1.0}):
        assert torch.equal(forward(transformer, call), stock)
    for backend in ("reference", "cpu"):
        assert error(through(transformer, call, Everything(), backend=backend), stock) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("layer", [0, 2], ids=["text goes on", "last block"])
@pytest.mark.parametrize("sparse", [False, True])
def test_outputs_of_padding_are_those_of_stock(transformer: Any, layer: int, sparse: bool) -> None:
    attn = transformer.transformer_blocks[layer].attn1
    video, text = torch.randn(2, 120, 128), torch.randn(2, 16, 64)
    rotary = torch.rand(2, 120, 2, 32).unbind()
    mask = torch.tensor(MASKS["holes"], dtype=torch.bool)
    expected = attn(video, text, mask, image_rotary_emb=rotary)
    with vidaccel.enable(transformer, Everything(), min_tokens=0, schedule=NEVER_DENSE):
        forward(transformer, mochi.inputs(transformer))
        attn.processor.mode = Mode.BY_HANDLE if sparse else Mode.DENSE
        found = attn(video, text, mask, image_rotary_emb=rotary)
    for each, other in zip(found, expected, strict=True):
        assert error(each, other) < 1e-5 if sparse else torch.equal(each, other)


def test_texts_of_different_lengths_in_a_batch_are_as_alone(transformer: Any) -> None:
    call = mochi.inputs(transformer, (16, 5, 1))
    together = through(transformer, call, "radial", **SPARSE | RADIAL)
    for row in range(3):
        alone = {name: each[row : row + 1] for name, each in call.items()}
        assert error(together[row : row + 1], through(transformer, alone, "radial", **SPARSE | RADIAL)) < 1e-5
    assert error(together, forward(transformer, call)) > 1e-3


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_padding_never_reaches_the_video(transformer: Any, backend: str) -> None:
    call = mochi.inputs(transformer, (5,))
    other = call["encoder_hidden_states"].clone()
    other[:, 5:] = 100.0
    # The model's own pooling of the text reads valid tokens alone.
    options: dict[str, Any] = SPARSE | RADIAL | {"backend": backend}
    expected = through(transformer, call, "radial", **options)
    assert torch.equal(through(transformer, call | {"encoder_hidden_states": other}, "radial", **options), expected)


def test_compiled_blocks_are_as_many_graphs_as_stock_dense_and_sparse(transformer: Any) -> None:
    call, blocks = mochi.inputs(transformer), list(transformer.transformer_blocks)
    stock = forward(transformer, call)
    count, _ = graphs(transformer, blocks, call)
    for setting in (SPARSE | RADIAL, {"num_inference_steps": 4, "schedule": {"dense_first_steps": 1.0}}):
        with vidaccel.enable(transformer, "radial", **setting):
            expected = forward(transformer, call)
            found, outputs = graphs(transformer, blocks, call)
        # The last block is of a kind of its own.
        assert found == count == 2 and all(torch.equal(each, expected) for each in outputs)
    assert torch.equal(expected, stock)


def test_steps_of_a_run_whose_timesteps_rise(transformer: Any) -> None:
    method = Everything()
    with vidaccel.enable(transformer, method, num_inference_steps=3, min_tokens=0, schedule=NEVER_DENSE) as session:
        for timestep in (0.0, 10.0, 400.0, 0.0):
            call = mochi.inputs(transformer)
            forward(transformer, call | {"timestep": torch.full((2,), timestep)})
    assert [step for _, layer, step, _, _ in method.log if layer == 0] == [0, 1, 2, 0] and session.runs == 2


def test_steps_of_a_pipeline() -> None:
    pipe, method = mochi.pipeline(), Everything()
    with vidaccel.enable(pipe, method, min_tokens=0, schedule=NEVER_DENSE) as session:
        for _ in range(2):
            pipe(**mochi.CALL, generator=torch.Generator().manual_seed(0))
    once = [("cond_uncond", layer, step, 4, step) for step in range(4) for layer in range(3)]
    assert method.log == 2 * once and session.runs == 2


def test_a_cache_reuses_steps_of_a_pipeline() -> None:
    pipe = mochi.pipeline()
    given = {"name": "static", "compute": [0, 2], "min_steps": 1, "predictor": "hold"}
    with vidaccel.enable(pipe, None, cache=given, schedule=NEVER_DENSE) as session:
        pipe(**mochi.CALL, generator=torch.Generator().manual_seed(0))
    assert session.summary().to_dict()["cache"]["computed_share"] == 0.5


def test_default_schedule_reaches_the_noise_that_other_models_have_after_a_quarter() -> None:
    pipe = mochi.pipeline()
    pipe(**mochi.CALL | {"num_inference_steps": 64}, generator=torch.Generator().manual_seed(0))
    plan = family_of(pipe.transformer).schedule(pipe, pipe.transformer).resolve(64, 48)
    noise = 1 - pipe.scheduler.timesteps[plan.first_step] / 1000
    assert (plan.first_step, plan.first_layer) == (38, 1) and 0.92 < noise < 0.95


def test_signals(transformer: Any) -> None:
    said, read = read_by_attention(transformer, mochi.inputs(transformer))
    assert torch.equal(said, read)
    with pytest.raises(ValueError, match="mochi has no signal of the timestep alone"):
        family_of(transformer).time_embedding(transformer, torch.tensor([500.0]))


def test_layout_of_a_real_size_and_by_position(transformer: Any) -> None:
    states, text = torch.empty(1, 12, 28, 60, 106, device="meta"), torch.empty(1, 256, 4096, device="meta")
    family = family_of(transformer)
    assert family.layout(transformer, Call((states, text), {})) == TokenLayout(28, 30, 53, text_after=256)
    timestep: Tensor = torch.tensor([500.0])
    assert family.timestep(Call((states, text, timestep), {})) is timestep


def test_training_goes_through_the_stock_processor(transformer: Any) -> None:
    call = mochi.inputs(transformer)
    stock = gradient(transformer, call)
    with vidaccel.enable(transformer, "radial", num_inference_steps=4, **SPARSE | RADIAL):
        assert torch.equal(gradient(transformer, call), stock)

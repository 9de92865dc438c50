"""Motif-Video: text that is padded at either side, with cross-attention, and a decoder that stays as it is."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import vidaccel
from tests.pipelines.cases import (
    DENSE,
    METHODS,
    NEVER_DENSE,
    SPARSE,
    Everything,
    error,
    forward,
    gradient,
    graphs,
    through,
)
from tests.pipelines.models.motif import CROSS, IMAGE, TEXT, build, guided, inputs, tiny_motif
from vidaccel.layout import TokenLayout
from vidaccel.pipelines import family_of
from vidaccel.pipelines.base import Call

ALL_DENSE = DENSE | {"num_inference_steps": 4}
SIDES = pytest.mark.parametrize("left", [False, True], ids=["padded at the end", "padded before"])


@pytest.fixture
def transformer() -> Any:
    """As real ones: with cross-attention and a decoder."""
    return build(**CROSS)


@SIDES
@pytest.mark.parametrize("image", [False, True], ids=["text", "image"])
def test_dense_is_bit_identical_and_a_full_mask_is_stock_to_rounding(transformer: Any, left: bool, image: bool) -> None:
    call = inputs(transformer, left=left, image=image)
    stock = forward(transformer, call)
    with vidaccel.enable(transformer, **ALL_DENSE) as session:
        assert torch.equal(forward(transformer, call), stock)
        assert session.summary().to_dict()["calls"] == {"sparse": 0, "dense": 4}
    for backend in ("reference", "cpu"):
        assert error(through(transformer, call, Everything(), backend=backend), stock) < 1e-5
    # Dense where only the layer itself finds out.
    with vidaccel.enable(transformer, **ALL_DENSE, check_finite=True):
        assert error(forward(transformer, call), stock) < 1e-5


def test_without_a_mask(transformer: Any) -> None:
    call = inputs(transformer) | {"encoder_attention_mask": None}
    stock = forward(transformer, call)
    with vidaccel.enable(transformer, **ALL_DENSE):
        assert torch.equal(forward(transformer, call), stock)
    assert error(through(transformer, call, Everything()), stock) < 1e-5


@pytest.mark.parametrize("method", METHODS)
def test_either_side_of_padding_gives_the_same_video(method: str) -> None:
    """Text tokens have no positions, so that their order does not count."""
    transformer = build(**CROSS, num_decoder_layers=0)
    at_end, before = inputs(transformer), inputs(transformer, left=True)
    before["encoder_hidden_states"] = at_end["encoder_hidden_states"].flip(1)
    setting = SPARSE | METHODS[method]
    found = [through(transformer, call, method, **setting) for call in (at_end, before)]
    assert error(*found) < 1e-5 and error(found[0], forward(transformer, at_end)) > 1e-3


@SIDES
def test_padding_never_reaches_the_video(transformer: Any, left: bool) -> None:
    call = inputs(transformer, left=left)
    other = call["encoder_hidden_states"].masked_fill(~call["encoder_attention_mask"][:, :, None], 100.0)
    for method, options in ((Everything(), {}), ("radial", SPARSE | METHODS["radial"])):
        expected = through(transformer, call, method, **options)
        assert torch.equal(through(transformer, call | {"encoder_hidden_states": other}, method, **options), expected)


@SIDES
def test_compiled_blocks(transformer: Any, left: bool) -> None:
    call, setting = inputs(transformer, left=left), SPARSE | METHODS["radial"]
    blocks = [*transformer.transformer_blocks, *transformer.single_transformer_blocks]
    stock, _ = graphs(transformer, blocks, call)
    expected = through(transformer, call, "radial", **setting)
    with vidaccel.enable(transformer, "radial", **setting):
        count, found = graphs(transformer, blocks, call)
    # One more: the decoder's blocks have the stock processor.
    assert count <= stock + 1 and all(torch.equal(each, expected) for each in found)


def test_the_decoder_and_cross_attention_are_left_alone(transformer: Any) -> None:
    before = {name: module.processor for name, module in transformer.named_modules() if hasattr(module, "processor")}
    with vidaccel.enable(transformer, "radial", num_inference_steps=4):
        touched = [name for name, processor in before.items() if transformer.get_submodule(name).processor != processor]
    assert sorted(touched) == sorted(
        [f"transformer_blocks.{i}.attn" for i in (0, 1)] + [f"single_transformer_blocks.{i}.attn" for i in (0, 1)]
    )
    assert len(family_of(transformer).sites(build(num_decoder_layers=0))) == 6
    assert len(family_of(transformer).sites(build(num_decoder_layers=4))) == 2


def test_training_goes_through_the_stock_processor(transformer: Any) -> None:
    call = inputs(transformer)
    stock = gradient(transformer, call)
    with vidaccel.enable(transformer, "radial", num_inference_steps=4, **SPARSE | METHODS["radial"]):
        assert torch.equal(gradient(transformer, call), stock)


def test_layout_from_arguments_by_name_and_by_position(transformer: Any) -> None:
    call, family = inputs(transformer, image=True), family_of(transformer)
    for args, kwargs in (((), call), (tuple(call.values()), {})):
        assert family.layout(transformer, Call(args, kwargs)) == TokenLayout(5, 4, 6, text_after=IMAGE + TEXT)
    del call["image_embeds"]
    assert family.layout(transformer, Call((), call)) == TokenLayout(5, 4, 6, text_after=TEXT)


def test_steps_and_passes_of_the_guider() -> None:
    pipe, method = tiny_motif(), Everything()
    with vidaccel.enable(pipe, method, min_tokens=0, schedule=NEVER_DENSE):
        pipe(**guided() | {"output_type": "latent"}, generator=torch.Generator().manual_seed(0))
    assert method.log == [(branch, layer, step, 4, step) for step in range(4) for branch in ("cond", "uncond")
                          for layer in range(4)]  # fmt: skip


def test_default_schedule(transformer: Any) -> None:
    family = family_of(transformer)
    image = type("MotifVideoImage2VideoPipeline", (), {})()
    first = [family.schedule(pipe, transformer).resolve(50, 28).first_step for pipe in (tiny_motif(), image)]
    assert first == [12, 17]

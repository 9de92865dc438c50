"""Kandinsky 5: channels last, its own sparse attention refused, and text blocks left alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vidaccel
from tests.pipelines.cases import NEVER_DENSE, Everything, forward, gradient
from tests.pipelines.models import kandinsky5
from vidaccel.layout import TokenLayout
from vidaccel.pipelines.base import Call
from vidaccel.pipelines.kandinsky5 import FAMILY

SPARSE: dict[str, Any] = {"min_tokens": 0, "schedule": NEVER_DENSE, "num_inference_steps": 4}
NABLA = {"attention_type": "nabla", "attention_wT": 3, "attention_wH": 3, "attention_wW": 3, "attention_P": 0.9,
         "attention_add_sta": True, "attention_method": "topcdf"}  # fmt: skip


@pytest.fixture
def transformer() -> Any:
    return kandinsky5.build()


def test_its_own_sparse_attention_is_refused_and_can_be_switched_off_as_the_error_says() -> None:
    pipe = kandinsky5.pipeline()
    pipe.transformer.register_to_config(**NABLA)
    # Squares of 8 by 8 tokens.
    call = kandinsky5.call() | {"height": 128, "width": 128, "num_frames": 9, "output_type": "latent"}
    assert pipe.get_sparse_params(torch.empty(1, 3, 16, 16, 4), "cpu")["to_fractal"]
    session = vidaccel.enable(pipe, "radial", min_tokens=0, block=16)
    with pytest.raises(ValueError, match=r"register_to_config\(attention_type='regular'\)"):
        pipe(**call)
    pipe.transformer.register_to_config(attention_type="regular")
    assert pipe(**call, generator=torch.Generator().manual_seed(0)).frames.isfinite().all()
    assert TokenLayout(**session.summary().to_dict()["layout"]) == TokenLayout(3, 8, 8)


def test_a_cache_alone_leaves_its_own_sparse_attention_be(transformer: Any) -> None:
    call = Call((), kandinsky5.inputs(transformer) | {"sparse_params": {"to_fractal": True}})
    assert FAMILY.layout(transformer, call) == TokenLayout(5, 4, 6)
    with vidaccel.enable(transformer, "radial", num_inference_steps=4):
        for each in (call, Call(tuple(range(7)) + (call.kwargs["sparse_params"],), {})):
            with pytest.raises(ValueError, match="sparse_params"):
                FAMILY.layout(transformer, each)


def test_only_the_self_attention_of_video_blocks_is_touched(transformer: Any) -> None:
    before = {name: each.processor for name, each in transformer.named_modules() if hasattr(each, "processor")}
    with vidaccel.enable(transformer, "radial", num_inference_steps=4):
        touched = [name for name, each in before.items() if transformer.get_submodule(name).processor is not each]
    assert touched == [f"visual_transformer_blocks.{index}.self_attention" for index in (0, 1)]
    assert len(before) == 5 and FAMILY.heads(transformer) == (2, 64)
    weight, last = FAMILY.output_projection(transformer, 1), transformer.visual_transformer_blocks[1].self_attention
    assert weight is not None and torch.equal(weight, last.out_layer.weight)


def test_latents_are_the_channels_that_the_output_has() -> None:
    transformer = kandinsky5.build_conditioned()
    call = kandinsky5.inputs(transformer)
    assert call["hidden_states"].shape[-1] == 9
    with torch.no_grad():
        out = transformer(**call).sample
    latents = FAMILY.latents(transformer, Call((), call))
    assert latents.shape == out.shape and torch.equal(latents, call["hidden_states"][..., :4])


def test_predictions_are_kept_of_outputs_as_the_pipeline_asks_for_them(transformer: Any) -> None:
    call = kandinsky5.inputs(transformer)
    cache = {"name": "static", "compute": [0], "min_steps": 1, "predictor": "hold", "reuse": "prediction"}
    with torch.no_grad(), vidaccel.enable(transformer, None, cache=cache, num_inference_steps=2, schedule=NEVER_DENSE):
        first = transformer(**call).sample
        second = transformer(**call | {"timestep": call["timestep"] * 0.9}).sample
    assert first.shape == (2, 5, 8, 12, 4) and torch.equal(first, second)


def test_training_goes_through_the_stock_processor(transformer: Any) -> None:
    call = kandinsky5.inputs(transformer)
    stock, method = gradient(transformer, call), Everything()
    with vidaccel.enable(transformer, method, **SPARSE):
        assert torch.equal(gradient(transformer, call), stock)
    assert not method.log


def test_bfloat16_with_the_parts_that_stay_in_fp32_is_bit_identical(transformer: Any) -> None:
    kept = tuple(transformer._keep_in_fp32_modules)
    transformer.to(torch.bfloat16)
    for name, module in transformer.named_modules():
        if any(each in name.split(".") for each in kept):
            module.float()
    call = {name: each.bfloat16() if isinstance(each, Tensor) and each.is_floating_point() else each
            for name, each in kandinsky5.inputs(transformer).items()}  # fmt: skip
    stock = forward(transformer, call)
    assert stock.dtype == torch.bfloat16
    with vidaccel.enable(transformer, "radial", **SPARSE | {"schedule": {"dense_first_steps": 1.0}}):
        assert torch.equal(forward(transformer, call), stock)


def test_the_signal_is_what_the_first_block_attends_to(transformer: Any) -> None:
    seen: dict[str, Any] = {}
    first = transformer.visual_transformer_blocks[0]

    def entered(module: nn.Module, args: Any, kwargs: Any) -> None:
        seen["call"] = Call(args, kwargs)

    first.register_forward_pre_hook(entered, with_kwargs=True)
    first.self_attention.register_forward_pre_hook(lambda module, args: seen.update(modulated=args[0]))
    forward(transformer, kandinsky5.inputs(transformer))
    with torch.no_grad():
        assert torch.equal(FAMILY.modulated(first, seen["call"]), seen["modulated"])

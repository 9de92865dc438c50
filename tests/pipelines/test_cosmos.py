"""Cosmos: timesteps of its three generations, condition frames, control networks, and the global backend alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vidaccel
from tests.pipelines.cases import NEVER_DENSE, Everything, error, forward, gradient
from tests.pipelines.models import cosmos
from vidaccel.pipelines.base import Call
from vidaccel.pipelines.cosmos import FAMILY

SPARSE: dict[str, Any] = {"min_tokens": 0, "schedule": NEVER_DENSE, "num_inference_steps": 4}
DENSE = SPARSE | {"schedule": {"dense_first_steps": 1.0}}


def controlled() -> tuple[Any, dict[str, Any]]:
    """Transfer 2.5 and a call of it: tokens of a picture beside the text, and what a control network gave."""
    transformer = cosmos.build(in_channels=5, extra_pos_embed_type=None, controlnet_block_every_n=1,
                               img_context_dim_in=8, img_context_num_tokens=4, img_context_dim_out=128,
                               text_embed_dim=128, use_crossattn_projection=True, crossattn_proj_in_channels=32,
                               encoder_hidden_states_channels=128)  # fmt: skip
    call = cosmos.conditioned(transformer)
    call["encoder_hidden_states"] = (call["encoder_hidden_states"], torch.randn(2, 4, 8))
    return transformer, call | {"block_controlnet_hidden_states": [torch.randn(2, 120, 128) for _ in range(2)]}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", cosmos.MODELS)
def test_timesteps_are_known_beforehand(name: str, dtype: torch.dtype) -> None:
    model = cosmos.MODELS[name]
    assert model.pipeline is not None
    pipe = model.pipeline()
    pipe.transformer.to(dtype)
    seen: list[Tensor] = []

    def before(module: nn.Module, args: Any, kwargs: Any) -> Any:
        seen.append(FAMILY.timestep(Call(args, kwargs)).max())
        return args, kwargs | {"encoder_hidden_states": kwargs["encoder_hidden_states"].to(dtype)}

    pipe.transformer.register_forward_pre_hook(before, with_kwargs=True)
    pipe(**model.call, generator=torch.Generator().manual_seed(0))
    scheduled = FAMILY.scheduled(pipe.scheduler)
    assert scheduled is not None and scheduled.shape == (4,) and (scheduled.diff() < 0).all()
    # Both passes of a step have the same.
    cond, uncond = torch.stack(seen[0::2]), torch.stack(seen[1::2])
    assert torch.equal(cond, uncond) and torch.equal(cond, scheduled.to(cond.dtype))
    assert FAMILY.scheduled(None) is None


def test_condition_frames_do_not_count_for_the_timestep() -> None:
    timestep = torch.full((2, 1, 5, 1, 1), 0.05)
    timestep[:, :, :2] = 0.1
    assert FAMILY.timestep(Call((), {"timestep": timestep})).max() == torch.tensor(0.05)
    assert FAMILY.timestep(Call((None, timestep), {})).max() == torch.tensor(0.05)
    assert FAMILY.timestep(Call((), {"timestep": torch.full((2,), -1.5)})).max() == -1.5


def test_a_control_network_s_additions_are_kept() -> None:
    transformer, call = controlled()
    stock = forward(transformer, call)
    assert not torch.equal(stock, forward(transformer, call | {"block_controlnet_hidden_states": None}))
    with vidaccel.enable(transformer, "radial", **DENSE):
        assert torch.equal(forward(transformer, call), stock)
    with vidaccel.enable(transformer, Everything(), **SPARSE):
        assert error(forward(transformer, call), stock) < 1e-5
    cache = {"name": "static", "compute": [0], "min_steps": 1, "predictor": "hold", "reuse": "stack"}
    seen: list[Tensor] = []
    transformer.norm_out.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with vidaccel.enable(transformer, None, cache=cache, num_inference_steps=2, schedule=NEVER_DENSE):
        assert torch.equal(forward(transformer, call), stock)
        found = forward(transformer, call | {"timestep": call["timestep"] * 0.9})
    assert error(seen[1], seen[0]) < 1e-6 and not torch.equal(found, stock)


def test_only_the_global_backend_counts_as_in_stock() -> None:
    transformer: Any = cosmos.build()
    call = cosmos.inputs(transformer)
    stock = forward(transformer, call)
    with vidaccel.enable(transformer, "radial", **DENSE):
        for block in transformer.transformer_blocks:
            block.attn1.processor._attention_backend = "no such backend"
        assert torch.equal(forward(transformer, call), stock)


def test_masked_calls_and_training_go_through_the_stock_processor() -> None:
    transformer: Any = cosmos.build()
    call = cosmos.inputs(transformer)
    stock, method = gradient(transformer, call), Everything()
    with vidaccel.enable(transformer, method, **SPARSE):
        assert torch.equal(gradient(transformer, call), stock)
        block = transformer.transformer_blocks[0]
        states, mask = torch.randn(2, 8, 128), torch.rand(2, 1, 8, 8) > 0.3
        with torch.no_grad():
            found = block.attn1(states, attention_mask=mask)
            assert torch.equal(found, block.attn1.processor.inner(block.attn1, states, attention_mask=mask))
    assert not method.log


@pytest.mark.parametrize("name", ["CosmosTransformer3DModel", "CosmosTransformer3DModel, Predict 2"])
def test_signals_are_what_the_model_computes(name: str) -> None:
    transformer: Any = cosmos.MODELS[name].build()
    seen: dict[str, Any] = {}
    first = transformer.transformer_blocks[0]

    def embedded(module: nn.Module, args: Any, output: Any) -> None:
        seen.setdefault("embedded", output[1])

    def entered(module: nn.Module, args: Any, kwargs: Any) -> None:
        seen["call"] = Call(args, kwargs)

    def attended(module: nn.Module, args: Any) -> None:
        seen["modulated"] = args[0]

    transformer.time_embed.register_forward_hook(embedded)
    first.register_forward_pre_hook(entered, with_kwargs=True)
    first.attn1.register_forward_pre_hook(attended)
    forward(transformer, cosmos.MODELS[name].inputs(transformer))
    with torch.no_grad():
        assert torch.equal(FAMILY.modulated(first, seen["call"]), seen["modulated"])
        found = FAMILY.time_embedding(transformer, torch.tensor([0.3, 0.5]))[1]
    assert torch.allclose(found, seen["embedded"][-1], atol=1e-6)

"""What users do to their transformers while a cache is on; each equal to the same without it, or to the eager cache."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch._dynamo.testing
from diffusers import FlowMatchEulerDiscreteScheduler
from peft import LoraConfig

import vidaccel
from tests import tiny
from tests.caching.cases import Told, ToldOutput, run
from vidaccel.caching import Cache
from vidaccel.caching.predictors import Hold

STEPS = (2, 4)
SPARSE: dict[str, Any] = {"method": "radial", "min_tokens": 0, "decay": 0.0, "block": 16, "split": 16,
                          "schedule": {"dense_first_steps": 2, "dense_first_layers": 0}}  # fmt: skip


def cached(pipe: Any, policy: Any = None, **more: Any) -> Any:
    with vidaccel.enable(pipe, **{"method": None, "cache": Cache(policy or Told(STEPS), Hold(), min_steps=1)} | more):
        return run("wan", pipe)


def decisions(session: Any) -> list[str]:
    return [each["what"] for each in session.summary().to_dict()["cache"]["decisions"] if each["branch"] == "cond"]


def test_compiled_blocks_are_one_graph() -> None:
    """One for all blocks and steps, computed and reused alike."""
    pipe = tiny.tiny_wan()
    expected = cached(pipe)
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()
    pipe.transformer.compile_repeated_blocks(fullgraph=True, backend=counter)
    found = cached(pipe)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert counter.frame_count == 1


def test_compiled_sparse_blocks_are_two_graphs() -> None:
    pipe = tiny.tiny_wan()
    expected = cached(pipe, **SPARSE)
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()
    pipe.transformer.compile_repeated_blocks(fullgraph=True, backend=counter)
    np.testing.assert_allclose(cached(pipe, **SPARSE), expected, atol=1e-5)
    assert counter.frame_count == 2


@pytest.mark.parametrize("policy", [Told(STEPS), ToldOutput(STEPS)], ids=["stack", "output"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_model_offload(policy: Any, when: str) -> None:
    """Also in the second generation, after which accelerate has put its hooks back."""
    pipe = tiny.tiny_wan()
    expected = cached(pipe, policy)
    if when == "before":
        pipe.enable_model_cpu_offload(device="cpu")
    with vidaccel.enable(pipe, None, cache=Cache(policy, Hold(), min_steps=1)) as session:
        if when == "after":
            pipe.enable_model_cpu_offload(device="cpu")
        for _ in range(2):
            assert np.array_equal(run("wan", pipe), expected)
            assert decisions(session).count("reused") == len(STEPS)


@pytest.mark.parametrize("kind", ["leaf_level", "block_level"])
def test_group_offload(kind: str) -> None:
    pipe = tiny.tiny_wan()
    expected = cached(pipe)
    options = {"num_blocks_per_group": 1} if kind == "block_level" else {}
    pipe.transformer.enable_group_offload(onload_device=torch.device("cpu"), offload_device=torch.device("cpu"),
                                          offload_type=kind, **options)  # fmt: skip
    assert np.array_equal(cached(pipe), expected)


def test_a_new_adapter_strength_is_an_event() -> None:
    """Nothing that was computed under one strength is reused under another."""
    pipe = tiny.tiny_wan()
    config = LoraConfig(r=4, target_modules=["to_q", "to_v"], init_lora_weights=False)
    pipe.transformer.add_adapter(config, adapter_name="style")

    def weaken(pipe: Any, step: int, timestep: Any, kwargs: Any) -> dict[str, Any]:
        if step == 2:
            pipe.transformer.set_adapters("style", 0.25)
        return {}

    with vidaccel.enable(pipe, None, cache=Cache(Told((2, 3, 4)), Hold(), min_steps=1)) as session:
        run("wan", pipe)
        assert decisions(session) == ["computed"] * 2 + ["reused"] * 3 + ["computed"]
        run("wan", pipe, callback_on_step_end=weaken)
        assert decisions(session) == ["computed"] * 2 + ["reused", "computed", "reused", "computed"]


def test_diffusers_own_cache_contexts_are_not_needed() -> None:
    """A bare transformer, called as pipelines without contexts do."""
    transformer = tiny.tiny_wan_transformer()
    call = {"hidden_states": torch.randn(1, 16, 3, 8, 12), "encoder_hidden_states": torch.randn(1, 4, tiny.TEXT_DIM)}
    with torch.no_grad(), vidaccel.enable(transformer, None, num_inference_steps=4,
                                          cache=Cache(Told((1, 2)), Hold(), min_steps=1)) as session:  # fmt: skip
        for timestep in (900.0, 600.0, 300.0, 100.0):
            for _ in range(2):
                transformer(**call, timestep=torch.tensor([timestep]))
    assert decisions(session) == ["computed", "reused", "reused", "computed"]


def test_with_gradients_nothing_is_cached() -> None:
    transformer = tiny.tiny_wan_transformer()
    call = {"hidden_states": torch.randn(1, 16, 3, 8, 12), "encoder_hidden_states": torch.randn(1, 4, tiny.TEXT_DIM)}
    cache = Cache(Told((1, 2)), Hold(), min_steps=1)
    with vidaccel.enable(transformer, None, num_inference_steps=4, cache=cache) as session:
        for timestep in (900.0, 600.0):
            transformer(**call, timestep=torch.tensor([timestep]))[0].sum().backward()
    assert session.summary().to_dict()["cache"]["decisions"] == []


def test_steps_whose_rounded_timesteps_are_alike() -> None:
    """HunyuanVideo's pipeline rounds timesteps to the latents' type: near 1000 two or three steps have the same."""
    pipe = tiny.tiny_hunyuanvideo()
    pipe.transformer.to(torch.bfloat16)
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=9.0)
    seen: list[float] = []
    pipe.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(float(kwargs["timestep"].max())), with_kwargs=True)  # fmt: skip
    with vidaccel.enable(pipe, None, cache=Cache(Told((3, 5, 39)), Hold())) as session:
        pipe(**tiny.wan_inputs(pipe, num_inference_steps=40, output_type="latent"))
        made = session.summary().to_dict()["cache"]["decisions"]
    assert len(set(seen)) < 40 == len(made) and {each["branch"] for each in made} == {"cond"}
    assert [each["step"] for each in made] == list(range(40))
    assert [each["step"] for each in made if each["what"] == "reused"] == [3, 5] and not session._runtime._branches  # type: ignore[union-attr]

"""What users do to their transformers while a cache is on; each equal to the same without it, or to the eager cache."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch._dynamo.testing
from diffusers import FlowMatchEulerDiscreteScheduler, WanVideoToVideoPipeline
from peft import LoraConfig

import vidaccel
from tests import tiny
from tests.caching.cases import FAMILIES, Told, ToldOutput, by_hooks, run
from vidaccel.caching import Cache, Place
from vidaccel.caching.predictors import Hold

STEPS = (2, 4)


def cached(pipe: Any, policy: Any = None) -> Any:
    with vidaccel.enable(pipe, None, cache=Cache(policy or Told(STEPS), Hold(), min_steps=1)):
        return run("wan", pipe)


def decisions(session: Any) -> list[str]:
    """Of the pass that each step begins with."""
    made = session.summary().to_dict()["cache"]["decisions"]
    return [each["what"] for each in made if each["branch"].startswith("cond")]


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


CONFIG = LoraConfig(r=4, target_modules=["to_q", "to_v"], init_lora_weights=False)
EVENTS: dict[str, Any] = {
    "strength": lambda transformer: transformer.set_adapters("style", 0.25),
    "fused, weaker": lambda transformer: transformer.fuse_lora(lora_scale=0.25),
    "off": lambda transformer: transformer.disable_adapters(),
    "another": lambda transformer: transformer.add_adapter(CONFIG, adapter_name="other"),
    "deleted": lambda transformer: transformer.delete_adapters("style"),
    "unloaded": lambda transformer: transformer.unload_lora(),
}


@pytest.mark.parametrize("event", EVENTS)
def test_other_adapters_are_an_event(event: str) -> None:
    """Nothing that was computed with one is reused with another, or at another strength."""
    pipe = tiny.tiny_wan()
    pipe.transformer.add_adapter(CONFIG, adapter_name="style")

    def change(pipe: Any, step: int, timestep: Any, kwargs: Any) -> dict[str, Any]:
        if step == 2:
            EVENTS[event](pipe.transformer)
        return {}

    with vidaccel.enable(pipe, None, cache=Cache(Told((2, 3, 4)), Hold(), min_steps=1)) as session:
        run("wan", pipe)
        assert decisions(session) == ["computed"] * 2 + ["reused"] * 3 + ["computed"]
        run("wan", pipe, callback_on_step_end=change)
        assert decisions(session) == ["computed"] * 2 + ["reused", "computed", "reused", "computed"]


CALLS: dict[str, tuple[str, dict[str, Any]]] = {
    "one pass": ("wan", {"guidance_scale": 1.0}), "two videos": ("wan", {"num_videos_per_prompt": 2}),
    "two passes": ("hunyuanvideo", {"true_cfg_scale": 3.0}), "two rows": ("hunyuanvideo", {"num_videos_per_prompt": 2}),
    "without guidance": ("cogvideox", {"guidance_scale": 1.0}),
    "four rows": ("cogvideox", {"prompt": ["a red circle", "a blue square"], "negative_prompt": ["blurry"] * 2}),
}  # fmt: skip


@pytest.mark.parametrize("kind", CALLS)
def test_calls_of_all_kinds_are_the_slow_cache(kind: str) -> None:
    """Passes and batch rows are each given their own."""
    family, call = CALLS[kind]
    pipe = FAMILIES[family][0]()
    with by_hooks(pipe, STEPS, Place.STACK):
        expected = run(family, pipe, **call)
    assert np.abs(expected - run(family, pipe, **call)).max() > 1e-4
    with vidaccel.enable(pipe, None, cache=Cache(Told(STEPS), Hold(), min_steps=1)):
        run(family, pipe)
        np.testing.assert_allclose(run(family, pipe, **call), expected, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_interrupted_run_leaves_nothing(family: str) -> None:
    """By the pipeline's own switch, which skips the steps that are left."""
    pipe = FAMILIES[family][0]()

    def interrupt(pipe: Any, step: int, timestep: Any, kwargs: Any) -> dict[str, Any]:
        pipe._interrupt = step == 1
        return {}

    # What it has measured of one run would let it reuse the next one's second step.
    easy = {"name": "easycache", "threshold": 1e3, "min_steps": 1}
    with vidaccel.enable(pipe, None, cache=easy) as session:
        expected, made = run(family, pipe), decisions(session)
        run(family, pipe, prompt="a blue square", callback_on_step_end=interrupt)
        assert decisions(session) == ["computed"] * 2
        assert np.array_equal(run(family, pipe), expected) and decisions(session) == made


def test_a_run_that_starts_late() -> None:
    """Video to video, in a pipeline made of an enabled one: its own steps count."""
    pipe = tiny.tiny_wan()
    with vidaccel.enable(pipe, None, cache=Cache(Told((0, 1, 2, 3)), Hold(), min_steps=1)) as session:
        other = WanVideoToVideoPipeline.from_pipe(pipe)
        other.set_progress_bar_config(disable=True)
        call = tiny.wan_inputs(pipe, num_inference_steps=8)
        del call["num_frames"]
        other(**call, video=[tiny.tiny_image(seed) for seed in range(17)], strength=0.5)
    assert decisions(session) == ["computed", "reused", "reused", "computed"]


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

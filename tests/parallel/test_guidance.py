"""Guidance passes on two groups of processes: the same clip as from one process, bit for bit."""

from __future__ import annotations

import copy
import unittest.mock
import warnings
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor

import vidaccel
from tests import tiny
from tests.parallel.world import World
from tests.pipelines.models import models
from vidaccel.api import set_aside
from vidaccel.parallel.pending import Pending, Predictions
from vidaccel.parallel.split import Group
from vidaccel.pipelines import experts

STEPS = 3
EARLY = ("CosmosTransformer3DModel, Predict 2", "CosmosTransformer3DModel, Predict 2.5")
BATCHED = ("CogVideoXTransformer3DModel", "LTXVideoTransformer3DModel", "MochiTransformer3DModel",
           "AnyFlowTransformer3DModel")  # fmt: skip
SEPARATE = (
    "WanTransformer3DModel", "WanTransformer3DModel, video to video", "WanVACETransformer3DModel",
    "WanAnimateTransformer3DModel", "SkyReelsV2Transformer3DModel", "ChronoEditTransformer3DModel",
    "HunyuanVideoTransformer3DModel, image as the first frame", "HunyuanVideoFramepackTransformer3DModel, one row",
    "HunyuanVideo15Transformer3DModel, text", "HeliosTransformer3DModel", "Kandinsky5Transformer3DModel, image",
    "CosmosTransformer3DModel", "MotifVideoTransformer3DModel, text",
)  # fmt: skip
FEW = ("WanVACETransformer3DModel", "HunyuanVideoFramepackTransformer3DModel, one row",
       "HunyuanVideo15Transformer3DModel, text", "Kandinsky5Transformer3DModel, image",
       "MotifVideoTransformer3DModel, text")  # fmt: skip
"""Of them, those that differ most: control blocks, several windows, guiders, outputs as objects, and clones."""
NEVER_DENSE = {"dense_first_steps": 0, "dense_first_layers": 0}
SETTINGS: dict[str, dict[str, Any]] = {
    "static": {"method": "radial", "decay": 0.0, "block": 16, "split": 16, "min_tokens": 0, "schedule": NEVER_DENSE},
    "dynamic": {"method": "draft", "density": 0.5, "min_tokens": 0, "schedule": NEVER_DENSE},
    "leading": {"method": None, "cache": {"name": "easycache", "threshold": 10.0, "min_steps": 1, "first_steps": 1,
                                          "last_steps": 1}},
    "apart": {"method": None, "cache": {"name": "first_block", "threshold": 10.0, "min_steps": 1, "first_steps": 1,
                                        "last_steps": 1}},
}  # fmt: skip


def clip(pipe: Any, call: dict[str, Any], seed: int = 0) -> np.ndarray:
    """What a pipeline makes, of its noise from `seed`."""
    made = pipe(**call, generator=torch.Generator().manual_seed(seed)).frames
    return made.numpy() if isinstance(made, Tensor) else np.asarray(made)


def wan_call(pipe: Any, **more: Any) -> dict[str, Any]:
    """Arguments of a Wan pipeline's call, which `clip` gives its noise."""
    inputs = tiny.wan_inputs(pipe, output_type="latent", **more)
    del inputs["generator"]
    return inputs


def counted(pipe: Any) -> list[str]:
    """The names of transformers, one for each forward from now on."""
    calls: list[str] = []
    for name, module in experts(pipe).items():
        module.register_forward_pre_hook(lambda *_, name=name: calls.append(name))
    return calls


def both(pipe: Any, call: dict[str, Any], setting: dict[str, Any] | None = None) -> dict[str, Any]:
    """A clip by one process and by two, and what this process did for the latter."""
    if setting is not None:
        vidaccel.enable(pipe, **setting)
    alone = clip(pipe, call)
    expected = vidaccel.summary(pipe).to_dict() if setting is not None else {}
    with vidaccel.guidance_parallel(pipe) as groups:
        calls = counted(pipe)
        shared, again = clip(pipe, call), clip(pipe, call)
    summary = vidaccel.summary(pipe).to_dict() if setting is not None else {}
    return {"equal": np.array_equal(alone, shared), "again": np.array_equal(alone, again), "calls": calls,
            "finite": bool(np.isfinite(alone).all() and alone.std() > 0), "together": groups.together,
            "alone": groups.alone, "expected": expected, "summary": summary}  # fmt: skip


def needs(which: str) -> None:
    """Skip where the installed diffusers does not have a class yet."""
    if not hasattr(diffusers, which.split(",")[0]):
        pytest.skip("the installed diffusers does not have the class yet")


def of_model(name: str) -> dict[str, Any]:
    model = models()[name]
    assert model.pipeline is not None
    call = dict(model.call)
    if "num_inference_steps" in call and "timesteps" not in call:
        call["num_inference_steps"] = STEPS
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        return both(model.pipeline(), call)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """What takes long is done by ``--all-variants`` alone."""
    every = metafunc.config.getoption("--all-variants")
    if "separate" in metafunc.fixturenames:
        metafunc.parametrize("separate", SEPARATE if every else FEW)
    if "compiled" in metafunc.fixturenames:
        metafunc.parametrize("compiled", [False, True] if every else [False])


def test_every_pipeline(world: World, separate: str) -> None:
    needs(separate)
    for found in world(of_model, separate):
        assert found["equal"] and found["again"] and found["finite"]
        # Two runs, and of each step one pass here.
        assert found["alone"] == 0 and 2 * found["together"] == len(found["calls"])


def of_wan(setting: str, two_experts: bool, steps: int) -> dict[str, Any]:
    pipe = tiny.tiny_wan(two_experts=two_experts)
    call = wan_call(pipe, num_inference_steps=steps)
    return both(pipe, call, SETTINGS[setting])


@pytest.mark.parametrize("setting", ["static", "dynamic"])
def test_sparse_attention_of_two_experts(world: World, setting: str) -> None:
    found = world(of_wan, setting, True, 4)
    assert all(each["equal"] and each["again"] for each in found)
    for each in found:
        assert set(each["calls"]) == {"transformer", "transformer_2"} and len(each["calls"]) == 8
    parts = [each["summary"]["calls"]["sparse"] for each in found]
    assert sum(parts) == found[0]["expected"]["calls"]["sparse"] and parts[0] == parts[1] > 0
    assert "other processes computed" in " ".join(found[0]["summary"]["notes"])


@pytest.mark.parametrize("setting", ["leading", "apart"])
def test_caches(world: World, setting: str) -> None:
    found = world(of_wan, setting, False, 6)
    assert all(each["equal"] and each["again"] for each in found)
    expected = found[0]["expected"]["cache"]["decisions"]
    assert {each["what"] for each in expected} > {"computed"}
    for rank, each in enumerate(found):
        own = [one for one in expected if one["branch"] == ("cond", "uncond")[rank]]
        assert each["summary"]["cache"]["decisions"] == own


def of_four(setting: str | None) -> dict[str, Any]:
    """Two groups of two, which split the clip."""
    from diffusers import ContextParallelConfig
    from torch.distributed.device_mesh import init_device_mesh

    pipe = tiny.tiny_wan()
    call = wan_call(pipe, num_inference_steps=4)
    if setting is not None:
        vidaccel.enable(pipe, **SETTINGS[setting])
    alone = clip(pipe, call)
    mesh = init_device_mesh("cpu", (2, 1, 2), mesh_dim_names=("guidance", "ring", "ulysses"))
    with unittest.mock.patch("torch.accelerator.device_count", return_value=1):
        pipe.transformer.enable_parallelism(config=ContextParallelConfig(ulysses_degree=2, mesh=mesh))
    split = clip(pipe, call)
    with vidaccel.guidance_parallel(pipe, mesh) as groups:
        calls = counted(pipe)
        shared = clip(pipe, call)
    everywhere = [torch.empty(shared.shape) for _ in range(4)]
    torch.distributed.all_gather(everywhere, torch.from_numpy(shared.copy()))
    return {"error": float(np.abs(alone - shared).max()), "split": np.array_equal(split, shared), "calls": len(calls),
            "together": groups.together, "same": all(torch.equal(each, everywhere[0]) for each in everywhere)}


@pytest.mark.parametrize("setting", [None, "static", "dynamic", "leading", "apart"])
def test_two_groups_of_two_that_split_the_clip(four: World, setting: str | None) -> None:
    for found in four(of_four, setting):
        assert found["split"] and found["same"] and found["error"] < 1e-5
        assert found["calls"] == found["together"] == 4


def of_overlap() -> str:
    """A clip that is split over the very processes that should compute other passes."""
    from diffusers import ContextParallelConfig

    pipe = tiny.tiny_wan()
    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1, 2), mesh_dim_names=("ring", "ulysses"))
    with unittest.mock.patch("torch.accelerator.device_count", return_value=1):
        pipe.transformer.enable_parallelism(config=ContextParallelConfig(ulysses_degree=2, mesh=mesh))
    with pytest.raises(ValueError) as error:
        vidaccel.guidance_parallel(pipe)
    return str(error.value)


def test_a_split_over_both_groups_is_refused(world: World) -> None:
    for message in world(of_overlap):
        assert "split over the processes [0, 1], which are of both guidance groups" in message


def of_one_pass(guidance_scale: float) -> tuple[list[str], bool, int, int]:
    pipe = tiny.tiny_wan()
    call = wan_call(pipe, guidance_scale=guidance_scale)
    alone = clip(pipe, call)
    with warnings.catch_warnings(record=True) as caught, vidaccel.guidance_parallel(pipe) as groups:
        warnings.simplefilter("always")
        shared = clip(pipe, call)
    ours = [str(each.message) for each in caught if "guidance" in str(each.message)]
    return ours, np.array_equal(alone, shared), groups.together, groups.alone


def test_a_run_without_guidance_is_right_and_says_that_nothing_is_gained(world: World) -> None:
    for said, equal, together, alone in world(of_one_pass, 1.0):
        assert equal and (together, alone) == (0, 4)
        assert len(said) == 1 and "split the clip over all processes" in said[0]


def of_an_interval() -> dict[str, Any]:
    """Guidance in the first half of the steps alone, as a callback sets it."""
    pipe = tiny.tiny_wan()

    def leave_out(pipe: Any, step: int, timestep: Any, given: dict[str, Any]) -> dict[str, Any]:
        pipe._guidance_scale = 1.0 if step >= 1 else 3.0
        return given

    call = wan_call(pipe, callback_on_step_end=leave_out)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return both(pipe, call, SETTINGS["leading"])


def test_steps_without_guidance_on_the_way(world: World) -> None:
    first, second = world(of_an_interval)
    assert first["equal"] and second["equal"] and first["again"] and second["again"]
    assert (first["together"], first["alone"]) == (second["together"], second["alone"]) == (2, 2)
    assert (len(first["calls"]), len(second["calls"])) == (8, 4)


def of_a_broken_run() -> bool:
    pipe = tiny.tiny_wan()
    call = wan_call(pipe)
    alone = clip(pipe, call)
    with vidaccel.guidance_parallel(pipe):
        entered: list[int] = []

        def fail(scheduler: Any) -> None:
            # Between the passes of the second step: one prediction is open on both.
            entered.append(1)
            if len(entered) == 4:
                raise KeyboardInterrupt

        own = pipe.transformer.cache_context

        def context(name: str, **more: Any) -> Any:
            fail(name)
            return own(name, **more)

        pipe.transformer.__dict__["cache_context"] = context
        with pytest.raises(KeyboardInterrupt):
            clip(pipe, call)
        del pipe.transformer.__dict__["cache_context"]
        watched = unittest.mock.patch.object(Predictions, "broadcast", autospec=True, side_effect=Predictions.broadcast)
        with watched as sent:
            equal = np.array_equal(alone, clip(pipe, call))
        # Of two passes in four steps what it is and itself; nothing of the run that was given up.
        return equal and sent.call_count == 16


def test_a_run_after_one_that_was_interrupted_between_passes(world: World) -> None:
    assert world(of_a_broken_run) == [True, True]


def of_other_noise() -> str:
    pipe = tiny.tiny_wan()
    call = wan_call(pipe)
    with vidaccel.guidance_parallel(pipe), pytest.raises(ValueError) as error:
        clip(pipe, call, seed=torch.distributed.get_rank())
    return str(error.value)


def test_other_noise_on_another_process_is_said_before_the_first_step(world: World) -> None:
    for message in world(of_other_noise):
        assert "other hidden_states" in message and "same seed" in message


def of_undoing() -> bool:
    pipe = tiny.tiny_wan(two_experts=True)
    call = wan_call(pipe)
    alone = clip(pipe, call)
    holders = (pipe, pipe.transformer, pipe.transformer_2)
    before = [set(each.__dict__) for each in holders]
    first = vidaccel.guidance_parallel(pipe)
    second = vidaccel.guidance_parallel(pipe)
    twin = copy.deepcopy(pipe)
    calls = counted(twin)
    assert np.array_equal(clip(twin, call), alone) and len(calls) == 8
    first.detach()
    assert [set(each.__dict__) for each in holders] != before
    second.detach()
    assert [set(each.__dict__) for each in holders] == before
    calls = counted(pipe)
    return np.array_equal(clip(pipe, call), alone) and len(calls) == 8


def test_undone_exactly_and_copies_are_stock(world: World) -> None:
    assert world(of_undoing) == [True, True]


def of_replacing() -> list[str]:
    pipe = tiny.tiny_wan()
    call = wan_call(pipe)
    said = []
    with vidaccel.guidance_parallel(pipe):
        own = pipe.transformer
        for other in (tiny.tiny_wan(seed=1).transformer, torch.compile(own, backend="eager")):
            pipe.transformer = other
            with pytest.raises(RuntimeError) as error:
                clip(pipe, call)
            said.append(str(error.value))
        pipe.transformer = own
        own.compile(backend="eager")
        with pytest.raises(RuntimeError) as error:
            clip(pipe, call)
        own._compiled_call_impl = None
        said.append(str(error.value))
    return said


def test_what_is_replaced_afterwards_is_said_before_the_first_step(world: World) -> None:
    parts = ("was replaced after", "inside torch.compile's wrapper", "was compiled")
    for said in world(of_replacing):
        for message, part in zip(said, parts, strict=True):
            assert part in message


def of_compiled(real: bool) -> bool:
    """The whole transformer compiled before; unless `real`, what torch puts there calls the model as it is."""
    pipe = tiny.tiny_wan()
    call = wan_call(pipe, num_inference_steps=2)
    if real:
        pipe.transformer.compile(backend="eager")
    else:
        pipe.transformer._compiled_call_impl = pipe.transformer._call_impl
    own = pipe.transformer._compiled_call_impl
    alone = clip(pipe, call)
    with vidaccel.guidance_parallel(pipe) as groups:
        equal = np.array_equal(clip(pipe, call), alone) and groups.together == 2
    assert pipe.transformer.__dict__["_compiled_call_impl"] is own
    return equal


def test_a_transformer_compiled_as_a_whole(world: World, compiled: bool) -> None:
    assert world(of_compiled, compiled) == [True, True]


def of_offloading() -> bool:
    """Hooks of accelerate that replace `forward`, set before and after, and taken off by the pipeline itself."""
    from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module

    pipe = tiny.tiny_wan()
    call = wan_call(pipe, num_inference_steps=2)
    alone = clip(pipe, call)
    with vidaccel.guidance_parallel(pipe) as groups:
        add_hook_to_module(pipe.transformer, ModelHook())
        equal = np.array_equal(clip(pipe, call), alone)
        remove_hook_from_module(pipe.transformer)
        return equal and np.array_equal(clip(pipe, call), alone) and groups.together == 2


def test_hooks_that_replace_forward(world: World) -> None:
    assert world(of_offloading) == [True, True]


def of_uses(rank_of_first: int) -> list[bool]:
    """Each use of a prediction that is not there yet is that of the prediction."""
    rank = torch.distributed.get_rank()
    group = Group(rank, 2, torch.distributed.group.WORLD)
    values = [torch.arange(6.0).view(2, 3).to(torch.bfloat16).T, torch.full((2,), 7.0)]
    uses: list[Any] = [
        lambda each: each.shape, lambda each: each.dtype, lambda each: (each + 1).tolist(), lambda each: len(each),
        lambda each: torch.cat([each, each]).tolist(), lambda each: each[0].tolist(),
        lambda each: each.float().sum().item(), lambda each: torch.stack([each * 2]).tolist(),
        lambda each: each.clone().tolist(), lambda each: each.device,
        lambda each: torch.ones_like(each).shape, lambda each: bool((each == each).all()), lambda each: repr(each),
        lambda each: each.clone().clone().add_(1).tolist(),
    ]  # fmt: skip
    found = []
    for use in uses:
        made = Predictions(group, "Pipeline")
        owners = [rank_of_first, 1 - rank_of_first]
        pending = [made.promise(owner, value.clone() if owner == rank else None, value.device)
                   for owner, value in zip(owners, values, strict=True)]  # fmt: skip
        assert all(type(each) is Pending for each in pending)
        found += [use(each) == use(value) for each, value in zip(pending, values, strict=True)]
        assert made.together == 1
    return found


@pytest.mark.parametrize("first", [0, 1])
def test_predictions_are_there_once_they_are_used(world: World, first: int) -> None:
    for found in world(of_uses, first):
        assert len(found) == 28 and all(found)


def of_clones() -> list[Any]:
    """A clone keeps what was predicted when the prediction is changed in place, and belongs to no new exchange."""
    rank = torch.distributed.get_rank()
    made = Predictions(Group(rank, 2, torch.distributed.group.WORLD), "Pipeline")
    pending = made.promise(0, torch.zeros(2) if rank == 0 else None, torch.device("cpu"))
    other = made.promise(1, torch.ones(2) if rank == 1 else None, torch.device("cpu"))
    clone = pending.clone()
    pending += 5
    return [pending.tolist(), clone.tolist(), other.tolist(), made.together]


def test_clones_are_of_their_own(world: World) -> None:
    assert world(of_clones) == [[[5.0, 5.0], [0.0, 0.0], [1.0, 1.0], 1]] * 2


def test_a_prediction_of_a_run_that_was_given_up() -> None:
    made = Predictions(Group(0, 1), "Pipeline")
    pending = made.promise(0, torch.zeros(2), torch.device("cpu"))
    made.drop()
    with pytest.raises(RuntimeError, match="a run that ended"):
        pending.sum()


def of_refusals() -> list[str]:
    """What is refused where there is a process group."""
    said = []
    from torch.distributed.device_mesh import init_device_mesh

    pipe = tiny.tiny_wan()
    mesh = init_device_mesh("cpu", (1, 2), mesh_dim_names=("guidance", "ulysses"))
    with pytest.raises(ValueError) as error:
        vidaccel.guidance_parallel(pipe, mesh)
    said.append(str(error.value))
    interval = {"name": "easycache", "threshold": 1.0, "min_steps": 1, "guidance_interval": 2}
    vidaccel.enable(pipe, method=None, cache=interval)
    with pytest.raises(ValueError) as error:
        vidaccel.guidance_parallel(pipe)
    said.append(str(error.value))
    vidaccel.disable(pipe)
    with vidaccel.guidance_parallel(pipe):
        vidaccel.enable(pipe, method=None, cache=interval)
        call = tiny.wan_inputs(pipe)
        with pytest.raises(ValueError) as error:
            pipe(**call)
        said.append(str(error.value))
        for measured in (lambda: vidaccel.calibrate(pipe, ["a", "b"], target_density=0.5),
                         lambda: vidaccel.calibrate_cache(pipe, ["a"]), lambda: aside(pipe)):
            with pytest.raises(ValueError, match="one of the guidance passes alone"):
                measured()
    return said


def aside(pipe: Any) -> None:
    """As `vidaccel eval` does it."""
    with set_aside(pipe):
        raise AssertionError


def test_meshes_and_caches_that_do_not_go_with_it(world: World) -> None:
    for mesh, before, after in world(of_refusals):
        assert "(1, 2)" in mesh and 'dimension "guidance" of size 2' in mesh
        assert "leaves out unconditional calls" in before and before == after


@pytest.mark.parametrize("which", BATCHED + EARLY)
def test_pipelines_without_separate_passes_are_refused(which: str) -> None:
    needs(which)
    model = models()[which]
    assert model.pipeline is not None
    reason = "uses the conditional prediction before" if which in EARLY else "rows of one call"
    with pytest.raises(ValueError, match=f"of {type(pipe := model.pipeline()).__name__} cannot .* {reason}"):
        vidaccel.guidance_parallel(pipe)


def test_without_a_process_group_or_a_pipeline() -> None:
    pipe = tiny.tiny_wan()
    with pytest.raises(RuntimeError, match="init_process_group"):
        vidaccel.guidance_parallel(pipe)
    with pytest.raises(ValueError, match="needs the pipeline: a WanTransformer3DModel"):
        vidaccel.guidance_parallel(pipe.transformer)
    pipe.transformer = torch.compile(pipe.transformer)
    with pytest.raises(ValueError, match="inside torch.compile's wrapper"):
        vidaccel.guidance_parallel(pipe)


def test_every_family_says_whether_its_pipelines_can() -> None:
    """The lists above are all classes whose pipelines tests have."""
    from vidaccel.pipelines import family_named

    for name, model in models().items():
        if model.pipeline is None:
            continue
        family = family_named(name.split(",")[0])
        assert family is not None
        refused = family.no_guidance_groups("Cosmos2Pipeline" if name in EARLY else "Pipeline")
        assert refused is None or "nobody" not in refused, name
        assert (refused is None) == any(name.split(",")[0] == each.split(",")[0] for each in SEPARATE) or name in EARLY

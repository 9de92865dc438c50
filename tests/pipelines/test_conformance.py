"""What every supported class must pass, on tiny models with random weights; `tests.pipelines.support` records it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch._dynamo.testing
from peft import LoraConfig
from torch import Tensor, nn

import vidaccel
from tests.methods.test_mixed import BLOCK
from tests.pipelines.cases import NEVER_DENSE, Everything, error, forward
from tests.pipelines.models import models
from tests.pipelines.models.model import Model
from tests.pipelines.settings import DROPPING, setting
from tests.pipelines.support import proves
from vidaccel.methods import METHODS
from vidaccel.pipelines import family_of
from vidaccel.pipelines.base import Call

NAMES = list(models())
PIPELINES = [name for name, each in models().items() if each.pipeline is not None]
CACHED = [name for name, each in models().items() if family_of(each.build()).cacheable]
ALL_DENSE: dict[str, Any] = {"min_tokens": 0, "schedule": {"dense_first_steps": 1.0}, "num_inference_steps": 4}
SPARSE: dict[str, Any] = {"min_tokens": 0, "schedule": NEVER_DENSE, "num_inference_steps": 4}


@pytest.fixture(params=NAMES)
def model(request: pytest.FixtureRequest) -> Model:
    return models()[request.param]


@pytest.fixture
def transformer(model: Model) -> nn.Module:
    return model.build()


@pytest.fixture(autouse=True)
def _graphs() -> Iterator[None]:
    """No compiled code of one model is there for the next."""
    yield
    torch._dynamo.reset()


def at(transformer: nn.Module, call: dict[str, Any], step: int) -> dict[str, Any]:
    """The same forward at a later step."""
    onwards = 0.1 if family_of(transformer).timesteps_rise else -0.1
    return {**call, "timestep": call["timestep"] * (1 + onwards * step)}


def processors(transformer: nn.Module) -> dict[str, Any]:
    return {name: module.processor for name, module in transformer.named_modules() if hasattr(module, "processor")}


def cast(call: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """The floating point tensors of a call in another type, timesteps apart."""
    return {name: each.to(dtype) if isinstance(each, Tensor) and each.is_floating_point() and "timestep" not in name
            else each for name, each in call.items()}  # fmt: skip


@proves("dense")
def test_the_layout_is_found(model: Model, transformer: nn.Module) -> None:
    call = model.inputs(transformer)
    assert family_of(transformer).layout(transformer, Call((), call)) == model.layout


@proves("dense")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_a_dense_plan_is_stock_bit_for_bit_and_disable_is_exact(
    model: Model, transformer: nn.Module, dtype: torch.dtype
) -> None:
    transformer.to(dtype)
    kept = getattr(transformer, "_keep_in_fp32_modules", None) or ()
    for name, module in transformer.named_modules():
        if any(each in name.split(".") for each in kept):
            module.float()
    call = cast(model.inputs(transformer), dtype)
    stock, before = forward(transformer, call), processors(transformer)
    session = vidaccel.enable(transformer, "radial", **ALL_DENSE)
    assert torch.equal(forward(transformer, call), stock)
    sites = len(family_of(transformer).sites(transformer))
    assert session.summary().to_dict()["calls"] == {"sparse": 0, "dense": sites}
    vidaccel.disable(transformer)
    after = processors(transformer)
    assert after.keys() == before.keys() and all(after[name] is before[name] for name in before)
    assert torch.equal(forward(transformer, call), stock)
    vidaccel.enable(transformer, Everything(), **SPARSE)
    forward(transformer, call)
    vidaccel.disable(transformer)
    assert torch.equal(forward(transformer, call), stock) and not transformer._forward_pre_hooks


@proves("sparse")
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_a_mask_that_keeps_everything_is_stock_to_rounding(
    model: Model, transformer: nn.Module, backend: str
) -> None:
    call = model.inputs(transformer)
    stock = forward(transformer, call)
    for method in (Everything(), "radial"):
        given = {"density": 1.0, "block": BLOCK} if method == "radial" else {}
        with vidaccel.enable(transformer, method, **SPARSE, **given, backend=backend) as session:
            out = forward(transformer, call)
        assert session.summary().to_dict()["dense_calls"] == {}
        assert error(out, stock) < 1e-5


@proves("methods")
def test_every_method_leaves_pairs_out(model: Model, transformer: nn.Module) -> None:
    call = model.inputs(transformer)
    stock = forward(transformer, call)
    for name in METHODS:
        method, given = setting(name, transformer)
        with vidaccel.enable(transformer, method, **SPARSE | {"schedule": {**NEVER_DENSE, "dense_first_steps": 1}},
                             **given) as session:  # fmt: skip
            assert torch.equal(forward(transformer, call), stock), name
            out = forward(transformer, at(transformer, call, 1))
        tally = session.summary().to_dict()
        assert out.isfinite().all() and tally["calls"]["sparse"] > 0, name
        assert tally["density"]["video_density"] < 1, name
    assert torch.equal(forward(transformer, call), stock)


@proves("compile")
def test_compiled_blocks_are_one_graph_for_all_layers(model: Model, transformer: nn.Module) -> None:
    if not model.compiles:
        pytest.skip("the stock blocks do not compile in one graph")
    call = model.inputs(transformer)
    given = {**SPARSE, "block": BLOCK, **DROPPING["radial"]}

    def compiled() -> tuple[int, Tensor]:
        counter = torch._dynamo.testing.CompileCounter()
        for block in model.blocks(transformer):
            block.compile(fullgraph=True, backend=counter)
        out = forward(transformer, call)
        for block in model.blocks(transformer):
            block._compiled_call_impl = None
        torch._dynamo.reset()
        return counter.frame_count, out

    graphs, _ = compiled()
    with vidaccel.enable(transformer, "radial", **given):
        expected = forward(transformer, call)
        found, out = compiled()
    assert found == graphs and torch.equal(out, expected)


@proves("lora")
@pytest.mark.parametrize("when", ["before", "after"])
def test_lora(model: Model, transformer: nn.Module, when: str) -> None:
    call = model.inputs(transformer)
    if not model.lora or not hasattr(transformer, "add_adapter"):
        pytest.skip("diffusers gives the class no adapters")
    config = LoraConfig(r=4, target_modules=list(model.lora), init_lora_weights=False)
    plain: Any = transformer
    if when == "after":
        session = vidaccel.enable(transformer, "radial", **ALL_DENSE)
    unchanged = forward(transformer, call)
    plain.add_adapter(config)
    if when == "before":
        session = vidaccel.enable(transformer, "radial", **ALL_DENSE)
    found = forward(transformer, call)
    session.detach()
    assert torch.equal(found, forward(transformer, call)) and not torch.equal(found, unchanged)


@proves("offload")
def test_group_offload(model: Model, transformer: nn.Module) -> None:
    call, plain = model.inputs(transformer), transformer
    given = {**SPARSE, "block": BLOCK, **DROPPING["radial"]}
    with vidaccel.enable(transformer, "radial", **given):
        expected = forward(transformer, call)
    device = torch.device("cpu")
    try:
        plain.enable_group_offload(onload_device=device, offload_device=device, offload_type="leaf_level")  # type: ignore[operator]
    except AttributeError:
        # Up to 0.38 it asks for the accelerator's name.
        if torch.accelerator.current_accelerator() is not None:
            raise
        pytest.skip("this diffusers offloads groups where there is an accelerator alone")
    with vidaccel.enable(transformer, "radial", **given):
        assert torch.equal(forward(transformer, call), expected)


@proves("layerwise casting")
def test_layerwise_casting(model: Model, transformer: nn.Module) -> None:
    call, plain = model.inputs(transformer), transformer
    plain.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)  # type: ignore[operator]
    stock = forward(transformer, call)
    with vidaccel.enable(transformer, "radial", **ALL_DENSE):
        assert torch.equal(forward(transformer, call), stock)
    with vidaccel.enable(transformer, Everything(), **SPARSE):
        assert error(forward(transformer, call), stock) < 1e-4


@proves("fused projections")
def test_fused_projections(model: Model, transformer: nn.Module) -> None:
    call, plain = model.inputs(transformer), transformer
    if not hasattr(plain, "fuse_qkv_projections"):
        pytest.skip("the class has no fuse_qkv_projections")
    before = processors(transformer)
    try:
        plain.fuse_qkv_projections()  # type: ignore[operator]
    except (AttributeError, RuntimeError):
        pytest.skip("the class cannot fuse its own projections")
    stock = forward(transformer, call)
    with vidaccel.enable(transformer, "radial", **ALL_DENSE):
        assert torch.equal(forward(transformer, call), stock)
    with vidaccel.enable(transformer, Everything(), **SPARSE):
        assert error(forward(transformer, call), stock) < 1e-5
    plain.unfuse_qkv_projections()  # type: ignore[operator]
    assert [type(each) for each in processors(transformer).values()] == [type(each) for each in before.values()]
    with vidaccel.enable(transformer, "radial", **ALL_DENSE):
        ours = processors(transformer)
        plain.fuse_qkv_projections()  # type: ignore[operator]
        if processors(transformer) == ours:
            assert torch.equal(forward(transformer, call), stock)
        else:
            with pytest.raises(RuntimeError, match="were replaced"):
                forward(transformer, call)


@proves("int8 weights")
@pytest.mark.torchao
def test_weights_quantised_by_torchao(model: Model, transformer: nn.Module) -> None:
    from torchao import quantization

    call = model.inputs(transformer)
    plain = forward(transformer, call)
    linears = lambda module, name: isinstance(module, nn.Linear) and ".to_" in name  # noqa: E731
    quantization.quantize_(transformer, quantization.Int8WeightOnlyConfig(), linears)
    stock = forward(transformer, call)
    assert not torch.equal(stock, plain)
    with vidaccel.enable(transformer, "radial", **ALL_DENSE):
        assert torch.equal(forward(transformer, call), stock)
    with vidaccel.enable(transformer, Everything(), **SPARSE):
        assert error(forward(transformer, call), stock) < 1e-5


@proves("cache")
@pytest.mark.parametrize("name", CACHED)
def test_a_cache_computes_exactly_and_reuses(name: str) -> None:
    model = models()[name]
    transformer = model.build()
    calls = [at(transformer, model.inputs(transformer), step) for step in range(4)]
    stock = [forward(transformer, call) for call in calls]
    given = {"num_inference_steps": 4, "schedule": NEVER_DENSE}
    every = {"name": "static", "compute": [0, 1, 2, 3], "min_steps": 1, "predictor": "hold"}
    with vidaccel.enable(transformer, None, cache={**every, "reuse": "stack"}, **given):
        assert all(torch.equal(forward(transformer, call), out) for call, out in zip(calls, stock, strict=True))
    for reuse in ("stack", "output", "prediction"):
        some = {**every, "compute": [0, 2], "reuse": reuse}
        if reuse != "stack" and family_of(transformer).predictions > 1:
            with pytest.raises(ValueError, match="reuse='stack'"):
                vidaccel.enable(transformer, None, cache=some, **given)
            continue
        with vidaccel.enable(transformer, None, cache=some, **given) as session:
            found = [forward(transformer, call) for call in calls]
        assert torch.equal(found[0], stock[0]) and torch.equal(found[2], stock[2]), reuse
        assert not torch.equal(found[1], stock[1]) and found[1].isfinite().all(), reuse
        # Held: the prediction itself, or what the blocks added, which random weights keep small.
        assert reuse != "prediction" or torch.equal(found[1], stock[0])
        assert session.summary().to_dict()["cache"]["computed_share"] == 0.5
    assert torch.equal(forward(transformer, calls[0]), stock[0])


@proves("cache")
@pytest.mark.parametrize("name", sorted(set(NAMES) - set(CACHED)))
def test_a_cache_is_refused_where_blocks_cannot_be_passed_by(name: str) -> None:
    transformer = models()[name].build()
    with pytest.raises(ValueError, match="no step can be cached"):
        vidaccel.enable(transformer, None, cache="easycache", num_inference_steps=20)
    assert not transformer._forward_pre_hooks


@proves("pipeline")
@pytest.mark.parametrize("name", PIPELINES)
def test_a_whole_generation(name: str) -> None:
    model = models()[name]
    assert model.pipeline is not None
    pipe = model.pipeline()

    def frames() -> np.ndarray:
        made = pipe(**model.call, generator=torch.Generator().manual_seed(0)).frames
        return made.numpy() if isinstance(made, Tensor) else np.asarray(made)

    stock = frames()
    assert np.array_equal(frames(), stock), "the stock pipeline does not repeat itself"
    with vidaccel.enable(pipe, "radial", min_tokens=0, block=BLOCK, schedule={"dense_first_steps": 1.0}) as session:
        assert np.array_equal(frames(), stock)
        summary = session.summary().to_dict()
        assert summary["calls"]["sparse"] == 0 and summary["calls"]["dense"] > 0
        assert summary["steps"] == model.call.get("num_inference_steps", 4)
    log: list[tuple[Any, ...]] = []
    with vidaccel.enable(pipe, Everything(log=log), min_tokens=0, schedule=NEVER_DENSE):
        first = frames()
    # Every step once for each guidance pass and layer, in order.
    steps = [step for _, _, step, _, _ in log]
    assert steps == sorted(steps) and set(steps) == set(range(summary["steps"]))
    assert len(set(log)) == len(log)
    np.testing.assert_allclose(first, stock, atol=2e-3)
    assert np.array_equal(frames(), stock)

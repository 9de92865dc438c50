"""Transformers without a family, on tiny models of real classes that have one: the same results by their stock code."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.transformers import transformer_wan
from peft import LoraConfig
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention as sdpa

import vidaccel
from tests.pipelines.cases import DENSE, NEVER_DENSE, Everything, error, forward, gradient
from tests.pipelines.models import models
from tests.pipelines.test_conformance import cast, processors
from vidaccel import Generic, pipelines
from vidaccel.pipelines.base import Call
from vidaccel.pipelines.generic import GenericFamily

BARE: dict[str, Any] = {"min_tokens": 0, "num_inference_steps": 4}
SPARSE: dict[str, Any] = {**BARE, "schedule": NEVER_DENSE}
HALF = {"density": 0.5, "block": 16}
KNOWN: dict[str, Generic] = {
    "WanTransformer3DModel": Generic(),
    "WanTransformer3DModel, image tokens": Generic(),
    "WanVACETransformer3DModel": Generic(sites=("vace_blocks.*.attn1", "blocks.*.attn1")),
    "CogVideoXTransformer3DModel": Generic(text="before"),
    "CogVideoXTransformer3DModel, 1.5": Generic(text="before"),
    "HunyuanVideoTransformer3DModel, text": Generic(text="after"),
    "HunyuanVideo15Transformer3DModel, text": Generic(text="after", text_tokens=30),
    "LTXVideoTransformer3DModel": Generic(grid="5x4x6", sites="*.attn1"),
    "LTX2VideoTransformer3DModel": Generic(grid="5x4x6", sites="transformer_blocks.*.attn1"),
    "CosmosTransformer3DModel, Predict 2": Generic(latents="BCTHW"),
    "AllegroTransformer3DModel": Generic(),
    "EasyAnimateTransformer3DModel": Generic(text="before"),
    "Kandinsky5Transformer3DModel": Generic(latents="BTHWC", sites="visual_transformer_blocks.*.self_attention"),
}
"""Of classes whose families are hidden. HunyuanVideo 1.5 masks keys among others that count: dense alone."""
MASKED = "HunyuanVideo15Transformer3DModel, text"


def through(transformer: nn.Module, call: dict[str, Any], method: Any, **options: Any) -> tuple[Tensor, dict[str, Any]]:
    """One forward, and its calls."""
    with vidaccel.enable(transformer, method, **SPARSE | options) as session:
        out = forward(transformer, call)
    return out, session.summary().to_dict()


def hide(monkeypatch: pytest.MonkeyPatch, transformer: nn.Module) -> None:
    """Let nobody know the family of a class."""
    name = type(transformer).__name__
    left = {key: each for key, each in pipelines.families().items() if name not in each.transformers}
    monkeypatch.setattr(pipelines, "families", lambda: left)
    with pytest.raises(ValueError, match=f"^{name} is not supported.*vidaccel.Generic"):
        vidaccel.enable(transformer, "radial", **SPARSE)


@pytest.mark.parametrize("name", [name for name in KNOWN if name != MASKED])
def test_results_are_those_of_the_hidden_family(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, about = models()[name], KNOWN[name]
    transformer = model.build()
    call = model.inputs(transformer)
    stock, before = forward(transformer, call), processors(transformer)
    named = [through(transformer, call, "random", **HALF),
             through(transformer, call, "nabla", density=0.4, block=16),
             through(transformer, call, "random", **HALF, schedule={**NEVER_DENSE, "dense_first_layers": 1}),
             through(transformer, call, "random", **HALF, precision="int8", backend="reference")]  # fmt: skip
    hide(monkeypatch, transformer)
    again = [through(transformer, call, "random", **HALF, family=about),
             through(transformer, call, "nabla", density=0.4, block=16, family=about),
             through(transformer, call, "random", **HALF, schedule={**NEVER_DENSE, "dense_first_layers": 1},
                     family=about),
             through(transformer, call, "random", **HALF, precision="int8", backend="reference",
                     family=about)]  # fmt: skip
    for (expected, counts), (found, other) in zip(named, again, strict=True):
        assert torch.equal(found, expected) and not torch.equal(found, stock)
        assert counts["calls"] == other["calls"] and counts["density"] == other["density"]
        assert other["family"] == "generic"
    for backend in ("reference", "cpu"):
        assert error(through(transformer, call, Everything(), backend=backend, family=about)[0], stock) < 1e-5
    after = processors(transformer)
    assert all(after[each] is before[each] for each in before) and torch.equal(forward(transformer, call), stock)
    assert not transformer._forward_hooks and not transformer._forward_pre_hooks


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", [name for name in KNOWN if name != MASKED])
def test_dense_steps_are_stock_bit_for_bit(name: str, dtype: torch.dtype) -> None:
    model = models()[name]
    transformer: Any = model.build().to(dtype)
    for part, module in transformer.named_modules():
        if set(part.split(".")) & set(transformer._keep_in_fp32_modules or ()):
            module.float()
    call = cast(model.inputs(transformer), dtype)
    stock = forward(transformer, call)
    found, summary = through(transformer, call, "radial", schedule={"dense_first_steps": 1.0}, family=KNOWN[name])
    assert torch.equal(found, stock)
    assert summary["calls"] == {"sparse": 0, "dense": len(GenericFamily(KNOWN[name], transformer).sites(transformer))}


def test_kandinsky_6_runs_as_its_refusal_says() -> None:
    from diffusers import Kandinsky6Transformer3DModel

    torch.manual_seed(1)
    transformer = Kandinsky6Transformer3DModel(
        in_visual_dim=4, out_visual_dim=4, in_text_dim=16, in_text_dim2=16, time_dim=16, model_dim=128, ff_dim=64,
        num_text_blocks=1, num_visual_blocks=2, axes_dims=(16, 24, 24), visual_cond=False, in_audio_dim=4,
        out_audio_dim=4,
    ).eval()  # fmt: skip
    call = {"hidden_states": torch.randn(2, 5, 8, 12, 4), "encoder_hidden_states": torch.randn(2, 7, 16),
            "pooled_projections": torch.randn(2, 16), "timestep": torch.full((2,), 500.0),
            "audio_hidden_states": torch.randn(2, 9, 4)}  # fmt: skip
    with pytest.raises(ValueError, match="Kandinsky6Transformer3DModel is not supported") as refused:
        vidaccel.enable(transformer, "radial", **SPARSE)
    told = str(refused.value)
    about = eval(told[told.index("Generic(") :], {"Generic": Generic})
    stock = forward(transformer, call)
    found, summary = through(transformer, call, "radial", schedule={"dense_first_steps": 1.0}, family=about)
    assert torch.equal(found, stock) and summary["calls"] == {"sparse": 0, "dense": 2}
    assert error(through(transformer, call, Everything(), family=about)[0], stock) < 1e-5
    sparse, summary = through(transformer, call, "random", **HALF, family=about)
    assert error(sparse, stock) > 1e-3 and summary["calls"] == {"sparse": 2, "dense": 0}


@pytest.mark.parametrize("name", ["WanTransformer3DModel", "CogVideoXTransformer3DModel"])
def test_a_pipeline_makes_the_same_video(name: str) -> None:
    model = models()[name]
    assert model.pipeline is not None
    pipe = model.pipeline()

    def video(**options: Any) -> tuple[np.ndarray, dict[str, Any]]:
        with vidaccel.enable(pipe, "random", **HALF, min_tokens=0, **options) as session:
            made = pipe(**model.call, generator=torch.Generator().manual_seed(0)).frames
        return np.asarray(made[0]), session.summary().to_dict()

    expected, counts = video()
    found, other = video(family=KNOWN[name])
    assert np.array_equal(found, expected) and counts["calls"] == other["calls"] and counts["calls"]["sparse"] > 0


def test_other_models_and_the_modules_stay_as_they_are() -> None:
    model = models()["WanTransformer3DModel"]
    transformer, other = model.build(), model.build()
    call = model.inputs(transformer)
    stock = forward(other, call)
    with vidaccel.enable(transformer, "random", **SPARSE, **HALF, family="generic"):
        assert transformer_wan.dispatch_attention_fn is dispatch_attention_fn
        assert torch.equal(forward(other, call), stock) and not torch.equal(forward(transformer, call), stock)
        copied = copy.deepcopy(transformer)
        assert torch.equal(forward(copied, call), stock)


def test_gradients_lora_backends_and_offloading() -> None:
    model = models()["WanTransformer3DModel"]
    transformer: Any = model.build()
    call = model.inputs(transformer)
    expected = gradient(transformer, call)
    with vidaccel.enable(transformer, "random", **SPARSE, **HALF, family="generic"):
        assert torch.equal(gradient(transformer, call), expected)
        transformer.add_adapter(LoraConfig(r=4, target_modules=["to_q", "to_v"], init_lora_weights=False))
        sparse = forward(transformer, call)
    assert torch.equal(through(transformer, call, "random", **HALF)[0], sparse)
    given = {**SPARSE, **DENSE, "family": "generic"}
    with vidaccel.enable(transformer, **given):
        transformer.set_attention_backend("_native_math")
        found = forward(transformer, call)
    stock = forward(transformer, call)
    transformer.reset_attention_backend()
    transformer_wan.dispatch_attention_fn.__globals__["_AttentionBackendRegistry"].set_active_backend("native")
    assert torch.equal(found, stock)
    device = torch.device("cpu")
    transformer.enable_group_offload(onload_device=device, offload_device=device, offload_type="leaf_level")
    with vidaccel.enable(transformer, "random", **SPARSE, **HALF, family="generic"):
        assert torch.equal(forward(transformer, call), sparse)


def test_compiled_blocks_break_at_the_attention_and_stay_right() -> None:
    model = models()["WanTransformer3DModel"]
    transformer: Any = model.build()
    call = model.inputs(transformer)
    stock = forward(transformer, call)
    expected, _ = through(transformer, call, "random", **HALF, family="generic")
    torch._dynamo.reset()
    for block in transformer.blocks:
        block.compile(backend="eager")
    found, _ = through(transformer, call, "random", **HALF, family="generic")
    assert torch.equal(found, expected)
    torch._dynamo.reset()
    for block in transformer.blocks:
        block.compile(backend="eager", fullgraph=True)
    assert torch.equal(forward(transformer, call), stock)
    with pytest.raises(torch._dynamo.exc.Unsupported):
        through(transformer, call, "random", **HALF, family="generic")
    torch._dynamo.reset()


# What does not fit is an error that says the numbers and what to do.


@pytest.mark.parametrize(
    ("name", "about", "message"),
    [
        ("CogVideoXTransformer3DModel", Generic(), r'transformer_blocks.0.attn1 attends to 136 tokens, but .*5x4x6, is '
                                                   r'120: if the 16 more are text.*Generic\(text="before"\)'),
        ("CogVideoXTransformer3DModel", Generic(text="before", text_tokens=9), "136 tokens.*after 9 text .* is 129"),
        ("WanTransformer3DModel", Generic(patch=(1, 1, 2)), "120 tokens.*patches of 1x1x2, a grid of 5x8x6, is 240"),
        ("WanTransformer3DModel", Generic(grid="5x4x7"), "120 tokens, but Generic.grid='5x4x7'. is 140"),
        ("WanTransformer3DModel", Generic(heads=(4, 32)), "2 heads of 64, not 4 of 32"),
        ("WanTransformer3DModel", Generic(sites="*.attn2"), r"blocks.0.attn2 makes no self-attention \(120 queries on"),
        ("LTXVideoTransformer3DModel", Generic(grid="5x4x6"), "attn2 makes no self-attention.*of transformer_blocks"),
        ("LTX2VideoTransformer3DModel", Generic(grid="5x4x6"), "audio_attn1 attends to 10 tokens"),
        ("WanVACETransformer3DModel", Generic(), "blocks.0.attn1 runs after vace_blocks.1.attn1"),
        ("MochiTransformer3DModel", Generic(text="after", latents="BCTHW"), "several self-attentions|attends to 125"),
        (MASKED, KNOWN[MASKED], r"attends with a mask, bool \[2, 1, 150, 150\]"),
        ("HeliosTransformer3DModel", Generic(), "178 tokens.*is 120: if the 58 more"),
    ],
)  # fmt: skip
def test_what_arrives_must_fit(name: str, about: Generic, message: str) -> None:
    model = models()[name]
    transformer = model.build()
    call = model.inputs(transformer)
    stock = forward(transformer, call)
    # Also while the steps are dense, so that none is lost.
    for schedule in (NEVER_DENSE, {"dense_first_steps": 1}):
        with (
            vidaccel.enable(transformer, "random", **BARE, **HALF, schedule=schedule, family=about),
            pytest.raises(RuntimeError, match=message),
        ):
            forward(transformer, call)
    assert torch.equal(forward(transformer, call), stock)


@pytest.mark.parametrize(
    ("name", "about", "message"),
    [
        ("LTXVideoTransformer3DModel", Generic(sites="*.attn1"), r"hidden_states \[2, 120, 8\] has no axes.*grid="),
        ("MochiTransformer3DModel", Generic(), r"the 12 channels of .* may stand in any of BCTHW, BTHWC.*latents="),
        ("CosmosTransformer3DModel", Generic(text="after", latents="BCTHW", patch=(9, 2, 2)), "has no tokens"),
        ("AllegroTransformer3DModel", Generic(text="before"), r"text='before', but.*text_tokens="),
    ],
)
def test_what_cannot_be_read_must_be_said(name: str, about: Generic, message: str) -> None:
    model = models()[name]
    transformer = model.build()
    with (
        vidaccel.enable(transformer, "random", **SPARSE, **HALF, family=about),
        pytest.raises(ValueError, match=message),
    ):
        forward(transformer, model.inputs(transformer))


def test_enable_refuses_what_it_cannot_patch() -> None:
    wan, cog = models()["WanTransformer3DModel"].build(), models()["CogVideoXTransformer3DModel"].build()
    before = processors(wan)
    for family, message in (
        ("wan", "family='wan' is none of None"),
        (7, "family=7"),
        (Generic(timestep="sigma"), "has no argument sigma; it has hidden_states, timestep"),
        (Generic(sites="layers.*"), r"sites='layers.\*' fits no attention module of .* has blocks.\*.attn1, blocks"),
    ):
        with pytest.raises(ValueError, match=message):
            vidaccel.enable(wan, "radial", **SPARSE, family=family)
    with pytest.raises(ValueError, match="cannot be for CogVideoXTransformer3DModel and WanTransformer3DModel"):
        vidaccel.enable(SimpleNamespace(transformer=wan, transformer_2=cog), "radial", family="generic")
    with pytest.raises(ValueError, match="Linear has no config"):
        vidaccel.enable(nn.Linear(2, 2), "radial", **SPARSE, family="generic")
    with pytest.raises(ValueError, match="cannot be bracketed, so that no step can be cached"):
        vidaccel.enable(wan, "radial", **SPARSE, family="generic", cache="easycache")
    assert processors(wan) == before and not wan._forward_pre_hooks


@pytest.mark.parametrize(
    "wrong",
    [{"text": "left"}, {"text_tokens": 4}, {"text": "after", "text_tokens": 0}, {"grid": "5x4"}, {"latents": "BHWTC"},
     {"sites": 5}, {"sites": ("a", 1)}, {"patch": (1, 2)}, {"patch": 2}, {"heads": (2, 0)}, {"heads": (2.0, 64)}],
)  # fmt: skip
def test_values_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{list(wrong)[-1]}|grid"):
        Generic(**wrong)


def test_timesteps_that_rise_must_be_said() -> None:
    transformer = models()["WanTransformer3DModel"].build()
    scheduler = SimpleNamespace(timesteps=torch.arange(4))
    for rise, steps in ((False, (500.0, 400.0, 400.0)), (True, (400.0, 400.0, 500.0))):
        for about, fits in ((Generic(timesteps_rise=rise), True), (Generic(timesteps_rise=not rise), False)):
            family = GenericFamily(about, transformer)
            assert family.timesteps_rise is about.timesteps_rise

            def run(family: GenericFamily = family, steps: tuple[float, ...] = steps) -> None:
                for step in steps:
                    family.timestep(Call((torch.zeros(1), torch.tensor([step])), {}))
                    family.scheduled(scheduler)

            if fits:
                run()
                scheduler.timesteps = torch.arange(4)
                run()  # a new run, by a new list of timesteps
            else:
                with pytest.raises(RuntimeError, match=f"in one run, against timesteps_rise={not rise}"):
                    run()


# Processors in the ways in which they may be written, in a model that is no one's.


class Dispatched:
    def __call__(self, attn: Any, hidden_states: Tensor, given: dict[str, Any] | None = None) -> Tensor:
        query, key, value = attn.project(hidden_states)
        return attn.to_out(dispatch_attention_fn(query, key, value, **given or {}).flatten(2))


class Aliased:
    def __call__(self, attn: Any, hidden_states: Tensor, given: dict[str, Any] | None = None) -> Tensor:
        query, key, value = (each.transpose(1, 2) for each in attn.project(hidden_states))
        return attn.to_out(sdpa(query, key, value, **given or {}).transpose(1, 2).flatten(2))


class Qualified:
    def __call__(self, attn: Any, hidden_states: Tensor, given: dict[str, Any] | None = None) -> Tensor:
        query, key, value = (each.transpose(1, 2) for each in attn.project(hidden_states))
        out = torch.nn.functional.scaled_dot_product_attention(query, key, value, None, 0.0, **given or {})
        return attn.to_out(out.transpose(1, 2).flatten(2))


class Nested:
    def __call__(self, attn: Any, hidden_states: Tensor, given: dict[str, Any] | None = None) -> Tensor:
        def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(query, key, F.dropout(value, 0.0), **given or {})

        query, key, value = (each.transpose(1, 2) for each in attn.project(hidden_states))
        return attn.to_out(attend(query, key, value).transpose(1, 2).flatten(2))


class Elsewhere:
    def __call__(self, attn: Any, hidden_states: Tensor, given: dict[str, Any] | None = None) -> Tensor:
        return attn.to_out(helper(*attn.project(hidden_states)).flatten(2))


def helper(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return dispatch_attention_fn(query, key, value)


class Attend(nn.Module):
    def __init__(self, processor: Any) -> None:
        super().__init__()
        self.heads, self.processor = 2, processor
        self.to_q, self.to_k, self.to_v, self.to_out = (nn.Linear(128, 128) for _ in range(4))

    def project(self, states: Tensor) -> tuple[Tensor, ...]:
        return tuple(layer(states).unflatten(2, (2, 64)) for layer in (self.to_q, self.to_k, self.to_v))

    def forward(self, states: Tensor, given: dict[str, Any] | None) -> Tensor:
        out: Tensor = self.processor(attn=self, hidden_states=states, given=given)
        return out


class Strange(ModelMixin, ConfigMixin):
    """Three attention layers over latents, whose configuration says no heads."""

    @register_to_config
    def __init__(self, in_channels: int = 4, patch_size: int = 2) -> None:
        super().__init__()
        self.embed = nn.Conv3d(in_channels, 128, (1, patch_size, patch_size), (1, patch_size, patch_size))
        self.layers = nn.ModuleList()

    def forward(self, timestep: Tensor, hidden_states: Tensor, given: Any = None, skip: int = -1,
                return_dict: bool = False) -> tuple[Tensor]:  # fmt: skip
        states = self.embed(hidden_states).flatten(2).transpose(1, 2) + 0.001 * timestep[:, None, None]
        for index, layer in enumerate(self.layers):
            states = states if index == skip else states + layer(states, given)
        return (states,)


def strange(processor: Any) -> Strange:
    torch.manual_seed(3)
    model = Strange()
    model.layers.extend(Attend(processor) for _ in range(3))
    return model.eval()


def latents() -> dict[str, Any]:
    torch.manual_seed(4)
    return {"hidden_states": torch.randn(2, 4, 5, 8, 12), "timestep": torch.full((2,), 500.0)}


@pytest.mark.parametrize("kind", [Dispatched, Aliased, Qualified, Nested])
def test_attention_is_found_however_it_is_called(kind: Any) -> None:
    model, call = strange(kind()), latents()
    stock = forward(model, call)
    found, summary = through(model, call, "radial", schedule={"dense_first_steps": 1.0}, family="generic")
    assert torch.equal(found, stock) and summary["calls"] == {"sparse": 0, "dense": 3}
    assert error(through(model, call, Everything(), backend="reference", family="generic")[0], stock) < 1e-5
    sparse, summary = through(model, call, "random", **HALF, family="generic")
    assert error(sparse, stock) > 1e-3 and summary["calls"] == {"sparse": 3, "dense": 0}


def test_attention_behind_a_helper_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Elsewhere of layers.0 calls neither .* of Strange: layers.\*"):
        vidaccel.enable(strange(Elsewhere()), "radial", **SPARSE, family="generic")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"is_causal": True}, "layers.0 attends with is_causal=True"),
        ({"scale": 0.3}, "scale=0.3"),
        ({"dropout_p": 0.1}, "dropout_p=0.1"),
        ({"attn_mask": torch.zeros(2, 1, 1, 120)}, r"a mask, float32 \[2, 1, 1, 120\]"),
        ({"attn_mask": torch.ones(2, 1, 120, 120, dtype=torch.bool)}, r"a mask, bool \[2, 1, 120, 120\]"),
        ({"attn_mask": torch.arange(120)[None, None, None].repeat(2, 1, 1, 1) > 4}, "hides keys before others"),
    ],
    ids=["causal", "scale", "dropout", "bias", "matrix", "start"],
)
def test_other_attention_is_refused(given: dict[str, Any], message: str) -> None:
    model = strange(Dispatched())
    with (
        vidaccel.enable(model, Everything(), **SPARSE, family="generic"),
        pytest.raises(RuntimeError, match=message),
    ):
        forward(model, latents() | {"given": given})


def test_padding_at_the_end_is_kept_and_usual_arguments_are_let_pass() -> None:
    model = strange(Dispatched())
    mask = (torch.arange(120)[None] < torch.tensor([[120], [90]]))[:, None, None]
    call = latents() | {"given": {"attn_mask": mask, "scale": 64**-0.5, "dropout_p": 0.0, "enable_gqa": True}}
    stock = forward(model, call)
    assert error(forward(model, latents()), stock) > 1e-3
    found, _ = through(model, call, "radial", schedule={"dense_first_steps": 1.0}, family="generic")
    assert torch.equal(found, stock)
    assert error(through(model, call, Everything(), family="generic")[0], stock) < 1e-5


def test_modules_that_do_not_run_are_told_once_and_may_be_left_out_later() -> None:
    model = strange(Dispatched())
    with (
        vidaccel.enable(model, "random", **SPARSE, **HALF, family="generic"),
        pytest.raises(RuntimeError, match=r"1 of the 3 attention modules .* of Strange: layers.\*"),
    ):
        forward(model, latents() | {"skip": 1})
    with vidaccel.enable(model, "random", **SPARSE, **HALF, family=Generic(sites=("layers.0", "layers.2"))):
        forward(model, latents() | {"skip": 1})
    with vidaccel.enable(model, "random", **SPARSE, **HALF, family="generic"):
        forward(model, latents())
        forward(model, latents() | {"skip": 1})  # as guidance that skips a layer does


def test_a_layer_outside_its_forward_is_refused() -> None:
    model = strange(Dispatched())
    with vidaccel.enable(model, "random", **SPARSE, **HALF, family="generic"), torch.no_grad():
        forward(model, latents())
        with pytest.raises(RuntimeError, match="outside its transformer's forward"):
            model.layers[0](torch.randn(2, 120, 128), None)


def test_a_forward_that_failed_leaves_nothing_behind() -> None:
    model = strange(Dispatched())
    stock = forward(model, latents())
    with vidaccel.enable(model, Everything(), **SPARSE, family="generic"):
        with pytest.raises(TypeError):
            forward(model, latents() | {"given": {"unknown": 1}})
        assert error(forward(model, latents()), stock) < 1e-5
    assert math.isfinite(stock.sum()) and torch.equal(forward(model, latents()), stock)
    assert not model._forward_hooks and not model._forward_pre_hooks

"""What users do to their pipelines: adapters, casting, offload, compiling, kinds of calls; with sparse attention, with
a cache, and with both. What only a cache minds is in `tests.caching.test_interplay`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch._dynamo.testing
from diffusers import (
    CogVideoXDPMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor, nn

import vidaccel
from tests import tiny
from tests.caching.cases import Told
from tests.methods.online import PIPES, TEMPLATE
from vidaccel.caching import Cache
from vidaccel.caching.predictors import Hold

DROPS: dict[str, Any] = {"method": "radial", "decay": 0.0, "block": 16, "split": 16, "min_tokens": 0,
                         "schedule": {"dense_first_steps": 1, "dense_first_layers": 0}}  # fmt: skip
REUSES: dict[str, Any] = {"cache": Cache(Told((2,)), Hold(), min_steps=1)}
SETTINGS: dict[str, dict[str, Any]] = {
    "sparse": DROPS, "cache": {"method": None, **REUSES}, "both": DROPS | REUSES,
}  # fmt: skip
BOTH = SETTINGS["both"]
EXACT = DROPS | {"schedule": {"dense_first_steps": 1.0}, "cache": Cache(Told(), Hold(), min_steps=1)}
"""Everything is ours, and nothing is left out: stock bit for bit."""
FIRST_LAST: dict[str, Any] = {"image": True, "clip": True, "last_image": True}
FAMILIES: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    **PIPES, "wan from images": (lambda: tiny.tiny_wan(**FIRST_LAST), {}),
}  # fmt: skip
CPU = torch.device("cpu")
FLOW: dict[str, Any] = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
PROMPTS = ["a red circle", "a blue square moves left"]


def make(family: str) -> Any:
    return FAMILIES[family][0]()


def latents(family: str, pipe: Any, **call: Any) -> np.ndarray:
    """What a run of four steps gives, in fp32."""
    given = {"output_type": "latent", **FAMILIES[family][1], **call}
    made: Tensor = pipe(**tiny.wan_inputs(pipe, **given)).frames
    return made.float().numpy()


def enabled(family: str, pipe: Any, setting: dict[str, Any] = BOTH, **call: Any) -> np.ndarray:
    with vidaccel.enable(pipe, **setting):
        return latents(family, pipe, **call)


def calls(session: Any) -> dict[str, int]:
    found: dict[str, int] = session.summary().to_dict()["calls"]
    return found


def quantise(pipe: Any) -> None:
    from torchao import quantization

    linears = lambda module, name: isinstance(module, nn.Linear) and ".to_" in name  # noqa: E731
    quantization.quantize_(pipe.transformer, quantization.Int8WeightOnlyConfig(), linears)


def offload_groups(pipe: Any, kind: str) -> None:
    blocks = {"num_blocks_per_group": 1} if kind == "block_level" else {}
    pipe.transformer.enable_group_offload(onload_device=CPU, offload_device=CPU, offload_type=kind, **blocks)


def no_ops(pipe: Any) -> None:
    """Switches that change nothing, or nothing of the transformer."""
    pipe.enable_attention_slicing()
    pipe.vae.enable_tiling()
    pipe.vae.enable_slicing()


def dpm(pipe: Any) -> None:
    if "CogVideoX" in type(pipe).__name__:
        pipe.scheduler = CogVideoXDPMScheduler(prediction_type="v_prediction", timestep_spacing="trailing")
    else:
        pipe.scheduler = DPMSolverMultistepScheduler(**FLOW)


CHANGES: dict[str, tuple[Callable[[Any], Any], bool]] = {
    "model offload": (lambda pipe: pipe.enable_model_cpu_offload(device="cpu"), True),
    "group offload, leaves": (lambda pipe: offload_groups(pipe, "leaf_level"), True),
    "group offload, blocks": (lambda pipe: offload_groups(pipe, "block_level"), True),
    "group offload of a pipeline": (
        lambda pipe: pipe.enable_group_offload(onload_device=CPU, offload_device=CPU, offload_type="leaf_level"), True),
    "slicing and tiling": (no_ops, True),
    "fp8 storage": (lambda pipe: pipe.transformer.enable_layerwise_casting(
        storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32), False),
    "int8 weights": (quantise, False),
    "bfloat16": (lambda pipe: pipe.to(torch.bfloat16), False),
    "Euler": (lambda pipe: setattr(pipe, "scheduler", FlowMatchEulerDiscreteScheduler(shift=5.0)), False),
    "UniPC": (lambda pipe: setattr(pipe, "scheduler", UniPCMultistepScheduler(**FLOW)), False),
    "DPM++": (dpm, False),
}  # fmt: skip
"""What is done to a pipeline, and whether its result stays the same."""
UNFIT = {("cogvideox", "Euler"), ("cogvideox", "UniPC"), ("hunyuanvideo", "DPM++")}
"""Schedulers that the stock pipelines do not run with."""
CHANGED = [
    pytest.param(family, change, marks=[pytest.mark.torchao] if change == "int8 weights" else [])
    for family in PIPES for change in CHANGES if (family, change) not in UNFIT
]  # fmt: skip


@pytest.mark.parametrize(("family", "change"), CHANGED)
def test_changed_before_enable_or_after(family: str, change: str) -> None:
    """The same either way and in every later run, and stock once everything is computed."""
    apply, same = CHANGES[change]
    pipe, other = make(family), make(family)
    apply(pipe)
    stock = latents(family, pipe)
    assert np.array_equal(enabled(family, pipe, EXACT), stock)
    expected = enabled(family, pipe)
    assert not np.array_equal(expected, stock)
    with vidaccel.enable(other, **BOTH) as session:
        assert np.array_equal(latents(family, other), expected) is same
        apply(other)
        for _ in range(2):
            assert np.array_equal(latents(family, other), expected)
        passes = 2 if family == "wan" else 1
        assert calls(session) == {"sparse": 4 * passes, "dense": 2 * passes, "spared": 2 * passes}
    assert np.array_equal(latents(family, other), stock)


def choose_math(pipe: Any) -> None:
    """Another backend of diffusers, which rounds otherwise, for one transformer."""
    pipe.transformer.set_attention_backend("_native_math")
    # That set the default of the whole process, too; this sets it back.
    make("wan").transformer.set_attention_backend("native")


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("family", ["wan", "hunyuanvideo"])
def test_attention_backend_of_diffusers_is_passed_on(family: str, when: str) -> None:
    """To dense steps, and to the stock processors that come back."""
    pipe, other = make(family), make(family)
    choose_math(other)
    expected = latents(family, other)
    assert not np.array_equal(latents(family, pipe), expected)
    if when == "before":
        choose_math(pipe)
    with vidaccel.enable(pipe, **EXACT):
        if when == "after":
            choose_math(pipe)
        assert np.array_equal(latents(family, pipe), expected)
    assert np.array_equal(latents(family, pipe), expected)


def test_fused_projections() -> None:
    pipe = make("wan")
    expected = enabled("wan", pipe)
    pipe.transformer.fuse_qkv_projections()
    np.testing.assert_allclose(enabled("wan", pipe), expected, atol=1e-4)


def lora(pipe: Any) -> dict[str, Tensor]:
    """Weights of a LoRA on queries and values, as its file has them."""
    found: dict[str, Tensor] = {}
    for name, module in pipe.transformer.named_modules():
        if isinstance(module, nn.Linear) and name.endswith(("to_q", "to_v")):
            found[f"transformer.{name}.lora_A.weight"] = 0.1 * torch.randn(4, module.in_features)
            found[f"transformer.{name}.lora_B.weight"] = 0.1 * torch.randn(module.out_features, 4)
    return found


def load(pipe: Any, weights: dict[str, Tensor]) -> None:
    pipe.load_lora_weights(dict(weights), adapter_name="style")


@pytest.mark.parametrize("family", PIPES)
@pytest.mark.parametrize("setting", SETTINGS)
def test_lora(family: str, setting: str) -> None:
    """Loaded, weakened, fused, unfused and unloaded between runs, each as if it had been so before `enable`."""
    given, pipe = SETTINGS[setting], make(family)
    weights = lora(pipe)
    plain = enabled(family, pipe, given)
    load(pipe, weights)
    whole = enabled(family, pipe, given)
    pipe.set_adapters("style", 0.5)
    half = enabled(family, pipe, given)
    pipe.unload_lora_weights()
    apart = [np.abs(a - b).max() for a, b in ((plain, whole), (plain, half), (half, whole))]
    assert min(apart) > 1e-3

    steps: list[tuple[Callable[[], Any], np.ndarray]] = [
        (lambda: load(pipe, weights), whole), (lambda: pipe.set_adapters("style", 0.5), half),
        (lambda: pipe.set_adapters("style", 1.0), whole), (pipe.fuse_lora, whole), (pipe.unfuse_lora, whole),
        (pipe.disable_lora, plain), (pipe.enable_lora, whole), (pipe.unload_lora_weights, plain),
        (lambda: (load(pipe, weights), pipe.fuse_lora(), pipe.unload_lora_weights()), whole),
    ]  # fmt: skip
    with vidaccel.enable(pipe, **given):
        for step, expected in steps:
            step()
            # Fused weights round otherwise, and come back so.
            np.testing.assert_allclose(latents(family, pipe), expected, atol=1e-5)


def guided(family: str) -> dict[str, Any]:
    """Arguments of a call with guidance by a negative prompt."""
    return {"true_cfg_scale": 3.0} if family == "hunyuanvideo" else {"guidance_scale": 3.0}


def embedded(family: str, pipe: Any) -> dict[str, Any]:
    """Arguments of a call without prompts: what the text encoders made of those of `tiny.wan_inputs`."""
    names = {"hunyuanvideo": ("prompt_embeds", "pooled_prompt_embeds", "prompt_attention_mask")}
    own = {"negative_prompt": "blurry"} if family != "hunyuanvideo" else TEMPLATE
    with torch.no_grad():
        made = pipe.encode_prompt(prompt="a red circle moves left", max_sequence_length=16, **own)
    found = names.get(family, ("prompt_embeds", "negative_prompt_embeds"))
    return {"prompt": None, "negative_prompt": None, **dict(zip(found, made, strict=True))}


def interrupt(pipe: Any, step: int, timestep: Any, kwargs: Any) -> dict[str, Any]:
    if step == 1:
        pipe._interrupt = True
    return {}


def kinds(family: str, pipe: Any) -> dict[str, tuple[dict[str, Any], int]]:
    """Calls of a pipeline by name, and guidance passes of a step."""
    two, one = (1, 1) if family == "cogvideox" else (2, 1)
    plain = 1 if family == "hunyuanvideo" else two
    first_last = {"image": tiny.tiny_image(5), "last_image": tiny.tiny_image(6)}
    made: dict[str, tuple[dict[str, Any], int]] = {
        "plain": ({}, plain), "guided": (guided(family), two), "unguided": ({"guidance_scale": 1.0}, one),
        "embeddings": (embedded(family, pipe), plain), "interrupted": ({"callback_on_step_end": interrupt}, plain),
    }  # fmt: skip
    if "images" in family:
        return made | {"other images": (first_last, plain)}
    # CogVideoX's pipeline makes one video of a prompt whatever it is asked.
    several = {"num_videos_per_prompt": 2} if family != "cogvideox" else {"prompt": PROMPTS, "negative_prompt": None}
    return made | {"several": (several, plain)}


@pytest.mark.parametrize("family", FAMILIES)
def test_calls_of_all_kinds_in_turn(family: str) -> None:
    """Each counts its own steps and passes, and leaves nothing to the next."""
    pipe = make(family)
    asked, expected = kinds(family, pipe), {}
    for name, (call, _) in asked.items():
        stock = latents(family, pipe, **call)
        assert np.array_equal(enabled(family, pipe, EXACT, **call), stock), name
        expected[name] = enabled(family, pipe, **call)
        assert not np.array_equal(expected[name], stock), name
    assert np.array_equal(expected["plain"], expected["embeddings"])
    assert not np.array_equal(expected["guided"], expected["unguided"])
    with vidaccel.enable(pipe, **BOTH) as session:
        for name in (*asked, *reversed(asked)):
            call, passes = asked[name]
            assert np.array_equal(latents(family, pipe, **call), expected[name]), name
            # Of two layers in four steps: a dense one, a sparse one, a reused one, a sparse one; two if interrupted.
            sparse, spared = (2, 0) if name == "interrupted" else (4, 2)
            assert calls(session) == {"sparse": sparse * passes, "dense": 2 * passes, "spared": spared * passes}, name
            assert session.summary().to_dict()["steps"] == 4, name


@pytest.mark.parametrize("family", PIPES)
@pytest.mark.parametrize("method", ["radial", "nabla"])
def test_prompts_of_a_batch_are_as_alone(family: str, method: str) -> None:
    pipe, options = make(family), DROPS if method == "radial" else {"method": "nabla", "density": 0.4}
    setting = {"min_tokens": 0, "block": 16, "schedule": DROPS["schedule"], **options, **REUSES}
    shape = latents(family, pipe, num_inference_steps=1).shape[1:]
    noise, call = torch.randn(2, *shape), guided(family)
    stock = latents(family, pipe, prompt=PROMPTS, negative_prompt=["blurry"] * 2, latents=noise, **call)
    with vidaccel.enable(pipe, **setting):
        found = latents(family, pipe, prompt=PROMPTS, negative_prompt=["blurry"] * 2, latents=noise, **call)
        for row, prompt in enumerate(PROMPTS):
            alone = latents(family, pipe, prompt=prompt, latents=noise[row : row + 1], **call)
            np.testing.assert_allclose(found[row], alone[0], atol=2e-5)
            assert np.abs(found[row] - stock[row]).max() > 1e-3


@pytest.mark.parametrize("family", PIPES)
def test_inference_mode(family: str) -> None:
    """Of a run, and of `enable`: nothing that was made in one is of no use in the other."""
    pipe = make(family)
    expected = enabled(family, pipe)
    with vidaccel.enable(pipe, **BOTH):
        with torch.inference_mode():
            assert np.array_equal(latents(family, pipe), expected)
        assert np.array_equal(latents(family, pipe), expected)
    with torch.inference_mode():
        session = vidaccel.enable(pipe, **BOTH)
        assert np.array_equal(latents(family, pipe), expected)
    with session:
        assert np.array_equal(latents(family, pipe), expected)


@pytest.mark.parametrize("family", PIPES)
def test_saving_keeps_nothing_of_ours(family: str, tmp_path: Path) -> None:
    pipe = make(family)
    stock = latents(family, pipe)
    pipe.save_pretrained(tmp_path / "stock")
    with vidaccel.enable(pipe, **BOTH):
        expected = latents(family, pipe)
        pipe.save_pretrained(tmp_path / "enabled")
    files = {path.relative_to(tmp_path / "stock") for path in (tmp_path / "stock").rglob("*") if path.is_file()}
    assert len(files) > 5
    assert files == {path.relative_to(tmp_path / "enabled")
                     for path in (tmp_path / "enabled").rglob("*") if path.is_file()}  # fmt: skip
    assert all((tmp_path / "stock" / file).read_bytes() == (tmp_path / "enabled" / file).read_bytes() for file in files)
    cls = type(pipe.transformer)
    pipe.transformer = cls.from_pretrained(tmp_path / "enabled" / "transformer")
    # Weights of a file lie elsewhere in memory, which rounds otherwise.
    np.testing.assert_allclose(latents(family, pipe), stock, atol=1e-5)
    np.testing.assert_allclose(enabled(family, pipe), expected, atol=1e-5)
    assert np.abs(expected - stock).max() > 1e-3


@pytest.mark.parametrize("family", PIPES)
def test_from_pipe(family: str) -> None:
    """A pipeline made of an enabled one, with its transformer and scheduler, is enabled with it, and disables both."""
    pipe = make(family)
    stock = latents(family, pipe)
    session = vidaccel.enable(pipe, **BOTH)
    expected = latents(family, pipe)
    other = type(pipe).from_pipe(pipe)
    other.set_progress_bar_config(disable=True)
    assert np.array_equal(latents(family, other), expected) and session.runs == 2
    assert np.array_equal(latents(family, pipe), expected)
    vidaccel.disable(other)
    assert np.array_equal(latents(family, other), stock) and np.array_equal(latents(family, pipe), stock)


def counted() -> torch._dynamo.testing.CompileCounter:
    torch._dynamo.reset()
    return torch._dynamo.testing.CompileCounter()


GRAPHS = {"wan": 1, "hunyuanvideo": 2, "cogvideox": 2}
"""Of the stock blocks: one for each kind, and in CogVideoX one more, as the first block gets other strides."""


@pytest.mark.parametrize("family", PIPES)
def test_compiled_blocks_are_one_dense_and_one_sparse_graph(family: str) -> None:
    """For all layers and steps, computed or reused."""
    pipe = make(family)
    counter = counted()
    with vidaccel.enable(pipe, **BOTH) as session:
        expected, before = latents(family, pipe), calls(session)
        for block in session.family.blocks(pipe.transformer):
            block.compile(fullgraph=True, backend=counter)
        assert np.array_equal(latents(family, pipe), expected) and calls(session) == before
    assert counter.frame_count == 2 * GRAPHS[family]


@pytest.mark.slow
def test_inductor_gives_the_same_video() -> None:
    pipe = make("wan")
    expected = enabled("wan", pipe, DROPS)
    torch._dynamo.reset()
    for block in pipe.transformer.blocks:
        block.compile(fullgraph=True)
    np.testing.assert_allclose(enabled("wan", pipe, DROPS), expected, atol=2e-3)


@pytest.mark.parametrize("family", PIPES)
def test_whole_transformer_compiled(family: str) -> None:
    """One graph for dense calls, one for sparse ones; with a cache it is refused, before and after `enable`."""
    pipe = make(family)
    expected = enabled(family, pipe, DROPS)
    counter = counted()
    with vidaccel.enable(pipe, **BOTH):
        pipe.transformer.compile(fullgraph=True, backend=counter)
        with pytest.raises(RuntimeError, match="is compiled as a whole.*compile_repeated_blocks"):
            latents(family, pipe)
    with pytest.raises(ValueError, match="is compiled as a whole"):
        vidaccel.enable(pipe, **BOTH)
    assert counter.frame_count == 0
    with vidaccel.enable(pipe, **DROPS):
        for _ in range(2):
            assert np.array_equal(latents(family, pipe), expected)
    assert counter.frame_count == 2

"""HunyuanVideo 1.5: no mask of all queries by all keys, the same valid tokens, and the passes of a guider."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import ClassifierFreeGuidance
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import vidaccel
from tests.pipelines.cases import (
    DENSE,
    METHODS,
    NEVER_DENSE,
    SPARSE,
    Everything,
    assert_text_is_kept,
    error,
    forward,
    gradient,
    through,
)
from tests.pipelines.models.hunyuanvideo15 import LAYOUT, build, guided, inputs, tiny_hunyuanvideo15
from vidaccel.pipelines import family_of
from vidaccel.pipelines.base import Call

ALL_DENSE = DENSE | {"num_inference_steps": 4}
POSITIONS = ("hidden_states", "timestep", "encoder_hidden_states", "encoder_attention_mask", "timestep_r",
             "encoder_hidden_states_2", "encoder_attention_mask_2", "image_embeds")


class Largest(TorchDispatchMode):
    """The most elements that one bool tensor had which an operation gave."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.dtype == torch.bool:
            self.elements = max(self.elements, out.numel())
        return out


@pytest.fixture
def transformer() -> Any:
    return build()


def row(call: dict[str, Any], index: int) -> dict[str, Any]:
    """The same pass with one row of the batch."""
    return {name: each[index : index + 1] for name, each in call.items()}


def streams(transformer: Any, call: dict[str, Any]) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
    """What each block gives, and which text tokens are valid."""
    out, masks = [], []
    hooks = [block.register_forward_hook(lambda block, args, given: out.append(given) or masks.append(args[3]))
             for block in transformer.transformer_blocks]  # fmt: skip
    forward(transformer, call)
    for hook in hooks:
        hook.remove()
    return out, masks[0]


@pytest.mark.parametrize("setting", [ALL_DENSE, SPARSE | METHODS["radial"]], ids=["dense", "sparse"])
def test_no_mask_of_all_queries_by_all_keys(transformer: Any, setting: dict[str, Any]) -> None:
    call, setting = inputs(transformer), {"method": "radial", "num_inference_steps": 4, "backend": "cpu"} | setting
    with Largest() as stock:
        forward(transformer, call)
    with vidaccel.enable(transformer, **setting), Largest() as ours:
        forward(transformer, call)
    assert stock.elements == 2 * LAYOUT.tokens**2
    assert ours.elements < stock.elements / LAYOUT.tokens * 8


def test_valid_tokens_of_both_streams_are_bit_identical(transformer: Any) -> None:
    call = inputs(transformer)
    stock, valid = streams(transformer, call)
    with vidaccel.enable(transformer, **ALL_DENSE):
        ours, _ = streams(transformer, call)
    assert valid.sum(dim=1).tolist() == [24, 5] and len(ours) == 3
    for (video, text), (expected_video, expected_text) in zip(ours, stock, strict=True):
        assert torch.equal(video, expected_video) and torch.equal(text[valid], expected_text[valid])
        assert text.isfinite().all()


@pytest.mark.parametrize("method", METHODS)
def test_prompts_of_different_lengths_in_a_batch_are_as_alone(transformer: Any, method: str) -> None:
    call, options = inputs(transformer, lengths=((16, 8), (5, 0), (1, 8))), SPARSE | METHODS[method]
    together = through(transformer, call, method, **options)
    for index in range(3):
        alone = through(transformer, row(call, index), method, **options)
        assert error(together[index : index + 1], alone) < 1e-5
    assert error(together, forward(transformer, call)) > 1e-3  # or the mask would have dropped nothing


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_padding_never_reaches_the_video(transformer: Any, backend: str) -> None:
    """What the blocks get as padding does not count."""
    call = inputs(transformer)

    def filled(block: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (args[0], args[1].masked_fill(~args[3][:, :, None], 100.0), *args[2:])

    for method, options in ((Everything(), {}), ("radial", SPARSE | METHODS["radial"])):
        options = options | {"backend": backend}
        expected = through(transformer, call, method, **options)
        hook = transformer.transformer_blocks[0].register_forward_pre_hook(filled)
        found = through(transformer, call, method, **options)
        hook.remove()
        assert torch.equal(found, expected)


def test_image_tokens_count_only_where_there_is_an_image(transformer: Any) -> None:
    call, image = inputs(transformer), inputs(transformer, image=True)
    setting = SPARSE | METHODS["radial"]
    without = through(transformer, call, "radial", **setting)
    cut = call | {"image_embeds": call["image_embeds"][:, :1]}
    # One hidden token less or more shifts no tile of the video.
    assert error(through(transformer, cut, "radial", **setting), without) < 1e-5
    assert error(through(transformer, image, "radial", **setting), without) > 1e-3


def test_layout_from_arguments_by_name_and_by_position(transformer: Any) -> None:
    call = inputs(transformer)
    family, values = family_of(transformer), tuple(call.get(name) for name in POSITIONS)
    for args, kwargs in (((), call), (values, {})):
        assert family.layout(transformer, Call(args, kwargs)) == LAYOUT
    with pytest.raises(ValueError, match="image_embeds=None"):
        family.layout(transformer, Call((), call | {"image_embeds": None}))
    with pytest.raises(ValueError, match="without encoder_hidden_states_2"):
        family.layout(transformer, Call((), {name: call[name] for name in call if not name.endswith("_2")}))


@pytest.mark.parametrize(("latents", "tokens"), [((31, 30, 53), 51_275), ((31, 45, 80), 113_585)])
def test_layout_of_real_sizes(transformer: Any, latents: tuple[int, int, int], tokens: int) -> None:
    """480x848 and 720x1280 with 121 frames."""
    lengths = {"encoder_hidden_states": 1000, "encoder_hidden_states_2": 256, "image_embeds": 729}
    call = {name: torch.empty(1, length, 1, device="meta") for name, length in lengths.items()}
    call["hidden_states"] = torch.empty(1, 65, *latents, device="meta")
    assert family_of(transformer).layout(transformer, Call((), call)).tokens == tokens


def test_static_plans_keep_the_text() -> None:
    assert_text_is_kept(LAYOUT)


@pytest.mark.parametrize(
    ("guider", "branches"),
    [(ClassifierFreeGuidance(6.0), [("cond", "uncond")] * 4), (ClassifierFreeGuidance(1.0), [("cond",)] * 4),
     (ClassifierFreeGuidance(6.0, stop=0.5), [("cond", "uncond")] * 2 + [("cond",)] * 2)],
    ids=["two passes", "one pass", "two passes, then one"],
)  # fmt: skip
def test_steps_and_passes_of_a_guider(guider: Any, branches: list[tuple[str, ...]]) -> None:
    pipe, method = tiny_hunyuanvideo15(), Everything()
    pipe.guider = guider
    with vidaccel.enable(pipe, method, min_tokens=0, schedule=NEVER_DENSE) as session:
        for _ in range(2):
            pipe(**guided() | {"output_type": "latent"}, generator=torch.Generator().manual_seed(0))
    run = [(step, branch, layer) for step, names in enumerate(branches) for branch in names for layer in range(3)]
    assert [(step, branch, layer) for branch, layer, step, _, _ in method.log] == run * 2
    assert session.runs == 2 and session.summary().to_dict()["calls"] == {"sparse": len(run), "dense": 0}


def test_training_and_other_masks_go_through_the_stock_processor(transformer: Any) -> None:
    call = inputs(transformer)
    stock = gradient(transformer, call)
    with vidaccel.enable(transformer, "radial", num_inference_steps=4, **SPARSE | METHODS["radial"]):
        assert torch.equal(gradient(transformer, call), stock)
        attn: Any = transformer.transformer_blocks[0].attn
        video, text = torch.randn(1, 8, 128), torch.randn(1, 4, 128)
        for mask in (torch.ones(1, 4), torch.rand(1, 12) > 0.3):
            with torch.no_grad():
                found = attn(video, text, attention_mask=mask)
                expected = attn.processor.inner(attn, video, text, mask)
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_signals_for_caches(transformer: Any) -> None:
    call, family = inputs(transformer), family_of(transformer)
    seen: list[Call] = []
    block = transformer.transformer_blocks[0]
    inner = block.attn.register_forward_hook(
        lambda module, args, kwargs, out: seen.append(Call(args, kwargs)), with_kwargs=True
    )
    outer = block.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(Call(args, kwargs)), with_kwargs=True
    )
    with torch.no_grad():
        transformer(**call)
        before, read = seen
        assert torch.equal(family.modulated(block, before), read.get("hidden_states", 0))
        assert torch.equal(family.time_embedding(transformer, call["timestep"]), before.get("temb", 2))
    inner.remove(), outer.remove()
    assert torch.equal(family.latents(transformer, Call((), call)), call["hidden_states"][:, :4])
    with pytest.raises(ValueError, match="no signal of the timestep alone"):
        family.time_embedding(build(use_meanflow=True), call["timestep"])


def test_default_schedule(transformer: Any) -> None:
    family = family_of(transformer)
    plan = family.schedule(tiny_hunyuanvideo15(), transformer).resolve(50, 54)
    assert (plan.first_step, plan.end_step, plan.first_layer) == (12, 50, 0)
    conditioned = build(task_type="i2v")
    assert family.schedule(conditioned, conditioned).resolve(50, 54).first_step == 17

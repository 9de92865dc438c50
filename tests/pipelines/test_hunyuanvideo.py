"""HunyuanVideo: dense steps are stock's bit for bit, padded text stays out, and what cannot be done is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import HunyuanVideoTransformer3DModel
from torch import Tensor, nn

import vidaccel
from tests import tiny
from tests.pipelines.cases import (
    DENSE,
    METHODS,
    SPARSE,
    Everything,
    assert_text_is_kept,
    error,
    forward,
    frames,
    gradient,
    through,
)
from vidaccel.layout import TokenLayout
from vidaccel.pipelines import family_of
from vidaccel.pipelines.base import Call

TEMPLATE: dict[str, Any] = {"prompt_template": {"template": "{}", "crop_start": 0}}
GUIDED = {"negative_prompt": "blurry", "true_cfg_scale": 3.0}
LAYOUT = TokenLayout(5, 4, 6, text_after=16)
SIZE = {"in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 64, "num_layers": 2,
        "num_single_layers": 2, "num_refiner_layers": 1, "mlp_ratio": 1.0, "text_embed_dim": tiny.TEXT_DIM,
        "pooled_projection_dim": tiny.TEXT_DIM, "rope_axes_dim": (24, 20, 20)}  # fmt: skip
VARIANTS: dict[str, dict[str, Any]] = {
    "text": {},
    "image beside the latents": {"image_condition_type": "latent_concat", "in_channels": 9},
    "image as the first frame": {"image_condition_type": "token_replace", "guidance_embeds": False},
    "patches of two frames": {"patch_size_t": 2},
}


def build(**config: Any) -> Any:
    """A tiny transformer on its own: two dual-stream and two single-stream blocks."""
    torch.manual_seed(1)
    return HunyuanVideoTransformer3DModel(**SIZE | config).eval()


def inputs(
    transformer: Any, *, lengths: tuple[int, ...] = (16, 5), grid: tuple[int, int, int] = (6, 8, 12), text: int = 16
) -> dict[str, Any]:
    """Arguments of one pass: a row for each text length, padded to `text`."""
    torch.manual_seed(2)
    rows = len(lengths)
    mask = torch.arange(text)[None] < torch.tensor(lengths)[:, None]
    return {"hidden_states": torch.randn(rows, transformer.config.in_channels, *grid),
            "timestep": torch.full((rows,), 500.0),
            "encoder_hidden_states": torch.randn(rows, text, tiny.TEXT_DIM), "encoder_attention_mask": mask.float(),
            "pooled_projections": torch.randn(rows, tiny.TEXT_DIM),
            "guidance": torch.full((rows,), 6000.0) if transformer.config.guidance_embeds else None}  # fmt: skip


def row(call: dict[str, Any], index: int) -> dict[str, Any]:
    """The same pass with one row of the batch."""
    return {name: None if each is None else each[index : index + 1] for name, each in call.items()}


def processors(transformer: nn.Module) -> dict[str, Any]:
    return {name: module.processor for name, module in transformer.named_modules() if hasattr(module, "processor")}


@pytest.fixture(scope="module")
def pipe() -> Any:
    return tiny.tiny_hunyuanvideo()


@pytest.fixture
def transformer() -> Any:
    return build()


@pytest.mark.parametrize(("guided", "passes"), [({}, 1), (GUIDED, 2)], ids=["distilled", "true guidance"])
def test_dense_steps_are_bit_identical_and_disable_restores_the_same_objects(
    pipe: Any, guided: dict[str, Any], passes: int
) -> None:
    stock, before = frames(pipe, **TEMPLATE, **guided), processors(pipe.transformer)
    pipe.enable_sparse_attention(**DENSE)
    assert np.array_equal(frames(pipe, **TEMPLATE, **guided), stock)
    summary = pipe.sparse_attention_summary().to_dict()
    assert summary["calls"] == {"sparse": 0, "dense": 2 * 4 * passes} and summary["steps"] == 4
    assert TokenLayout(**summary["layout"]) == LAYOUT and summary["family"] == "hunyuanvideo"
    pipe.disable_sparse_attention()
    after = processors(pipe.transformer)
    assert after.keys() == before.keys() and all(after[name] is before[name] for name in before)
    assert np.array_equal(frames(pipe, **TEMPLATE, **guided), stock)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_is_bit_identical_dense_and_stock_to_rounding_with_a_full_mask(variant: str) -> None:
    transformer = build(**VARIANTS[variant])
    call = inputs(transformer)
    stock = forward(transformer, call)
    with vidaccel.enable(transformer, "radial", num_inference_steps=4) as session:
        assert torch.equal(forward(transformer, call), stock)
    assert session.summary().to_dict()["calls"] == {"sparse": 0, "dense": 4}
    for backend in ("reference", "cpu"):
        for method in (Everything(), "radial"):
            options = {"density": 1.0, "block": 16} if method == "radial" else {}
            assert error(through(transformer, call, method, backend=backend, **options), stock) < 1e-5


def test_blocks_in_running_order_and_the_text_refiner_left_alone(transformer: Any) -> None:
    before = processors(transformer)
    method = Everything()
    through(transformer, inputs(transformer), method)
    assert method.log == [("cond", layer, 0, None, 0) for layer in range(4)]
    with vidaccel.enable(transformer, "radial", num_inference_steps=4):
        touched = [name for name, processor in processors(transformer).items() if processor is not before[name]]
    assert touched == [f"transformer_blocks.{i}.attn" for i in (0, 1)] + [
        f"single_transformer_blocks.{i}.attn" for i in (0, 1)
    ]


def test_steps_and_branches_of_a_run(pipe: Any) -> None:
    for guided, branches in (({}, ("cond",)), (GUIDED, ("cond", "uncond"))):
        method = Everything()
        with vidaccel.enable(pipe, method, min_tokens=0, schedule=SPARSE["schedule"]) as session:
            frames(pipe, **TEMPLATE, **guided)
        assert method.log == [
            (branch, layer, step, 4, step) for step in range(4) for branch in branches for layer in range(2)
        ]
        assert session.summary().to_dict()["calls"] == {"sparse": 8 * len(branches), "dense": 0}


@pytest.mark.parametrize("method", METHODS)
def test_sparse_runs_at_two_sizes_repeat_exactly(pipe: Any, method: str) -> None:
    small = {"num_frames": 9, "width": 64}
    stock = frames(pipe, **TEMPLATE), frames(pipe, **TEMPLATE, **small)
    options = SPARSE | METHODS[method]
    with vidaccel.enable(pipe, method, **options | {"schedule": {"dense_first_steps": 1, "dense_first_layers": 0}}):
        first = frames(pipe, **TEMPLATE), frames(pipe, **TEMPLATE, **small)
        second = frames(pipe, **TEMPLATE), frames(pipe, **TEMPLATE, **small)
        summary = vidaccel.summary(pipe).to_dict()
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(np.isfinite(each).all() for each in first) and not np.array_equal(first[0], stock[0])
    assert summary["calls"] == {"sparse": 6, "dense": 2} and summary["runs"] == 4
    assert TokenLayout(**summary["layout"]) == TokenLayout(3, 4, 4, text_after=16)


@pytest.mark.parametrize("method", METHODS)
def test_prompts_of_different_lengths_in_a_batch_are_as_alone(transformer: Any, method: str) -> None:
    call = inputs(transformer, lengths=(16, 5, 1))
    options = SPARSE | METHODS[method]
    together = through(transformer, call, method, **options)
    for index in range(3):
        alone = through(transformer, row(call, index), method, **options)
        assert error(together[index : index + 1], alone) < 1e-5
    assert error(together, forward(transformer, call)) > 1e-3  # or the mask would have dropped nothing


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_padding_never_reaches_the_video(transformer: Any, backend: str) -> None:
    """Other padding, or none at all, gives the same video."""
    call = row(inputs(transformer), 1)
    method = Everything()
    expected = through(transformer, call, method, backend=backend)
    other = call["encoder_hidden_states"].clone()
    other[:, 5:] = 100.0
    assert torch.equal(through(transformer, call | {"encoder_hidden_states": other}, method, backend=backend), expected)
    sparse = {"backend": backend} | SPARSE | METHODS["radial"]
    assert torch.equal(
        through(transformer, call | {"encoder_hidden_states": other}, "radial", **sparse),
        through(transformer, call, "radial", **sparse),
    )
    cut = {name: call[name][:, :5] for name in ("encoder_hidden_states", "encoder_attention_mask")}
    assert error(through(transformer, call | cut, method, backend=backend), expected) < 1e-5


def test_layout_from_arguments_by_name_and_by_position(transformer: Any) -> None:
    call = inputs(transformer, text=7, lengths=(7,))
    family = family_of(transformer)
    values = tuple(call.values())
    for args, kwargs in (((), call), (values, {}), (values[:2], dict(list(call.items())[2:]))):
        read = Call(args, kwargs)
        assert family.layout(transformer, read) == TokenLayout(6, 4, 6, text_after=7)
        assert family.timestep(read).tolist() == [500.0]
    deep = build(patch_size_t=2)
    assert family.layout(deep, Call((), call)) == TokenLayout(3, 4, 6, text_after=7)
    with torch.no_grad(), vidaccel.enable(transformer, Everything(), min_tokens=0, schedule=SPARSE["schedule"]):
        by_position = transformer(*values, return_dict=False)[0]
    assert error(by_position, forward(transformer, call)) < 1e-5


@pytest.mark.parametrize(("latents", "tokens"), [((33, 68, 120), 67_576), ((33, 90, 160), 119_056)])
def test_layout_of_real_sizes(transformer: Any, latents: tuple[int, int, int], tokens: int) -> None:
    """544x960 and 720x1280 with 129 frames and 256 text tokens."""
    states, text = torch.empty(1, 16, *latents, device="meta"), torch.empty(1, 256, 4096, device="meta")
    call = Call((), {"hidden_states": states, "encoder_hidden_states": text})
    assert family_of(transformer).layout(transformer, call).tokens == tokens


@pytest.mark.parametrize("text", [1, 16, 40])
def test_static_plans_keep_the_text(text: int) -> None:
    assert_text_is_kept(TokenLayout(5, 4, 6, text_after=text))


def test_default_schedule_is_the_authors(pipe: Any) -> None:
    family = family_of(pipe.transformer)
    plan = family.schedule(pipe, pipe.transformer).resolve(50, 60)
    assert (plan.first_step, plan.end_step, plan.first_layer) == (12, 50, 0)
    conditioned = build(image_condition_type="token_replace")
    assert family.schedule(conditioned, conditioned).resolve(50, 60).first_step == 17
    with vidaccel.enable(pipe, "radial") as session:
        assert session.summary().options["decay"] == 0.95 and not session.summary().options["sink"]


def test_other_processors_are_refused(transformer: Any) -> None:
    class Theirs:
        def __call__(self, attn: Any, hidden_states: Tensor) -> Tensor:
            return hidden_states

    single: Any = transformer.single_transformer_blocks
    single[1].attn.set_processor(Theirs())
    before = processors(transformer)
    with pytest.raises(ValueError, match="processor Theirs"):
        vidaccel.enable(transformer, "radial", num_inference_steps=4)
    assert processors(transformer) == before and not transformer._forward_pre_hooks


def test_training_and_other_masks_go_through_the_stock_processor(transformer: Any) -> None:
    call = inputs(transformer)
    stock = gradient(transformer, call)
    with vidaccel.enable(transformer, "radial", num_inference_steps=4, **SPARSE | METHODS["radial"]):
        assert torch.equal(gradient(transformer, call), stock)
        block: Any = transformer.transformer_blocks[0]
        video, text = torch.randn(1, 8, 128), torch.randn(1, 4, 128)
        mask = torch.rand(1, 1, 12, 12) > 0.3
        with torch.no_grad():
            found = block.attn(video, text, mask)
            expected = block.attn.processor.inner(block.attn, video, text, mask)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))

"""CogVideoX: text first, both guidance branches in one pass, with and without rotary embeddings, 1.0 and 1.5."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import CogVideoXTransformer3DModel
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from torch import Tensor

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

LAYOUT = TokenLayout(5, 4, 6, text_before=16)
SIZE = {"num_attention_heads": 2, "attention_head_dim": 64, "in_channels": 4, "out_channels": 4, "time_embed_dim": 8,
        "text_embed_dim": tiny.TEXT_DIM, "num_layers": 3, "sample_height": 8, "sample_width": 12, "sample_frames": 21,
        "max_text_seq_length": 16, "use_rotary_positional_embeddings": True}  # fmt: skip
VARIANTS: dict[str, dict[str, Any]] = {
    "5B": {},
    "2B, positions added before": {"use_rotary_positional_embeddings": False},
    "1.5, patches of two frames": {"patch_size_t": 2, "patch_bias": False},
    "5B from an image": {"in_channels": 8, "use_learned_positional_embeddings": True},
    "1.5 from an image": {"in_channels": 8, "patch_size_t": 2, "patch_bias": False, "ofs_embed_dim": 8},
}


def build(**config: Any) -> Any:
    """A tiny transformer on its own: three blocks."""
    torch.manual_seed(1)
    return CogVideoXTransformer3DModel(**SIZE | config).eval()


def inputs(transformer: Any, *, rows: int = 2, grid: tuple[int, int, int] = (6, 8, 12)) -> dict[str, Any]:
    """Arguments of one pass."""
    torch.manual_seed(2)
    config, (frames, height, width) = transformer.config, grid
    size = (frames // (config.patch_size_t or 1), height // 2, width // 2)
    rotary = get_3d_rotary_pos_embed(64, ((0, 0), size[1:]), size[1:], size[0])
    return {"hidden_states": torch.randn(rows, frames, config.in_channels, height, width),
            "encoder_hidden_states": torch.randn(rows, 16, tiny.TEXT_DIM), "timestep": torch.full((rows,), 500),
            "timestep_cond": None, "ofs": torch.full((1,), 2.0) if config.ofs_embed_dim else None,
            "image_rotary_emb": rotary if config.use_rotary_positional_embeddings else None}  # fmt: skip


def processors(transformer: Any) -> list[Any]:
    return [block.attn1.processor for block in transformer.transformer_blocks]


@pytest.fixture(scope="module")
def pipe() -> Any:
    return tiny.tiny_cogvideox()


@pytest.fixture
def transformer() -> Any:
    return build()


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_dense_steps_are_bit_identical_and_disable_restores_the_same_objects(pipe: Any, guidance: float) -> None:
    stock, before = frames(pipe, guidance_scale=guidance), processors(pipe.transformer)
    pipe.enable_sparse_attention(**DENSE)
    assert np.array_equal(frames(pipe, guidance_scale=guidance), stock)
    summary = pipe.sparse_attention_summary().to_dict()
    assert summary["calls"] == {"sparse": 0, "dense": 2 * 4} and summary["steps"] == 4
    assert TokenLayout(**summary["layout"]) == LAYOUT and summary["family"] == "cogvideox"
    pipe.disable_sparse_attention()
    assert all(a is b for a, b in zip(processors(pipe.transformer), before, strict=True))
    assert np.array_equal(frames(pipe, guidance_scale=guidance), stock)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_is_bit_identical_dense_and_stock_to_rounding_with_a_full_mask(variant: str) -> None:
    transformer = build(**VARIANTS[variant])
    call = inputs(transformer)
    stock = forward(transformer, call)
    with vidaccel.enable(transformer, "radial", num_inference_steps=4) as session:
        assert torch.equal(forward(transformer, call), stock)
    assert session.summary().to_dict()["calls"] == {"sparse": 0, "dense": 3}
    for backend in ("reference", "cpu"):
        for method in (Everything(), "radial"):
            options = {"density": 1.0, "block": 16} if method == "radial" else {}
            assert error(through(transformer, call, method, backend=backend, **options), stock) < 1e-5


def test_a_guided_step_is_one_pass_of_two_rows(pipe: Any) -> None:
    for guidance in (1.0, 3.0):
        method = Everything()
        with vidaccel.enable(pipe, method, min_tokens=0, schedule=SPARSE["schedule"]) as session:
            frames(pipe, guidance_scale=guidance)
        assert method.log == [("cond_uncond", layer, step, 4, step) for step in range(4) for layer in range(2)]
        assert session.summary().to_dict()["calls"] == {"sparse": 8, "dense": 0}


@pytest.mark.parametrize("method", METHODS)
def test_rows_of_a_batch_are_as_alone(transformer: Any, method: str) -> None:
    call, setting = inputs(transformer), SPARSE | METHODS[method]
    together = through(transformer, call, method, **setting)
    for index in range(2):
        row = {
            name: each[index : index + 1] if isinstance(each, Tensor) and len(each) == 2 else each
            for name, each in call.items()
        }
        assert error(together[index : index + 1], through(transformer, row, method, **setting)) < 1e-5
    assert error(together, forward(transformer, call)) > 1e-3  # or the mask would have dropped nothing


@pytest.mark.parametrize("method", METHODS)
def test_sparse_runs_at_two_sizes_repeat_exactly(pipe: Any, method: str) -> None:
    small = {"num_frames": 9, "width": 64}
    stock = frames(pipe), frames(pipe, **small)
    options = SPARSE | METHODS[method] | {"schedule": {"dense_first_steps": 1, "dense_first_layers": 0}}
    with vidaccel.enable(pipe, method, **options):
        first = frames(pipe), frames(pipe, **small)
        second = frames(pipe), frames(pipe, **small)
        summary = vidaccel.summary(pipe).to_dict()
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(np.isfinite(each).all() for each in first) and not np.array_equal(first[0], stock[0])
    assert summary["calls"] == {"sparse": 6, "dense": 2} and summary["runs"] == 4
    assert TokenLayout(**summary["layout"]) == TokenLayout(3, 4, 4, text_before=16)


@pytest.mark.parametrize(("depth", "grid"), [(None, (6, 4, 6)), (2, (3, 4, 6))], ids=["1.0", "1.5"])
def test_layout_from_arguments_by_name_and_by_position(depth: int | None, grid: tuple[int, int, int]) -> None:
    transformer = build(patch_size_t=depth)
    call, family = inputs(transformer), family_of(transformer)
    values = tuple(call.values())
    for args, kwargs in (((), call), (values, {}), (values[:1], dict(list(call.items())[1:]))):
        assert family.layout(transformer, Call(args, kwargs)) == TokenLayout(*grid, text_before=16)
        assert family.timestep(Call(args, kwargs)).tolist() == [500, 500]
    with torch.no_grad(), vidaccel.enable(transformer, Everything(), min_tokens=0, schedule=SPARSE["schedule"]):
        by_position = transformer(*values, return_dict=False)[0]
    assert error(by_position, forward(transformer, call)) < 1e-5


@pytest.mark.parametrize(
    ("depth", "latents", "tokens"),
    [(None, (13, 60, 90), 17_776), (2, (22, 96, 170), 45_106), (2, (42, 96, 170), 85_906)],
)
def test_layout_of_real_sizes(depth: int | None, latents: tuple[int, int, int], tokens: int) -> None:
    """1.0 at 480x720 with 49 frames, 1.5 at 768x1360 with 81 and 161, each with 226 text tokens."""
    frames, *size = latents
    states, text = torch.empty(2, frames, 16, *size, device="meta"), torch.empty(2, 226, 4096, device="meta")
    transformer = build(patch_size_t=depth)
    call = Call((), {"hidden_states": states, "encoder_hidden_states": text})
    assert family_of(transformer).layout(transformer, call).tokens == tokens


@pytest.mark.parametrize("text", [1, 16, 40])
def test_static_plans_keep_the_text(text: int) -> None:
    assert_text_is_kept(TokenLayout(5, 4, 6, text_before=text))


def test_fused_projections(transformer: Any) -> None:
    call, setting = inputs(transformer), SPARSE | METHODS["radial"]
    expected = through(transformer, call, "radial", **setting)
    transformer.fuse_qkv_projections()
    fused = forward(transformer, call)
    with vidaccel.enable(transformer, "radial", num_inference_steps=4):
        assert torch.equal(forward(transformer, call), fused)
    assert error(through(transformer, call, "radial", **setting), expected) < 1e-5
    with torch.no_grad():
        for block in transformer.transformer_blocks:
            block.attn1.to_qkv.weight.add_(1.0)  # stale from here on: only the fused processor may use it
    assert error(through(transformer, call, "radial", **setting), expected) > 1e-2
    transformer.unfuse_qkv_projections()
    assert torch.equal(through(transformer, call, "radial", **setting), expected)


def test_default_settings(pipe: Any) -> None:
    family = family_of(pipe.transformer)
    plan = family.schedule(pipe, pipe.transformer).resolve(50, 42)
    assert (plan.first_step, plan.end_step, plan.first_layer) == (12, 50, 1)
    conditioned = build(in_channels=8)
    assert family.schedule(conditioned, conditioned).resolve(50, 42).first_step == 17
    with vidaccel.enable(pipe, "radial") as session:
        assert session.summary().options["decay"] == 0.95 and not session.summary().options["sink"]


def test_other_processors_are_refused(transformer: Any) -> None:
    class Theirs:
        def __call__(self, attn: Any, hidden_states: Tensor) -> Tensor:
            return hidden_states

    transformer.transformer_blocks[2].attn1.set_processor(Theirs())
    before = processors(transformer)
    with pytest.raises(ValueError, match="processor Theirs"):
        vidaccel.enable(transformer, "radial", num_inference_steps=4)
    assert processors(transformer) == before and not transformer._forward_pre_hooks


def test_training_and_masks_go_through_the_stock_processor(transformer: Any) -> None:
    call = inputs(transformer)
    stock = gradient(transformer, call)
    with vidaccel.enable(transformer, "radial", num_inference_steps=4, **SPARSE | METHODS["radial"]):
        assert torch.equal(gradient(transformer, call), stock)
        masked = call | {"attention_kwargs": {"attention_mask": torch.randn(2 * 2, 160, 160)}}
        found = forward(transformer, masked)
    assert torch.equal(found, forward(transformer, masked)) and error(found, forward(transformer, call)) > 1e-3

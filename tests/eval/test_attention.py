"""Attention maps against an obvious dense computation, and the watching of real pipelines."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests.tiny import tiny_cogvideox, tiny_hunyuanvideo, tiny_wan
from vidaccel.eval import attention
from vidaccel.eval.attention import attention_maps, block_map, mass_in_best
from vidaccel.layout import TokenLayout

CALL = {"num_frames": 17, "height": 64, "width": 96, "num_inference_steps": 3, "guidance_scale": 3.0,
        "max_sequence_length": 16}  # fmt: skip
# A tiny pipeline, its layout, its layers, and what else its call takes.
PIPELINES: dict[str, tuple[Any, TokenLayout, int, dict[str, Any]]] = {
    "wan": (tiny_wan, TokenLayout(5, 4, 6), 2, {}),
    "hunyuanvideo": (tiny_hunyuanvideo, TokenLayout(5, 4, 6, text_after=16), 2,
                     {"prompt_template": {"template": "{}", "crop_start": 0}}),
    "cogvideox": (tiny_cogvideox, TokenLayout(5, 4, 6, text_before=16), 2, {}),
}  # fmt: skip


def obvious(query: Tensor, key: Tensor, layout: TokenLayout, block: int, mask: Tensor | None = None) -> np.ndarray:
    """Full softmax, then sums over blocks in Python."""
    logits = (query.double() @ key.double().transpose(-1, -2)) / query.shape[-1] ** 0.5
    if mask is not None:
        logits[..., ~mask] = -torch.inf
    weights = logits.softmax(-1).numpy()
    first, video = layout.text_before, layout.video_tokens
    blocks = -(-video // block)
    found = np.zeros((len(query), blocks, blocks))
    for i in range(video):
        for j in range(video):
            found[:, i // block, j // block] += weights[:, first + i, first + j]
    return found / found.sum((1, 2), keepdims=True)


@pytest.mark.parametrize("layout", [TokenLayout(3, 3, 5), TokenLayout(3, 3, 5, text_after=6), TokenLayout(3, 3, 5, 6)])
@pytest.mark.parametrize("masked", [False, True])
def test_map_is_the_softmaxs(layout: TokenLayout, masked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "CHUNK", 7)  # pieces that end within a block
    torch.manual_seed(0)
    query, key = torch.randn(2, 2, layout.tokens, 8) * 2
    mask = torch.ones(layout.tokens, dtype=torch.bool)
    mask[3] = mask[-2] = not masked
    found = block_map(query, key, layout, 4, mask=mask if masked else None)
    np.testing.assert_allclose(found, obvious(query, key, layout, 4, mask), atol=1e-6)
    torch.testing.assert_close(found.sum((1, 2)), torch.ones(2))


def test_scale_is_honoured() -> None:
    layout = TokenLayout(2, 2, 2)
    query, key = torch.randn(2, 1, 8, 4)
    torch.testing.assert_close(block_map(query, key, layout, 2, scale=1.0), block_map(query * 2, key, layout, 2))


def test_mass_in_best_counts_blocks() -> None:
    maps = torch.tensor([[[0.4, 0.1], [0.2, 0.3]], [[0.25, 0.25], [0.25, 0.25]]])
    torch.testing.assert_close(mass_in_best(maps, 0.5), torch.tensor([0.7, 0.5]))
    torch.testing.assert_close(mass_in_best(maps, 0.01), torch.tensor([0.4, 0.25]))
    torch.testing.assert_close(mass_in_best(maps, 1.0), torch.ones(2))


def test_a_mask_that_differs_by_query_is_refused() -> None:
    mask = torch.ones(1, 1, 4, 4, dtype=torch.bool)
    for wrong in (mask, mask[:, :, :1].float()):
        with pytest.raises(ValueError, match="bool mask of keys"):
            attention._keys(wrong)
    assert attention._keys(mask[:, :, :1]).shape == (4,)


def test_both_experts_of_wan_22_are_seen() -> None:
    maps = attention_maps(tiny_wan(two_experts=True), "a red circle", TokenLayout(5, 4, 6), [0, 2],
                          generation_kwargs=CALL)  # fmt: skip
    assert set(maps) == {(step, layer) for step in (0, 2) for layer in (0, 1)}


@pytest.mark.parametrize("name", PIPELINES)
def test_every_layer_of_the_chosen_steps_is_seen(name: str) -> None:
    build, layout, layers, more = PIPELINES[name]
    pipe = build()
    maps = attention_maps(pipe, "a red circle moves left", layout, [0, 2], block=8, generation_kwargs=CALL | more)
    assert set(maps) == {(step, layer) for step in (0, 2) for layer in range(layers)}
    assert all(found.shape == (2, 15, 15) and torch.isfinite(found).all() for found in maps.values())
    assert not torch.equal(maps[0, 0], maps[2, 0]) and not torch.equal(maps[0, 0], maps[0, 1])


@pytest.mark.parametrize("name", PIPELINES)
def test_the_prompts_pass_is_seen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The maps are those of a pass by hand with the same inputs, mask included."""
    build, layout, _, more = PIPELINES[name]
    pipe, calls = build(), []
    stock = functional.scaled_dot_product_attention

    def spy(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if query.shape[-2] == key.shape[-2] == layout.tokens:
            calls.append((query[-1], key[-1], kwargs.get("attn_mask", args[0] if args else None)))
        return stock(query, key, value, *args, **kwargs)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", spy)
    pipe(prompt="a red circle moves left", generator=torch.Generator().manual_seed(0), output_type="latent",
         **CALL | more)  # fmt: skip
    monkeypatch.undo()
    maps = attention_maps(pipe, "a red circle moves left", layout, [0], block=8, generation_kwargs=CALL | more)
    for layer, (query, key, mask) in enumerate(calls[: len(maps)]):
        valid = None if mask is None else mask[-1].flatten()
        np.testing.assert_allclose(maps[0, layer], obvious(query, key, layout, 8, valid), atol=1e-6)
    assert (name == "hunyuanvideo") == (calls[0][2] is not None)


def test_nothing_is_left_behind() -> None:
    pipe = tiny_wan()
    hooks = len(pipe.transformer._forward_pre_hooks)
    with pytest.raises(ValueError, match="no self-attention of 8 tokens was seen"):
        attention_maps(pipe, "a red circle", TokenLayout(2, 2, 2), [0], generation_kwargs=CALL)
    with pytest.raises(ValueError, match=r"seen at steps \[7\]"):
        attention_maps(pipe, "a red circle moves left", TokenLayout(5, 4, 6), [0, 7], generation_kwargs=CALL)
    with pytest.raises(ValueError, match="steps count from 0"):
        attention_maps(pipe, "a red circle", TokenLayout(2, 2, 2), [-1], generation_kwargs=CALL)
    assert len(pipe.transformer._forward_pre_hooks) == hooks
    assert not torch.overrides._get_current_function_mode_stack()

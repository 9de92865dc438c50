"""FramePack: history before the video is found and kept, each row's text is its own, and each window is a run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import vidaccel
from tests.pipelines.cases import METHODS, NEVER_DENSE, SPARSE, Everything, assert_text_is_kept, error, forward, through
from tests.pipelines.models import framepack
from tests.pipelines.models.framepack import BEFORE, IMAGE, build, guided, inputs, tiny_framepack
from vidaccel.layout import TokenLayout
from vidaccel.pipelines import family_of
from vidaccel.pipelines.base import Call

POSITIONS = ("hidden_states", "timestep", "encoder_hidden_states", "encoder_attention_mask", "pooled_projections",
             "image_embeds", "indices_latents", "guidance", "latents_clean", "indices_latents_clean",
             "latents_history_2x", "indices_latents_history_2x", "latents_history_4x", "indices_latents_history_4x")


@pytest.fixture
def transformer() -> Any:
    return build()


def row(call: dict[str, Any], index: int) -> dict[str, Any]:
    """The same pass with one row of the batch."""
    return {name: each if name.startswith("indices") else each[index : index + 1] for name, each in call.items()}


def test_layout_from_arguments_by_name_and_by_position(transformer: Any) -> None:
    call = inputs(transformer)
    family, values = family_of(transformer), tuple(call[name] for name in POSITIONS)
    for args, kwargs in (((), call), (values, {})):
        read = Call(args, kwargs)
        assert family.layout(transformer, read) == TokenLayout(5, 4, 6, text_before=BEFORE, text_after=IMAGE + 9)
        assert family.timestep(read).tolist() == [500.0]
    with torch.no_grad(), vidaccel.enable(transformer, Everything(), min_tokens=0, schedule=NEVER_DENSE):
        by_position = transformer(*values, return_dict=False)[0]
    assert error(by_position, forward(transformer, call)) < 1e-5


@pytest.mark.parametrize(
    ("size", "before"),
    # 640x640; and a height at which both packed histories are filled up.
    [((80, 80), 3200 + 400 + 400), ((68, 120), 2 * 34 * 60 + 17 * 30 + 4 * 9 * 15)],
)
def test_layout_of_real_sizes(transformer: Any, size: tuple[int, int], before: int) -> None:
    shapes = {"hidden_states": 9, **{f"latents_{name}": count for name, count in framepack.HISTORY.items()}}
    call = {name: torch.empty(1, 16, frames, *size, device="meta") for name, frames in shapes.items()}
    call |= {"encoder_attention_mask": (torch.arange(256)[None] < 41).bfloat16(),
             "image_embeds": torch.empty(1, 729, 1152, device="meta")}  # fmt: skip
    layout = family_of(transformer).layout(transformer, Call((), call))
    assert layout == TokenLayout(9, size[0] // 2, size[1] // 2, text_before=before, text_after=729 + 41)


def test_layout_is_that_of_the_tokens_at_a_height_that_is_filled_up(transformer: Any) -> None:
    # Everything() checks that the layout has as many tokens as reach each layer.
    call = inputs(transformer, grid=(3, 12, 20))
    assert error(through(transformer, call, Everything()), forward(transformer, call)) < 1e-5


def test_history_and_text_are_kept() -> None:
    assert_text_is_kept(TokenLayout(5, 4, 6, text_before=BEFORE, text_after=IMAGE + 9))


def test_rows_with_padding_are_as_alone_without(transformer: Any) -> None:
    call, setting = inputs(transformer, lengths=(16, 9)), SPARSE | METHODS["radial"]
    together = through(transformer, call, "radial", **setting)
    for index in range(2):
        alone = through(transformer, row(call, index), "radial", **setting)
        assert error(together[index : index + 1], alone) < 1e-5
    assert error(together, forward(transformer, call)) > 1e-3  # or the mask would have dropped nothing


def test_padding_never_reaches_the_video(transformer: Any) -> None:
    call, setting = inputs(transformer, lengths=(9, 5)), SPARSE | METHODS["radial"]
    other = call["encoder_hidden_states"].clone()
    other[0, 9:], other[1, 5:] = 100.0, -100.0
    for method, options in ((Everything(), {}), ("radial", setting)):
        expected = through(transformer, call, method, **options)
        found = through(transformer, call | {"encoder_hidden_states": other}, method, **options)
        assert torch.equal(found, expected)


def test_windows_are_runs_and_passes_have_layouts_of_their_own() -> None:
    pipe, method, layouts = tiny_framepack(), Everything(), []
    call = guided(windows=2)

    def frames() -> np.ndarray:
        return np.asarray(pipe(**call, generator=torch.Generator().manual_seed(0)).frames)

    stock = frames()
    with vidaccel.enable(pipe, method, min_tokens=0, schedule=NEVER_DENSE) as session:
        plan = family_of(pipe.transformer).layout

        def noted(transformer: Any, read: Call) -> TokenLayout:
            layouts.append(plan(transformer, read))
            return layouts[-1]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(family_of(pipe.transformer)), "layout", lambda self, *given: noted(*given))
            np.testing.assert_allclose(frames(), stock, atol=2e-3)
        assert session.runs == 2 and session.summary().to_dict()["steps"] == 4
    window = [(step, branch, layer) for step in range(4) for branch in ("cond", "uncond") for layer in range(4)]
    assert method.log == [(branch, layer, step, 4, step) for step, branch, layer in window] * 2
    cond, uncond = (TokenLayout(5, 4, 6, text_before=BEFORE, text_after=IMAGE + text) for text in (9, 4))
    assert layouts == [cond, uncond] * 8


def test_a_cache_forgets_between_windows() -> None:
    """The first step of each window is computed, and all of it repeats exactly."""
    pipe, call = tiny_framepack(), guided(windows=2)
    cache = {"name": "static", "compute": [0, 2], "min_steps": 1, "predictor": "hold"}
    seen: list[int] = []
    first: Any = pipe.transformer.transformer_blocks[0]
    hook = first.register_forward_hook(lambda *given: seen.append(1))
    with vidaccel.enable(pipe, None, cache=cache, schedule=NEVER_DENSE) as session:
        made = [np.asarray(pipe(**call, generator=torch.Generator().manual_seed(0)).frames) for _ in range(2)]
    hook.remove()
    assert np.array_equal(*made) and session.runs == 4
    assert len(seen) == 2 * 2 * 2 * 2  # of two generations, the windows, computed steps and passes


def test_default_schedule_is_that_from_an_image(transformer: Any) -> None:
    plan = family_of(transformer).schedule(transformer, transformer).resolve(50, 60)
    assert (plan.first_step, plan.end_step, plan.first_layer) == (17, 50, 0)


def test_passes_of_other_lengths_have_no_difference_of_their_streams() -> None:
    pipe, call = tiny_framepack(), guided()
    cache = {"name": "static", "compute": [0, 2], "min_steps": 1, "guidance_interval": 2}
    for reuse in ("stack", "prediction"):
        with vidaccel.enable(pipe, None, cache={**cache, "reuse": reuse}, schedule=NEVER_DENSE):
            if reuse == "stack":
                with pytest.raises(ValueError, match=r"have \d+ and \d+ tokens: use reuse='output' or 'prediction'"):
                    pipe(**call)
            else:
                pipe(**call)

"""SkyReels-V2: steps of diffusion forcing are those of the new frames, and what is causal is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    SkyReelsV2DiffusionForcingImageToVideoPipeline,
    SkyReelsV2DiffusionForcingVideoToVideoPipeline,
)

import vidaccel
from tests import tiny
from tests.pipelines.cases import DENSE, NEVER_DENSE, Everything, forward
from tests.pipelines.models import skyreels_v2, wan
from vidaccel.layout import TokenLayout
from vidaccel.pipelines import family_of
from vidaccel.pipelines.base import Call
from vidaccel.pipelines.skyreels_v2 import FAMILY

LONG = wan.CALL | {"num_frames": 33, "base_num_frames": 17, "overlap_history": 5, "addnoise_condition": 20}
"""Nine latent frames in windows of at most five, of which two are history: 5, 5 and 3 frames."""
RUN = [(branch, layer, step, 4, step) for step in range(4) for branch in ("cond", "uncond") for layer in range(2)]
"""What a method is asked in a run; the last number counts its calls."""


def generate(pipe: Any, call: dict[str, Any]) -> np.ndarray:
    torch.manual_seed(3)  # the noise on history is drawn from it
    return np.asarray(pipe(**call, generator=torch.Generator().manual_seed(0)).frames)


def counted(pipe: Any, call: dict[str, Any]) -> tuple[list[tuple[Any, ...]], int]:
    """What a method is asked in a generation that is stock's when dense, and how many runs there are."""
    stock, method = generate(pipe, call), Everything()
    with vidaccel.enable(pipe, **DENSE):
        assert np.array_equal(generate(pipe, call), stock)
    with vidaccel.enable(pipe, method, min_tokens=0, schedule=NEVER_DENSE) as session:
        np.testing.assert_allclose(generate(pipe, call), stock, atol=2e-3)
    return method.log, session.runs


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        ([700, 700, 700], 700), ([0, 0, 700], 700), ([20, 700, 700], 700), ([20, 20, 15], 15), ([60, 700, 0], 700),
        ([0, 0, 0], 0),
    ],
    ids=["all new", "history", "noisy history", "less noise than history", "last image", "the very end"],
)  # fmt: skip
def test_the_timestep_is_that_of_the_new_frames(frames: list[int], expected: int) -> None:
    found = FAMILY.timestep(Call((), {"timestep": torch.tensor(frames).expand(2, -1)}))
    assert found.tolist() == [expected] * 2 and found.dtype == torch.int64


def test_one_timestep_for_all_is_left_as_it_is() -> None:
    step = torch.tensor([500.0, 500.0])
    assert FAMILY.timestep(Call((), {"timestep": step})) is step


def test_windows_of_a_long_clip_are_runs() -> None:
    log, runs = counted(skyreels_v2.forcing(), LONG)
    assert runs == 3 and log == RUN * 3


def test_a_window_has_a_grid_of_its_own() -> None:
    pipe = skyreels_v2.forcing()
    with vidaccel.enable(pipe, **DENSE) as session:
        generate(pipe, LONG)
    assert TokenLayout(**session.summary().to_dict()["layout"]) == TokenLayout(3, 4, 6)


def test_first_and_last_images_and_a_clip_to_go_on_from() -> None:
    image = skyreels_v2.pipeline(SkyReelsV2DiffusionForcingImageToVideoPipeline)
    for given in ({"image": tiny.tiny_image()}, {"image": tiny.tiny_image(), "last_image": tiny.tiny_image(1)}):
        assert counted(image, wan.CALL | given | {"addnoise_condition": 20}) == (RUN, 1)
    clip = skyreels_v2.pipeline(SkyReelsV2DiffusionForcingVideoToVideoPipeline)
    log, runs = counted(clip, LONG | {"video": wan.clip(17)})
    assert runs == 3 and log == RUN * 3


def test_blocks_of_frames_are_refused_before_anything_is_computed() -> None:
    pipe = skyreels_v2.forcing()
    with vidaccel.enable(pipe, **DENSE) as session:
        with pytest.raises(ValueError, match="causal blocks of num_frame_per_block=5 frames"):
            generate(pipe, wan.CALL | {"causal_block_size": 5})
        assert session.runs == 0
        generate(pipe, wan.CALL | {"causal_block_size": 1})
    assert session.runs == 1


def test_frames_one_after_another_are_refused_in_the_second_step() -> None:
    pipe, calls = skyreels_v2.forcing(), []
    pipe.transformer.blocks[0].register_forward_hook(lambda *_: calls.append(1))
    with vidaccel.enable(pipe, **DENSE), pytest.raises(ValueError, match="only ar_step=0") as said:
        generate(pipe, wan.CALL | {"ar_step": 2})
    assert len(calls) == 2 and "999" in str(said.value)
    calls.clear()
    generate(pipe, wan.CALL | {"ar_step": 2})
    assert len(calls) > 8


def test_history_of_more_noise_than_is_history_is_refused() -> None:
    transformer = skyreels_v2.build()
    call = skyreels_v2.with_history(transformer)
    call["timestep"] = call["timestep"].clamp(min=61)
    with vidaccel.enable(transformer, "radial", num_inference_steps=4), pytest.raises(ValueError, match="at most 60"):
        forward(transformer, call)


def test_a_mask_goes_through_the_stock_processor() -> None:
    transformer: Any = skyreels_v2.build()
    attention = transformer.blocks[0].attn1
    states, mask = torch.randn(1, 24, 128), torch.ones(24, 24).tril().bool()[None, None]
    with torch.no_grad():
        stock = attention(states, None, mask, None)
        with vidaccel.enable(transformer, "radial", num_inference_steps=4):
            assert torch.equal(attention(states, None, mask, None), stock)


def test_more_steps_are_dense_where_a_picture_or_a_clip_is_given() -> None:
    plain, image = skyreels_v2.pipeline(), skyreels_v2.image_to_video()
    clip = skyreels_v2.pipeline(SkyReelsV2DiffusionForcingVideoToVideoPipeline)
    family = family_of(plain.transformer)
    first = [family.schedule(pipe, pipe.transformer).resolve(20, 40).first_step for pipe in (plain, image, clip)]
    assert first == [5, 7, 7]
    assert family.schedule(image.transformer, image.transformer).resolve(20, 40).first_step == 7

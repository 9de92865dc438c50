"""Helios, tiny: with and without a past, and in a pyramid of resolutions."""

from __future__ import annotations

import functools
from typing import Any

import torch
from diffusers import (
    AutoencoderKLWan,
    HeliosPipeline,
    HeliosPyramidPipeline,
    HeliosScheduler,
    HeliosTransformer3DModel,
)
from torch import nn

from tests import tiny
from tests.pipelines.models.model import Model
from vidaccel.layout import TokenLayout

CHANNELS, TEXT = 16, 16
PAST = {"short": 2, "mid": 2, "long": 6}
"""Frames of each part of the past: 48, 6 and 4 tokens beside a video of 4 x 6 tokens a frame."""
PAST_TOKENS = 2 * 4 * 6 + 1 * 2 * 3 + 2 * 1 * 2


def build(**config: Any) -> nn.Module:
    """Two blocks."""
    torch.manual_seed(1)
    size = {"num_attention_heads": 2, "attention_head_dim": 64, "in_channels": CHANNELS, "out_channels": CHANNELS,
            "text_dim": tiny.TEXT_DIM, "freq_dim": 32, "ffn_dim": 64, "num_layers": 2,
            "rope_dim": (24, 20, 20)}  # fmt: skip
    return HeliosTransformer3DModel(**size | config).eval()


def inputs(transformer: nn.Module, past: bool = True) -> dict[str, Any]:
    """One forward of two rows, five frames after the past."""
    torch.manual_seed(2)
    call: dict[str, Any] = {
        "hidden_states": torch.randn(2, CHANNELS, 5, 8, 12),
        "timestep": torch.full((2,), 500.0),
        "encoder_hidden_states": torch.randn(2, TEXT, tiny.TEXT_DIM),
    }
    if not past:
        return call
    sizes = [PAST["long"], PAST["mid"], PAST["short"], 5]
    *places, last = (each[None].expand(2, -1) for each in torch.arange(sum(sizes)).split(sizes))
    call["indices_hidden_states"] = last
    for name, place in zip(("long", "mid", "short"), places, strict=True):
        call[f"indices_latents_history_{name}"] = place
        call[f"latents_history_{name}"] = torch.randn(2, CHANNELS, place.shape[1], 8, 12)
    return call


def pipeline(kind: type = HeliosPipeline, stages: int = 1) -> Any:
    """Of real classes."""
    torch.manual_seed(0)
    vae = AutoencoderKLWan(base_dim=4, z_dim=CHANNELS, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
    parts = {"tokenizer": tiny.tiny_tokenizer(), "text_encoder": tiny.tiny_text_encoder().eval(), "vae": vae.eval()}
    # At diffusers' own gamma of 1/3 the covariance of noise is singular, which some linear algebra libraries refuse.
    scheduler = HeliosScheduler(stages=stages, stage_range=[each / stages for each in range(stages + 1)], gamma=0.3)
    pipe = kind(**parts, scheduler=scheduler, transformer=build(is_amplify_history=True))
    pipe.set_progress_bar_config(disable=True)
    return pipe


CALL = {"prompt": "a red circle moves left", "negative_prompt": "blurry", "num_frames": 17, "height": 64, "width": 96,
        "num_inference_steps": 4, "max_sequence_length": TEXT, "num_latent_frames_per_chunk": 5,
        "history_sizes": [6, 2, 1], "output_type": "np"}  # fmt: skip
PYRAMID = {name: each for name, each in CALL.items() if name != "num_inference_steps"}
"""The same in a pyramid, which asks for ``pyramid_num_inference_steps_list``."""
LAYOUT = TokenLayout(5, 4, 6, text_before=PAST_TOKENS)
NAME = "HeliosTransformer3DModel"
MODELS: dict[str, Model] = {
    NAME: Model(build, inputs, LAYOUT, pipeline=pipeline, call=CALL),
    f"{NAME}, keys of the past weighed up": Model(
        functools.partial(build, is_amplify_history=True, history_scale_mode="per_head"), inputs, LAYOUT
    ),
    f"{NAME}, no past": Model(build, functools.partial(inputs, past=False), TokenLayout(5, 4, 6)),
}
__all__ = ["CALL", "MODELS", "PYRAMID", "HeliosPyramidPipeline", "build", "inputs", "pipeline"]

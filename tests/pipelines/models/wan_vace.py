"""Wan VACE: two blocks of the condition, whose hints are added after two of three blocks of the video."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import WanVACEPipeline, WanVACETransformer3DModel
from torch import nn

from tests import tiny
from tests.pipelines.models import wan
from tests.pipelines.models.model import Model

VACE = {"num_layers": 3, "num_attention_heads": 2, "attention_head_dim": 64, "in_channels": 16, "out_channels": 16,
        "text_dim": tiny.TEXT_DIM, "freq_dim": 32, "ffn_dim": 64, "rope_max_seq_len": 64, "vace_layers": [0, 2],
        "vace_in_channels": 96}  # fmt: skip
MASK_CHANNELS = 64
"""Of the condition, beside twice the latents' channels: a mask of 8x8 pixels for each latent."""


def build() -> nn.Module:
    torch.manual_seed(1)
    return WanVACETransformer3DModel(**VACE).eval()


def inputs(transformer: Any) -> dict[str, Any]:
    call = wan.inputs(transformer)
    shape = (2, transformer.config.vace_in_channels, *wan.GRID)
    return call | {"control_hidden_states": torch.randn(shape), "control_hidden_states_scale": torch.tensor([1.0, 0.5])}


def pipeline() -> Any:
    pipe = WanVACEPipeline(**wan.parts(tiny.tiny_wan()) | {"transformer": build()})
    pipe.set_progress_bar_config(disable=True)
    return pipe


MODELS: dict[str, Model] = {
    "WanVACETransformer3DModel": Model(
        build, inputs, wan.LAYOUT, pipeline=pipeline,
        call=wan.CALL | {"video": wan.clip(), "reference_images": [tiny.tiny_image(20)]},
    ),
}  # fmt: skip

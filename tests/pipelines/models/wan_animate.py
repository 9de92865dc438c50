"""Wan Animate: a reference frame before the clip, and cross-attention to a face after one block of two."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import WanAnimatePipeline, WanAnimateTransformer3DModel
from torch import nn

from tests import tiny
from tests.pipelines.models import wan
from tests.pipelines.models.model import Model
from vidaccel.layout import TokenLayout

FACE = 16
"""Side of the face's picture, in pixels."""
ANIMATE: dict[str, Any] = {
    "num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 64, "in_channels": 36, "latent_channels": 16,
    "out_channels": 16, "text_dim": tiny.TEXT_DIM, "freq_dim": 32, "ffn_dim": 64, "rope_max_seq_len": 64,
    "motion_encoder_size": FACE, "motion_encoder_channel_sizes": {"4": 8, "8": 8, "16": 8}, "motion_style_dim": 8,
    "motion_dim": 4, "motion_encoder_dim": 16, "face_encoder_hidden_dim": 16, "face_encoder_num_heads": 2,
    "inject_face_latents_blocks": 2, **wan.IMAGES,
}  # fmt: skip


def build(**config: Any) -> nn.Module:
    torch.manual_seed(1)
    return WanAnimateTransformer3DModel(**ANIMATE | config).eval()


def inputs(transformer: Any) -> dict[str, Any]:
    """Of a segment of 17 frames: 5 latent ones after the reference."""
    call = wan.inputs(transformer)
    frames, height, width = wan.GRID
    return call | {"hidden_states": torch.randn(2, transformer.config.in_channels, frames + 1, height, width),
                   "pose_hidden_states": torch.randn(2, 16, frames, height, width),
                   "face_pixel_values": torch.rand(2, 3, 17, FACE, FACE) * 2 - 1}  # fmt: skip


def pipeline() -> Any:
    stock = tiny.tiny_wan(image=True, clip=True)
    images = {"image_encoder": stock.image_encoder, "image_processor": stock.image_processor}
    pipe = WanAnimatePipeline(**wan.parts(stock) | images | {"transformer": build()})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def face(frames: int = 17) -> list[Any]:
    return [each.resize((FACE, FACE)) for each in wan.clip(frames)]


CALL = wan.IMAGE_CALL | {"image": tiny.tiny_image(), "pose_video": wan.clip(), "face_video": face(),
                         "segment_frame_length": 17}  # fmt: skip
CALL.pop("num_frames")

MODELS: dict[str, Model] = {
    "WanAnimateTransformer3DModel": Model(build, inputs, TokenLayout(6, 4, 6), pipeline=pipeline, call=CALL),
}

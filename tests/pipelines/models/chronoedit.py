"""ChronoEdit: Wan's blocks with image tokens."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import ChronoEditPipeline, ChronoEditTransformer3DModel
from torch import nn

from tests import tiny
from tests.pipelines.models import wan
from tests.pipelines.models.model import Model


def build() -> nn.Module:
    torch.manual_seed(1)
    return ChronoEditTransformer3DModel(
        num_layers=2, num_attention_heads=2, attention_head_dim=64, in_channels=36, out_channels=16,
        text_dim=tiny.TEXT_DIM, freq_dim=32, ffn_dim=64, rope_max_seq_len=64, **wan.IMAGES,
    ).eval()  # fmt: skip


def pipeline() -> Any:
    stock = tiny.tiny_wan(image=True, clip=True)
    images = {"image_encoder": stock.image_encoder, "image_processor": stock.image_processor}
    pipe = ChronoEditPipeline(**wan.parts(stock) | images | {"transformer": build()})
    pipe.set_progress_bar_config(disable=True)
    return pipe


MODELS: dict[str, Model] = {
    "ChronoEditTransformer3DModel": Model(
        build, wan.inputs, wan.LAYOUT, pipeline=pipeline, call=wan.IMAGE_CALL | {"image": tiny.tiny_image()}
    ),
}

"""SkyReels-V2: one timestep, and diffusion forcing with history before the new frames."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    SkyReelsV2DiffusionForcingPipeline,
    SkyReelsV2ImageToVideoPipeline,
    SkyReelsV2Pipeline,
    SkyReelsV2Transformer3DModel,
    UniPCMultistepScheduler,
)
from diffusers.models.transformers.transformer_skyreels_v2 import SkyReelsV2AttnProcessor  # noqa: F401 (not in 0.35)
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from tests import tiny
from tests.pipelines.models import wan
from tests.pipelines.models.model import Model


def build(**config: Any) -> nn.Module:
    torch.manual_seed(1)
    size = {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 64, "in_channels": 16, "out_channels": 16,
            "text_dim": tiny.TEXT_DIM, "freq_dim": 32, "ffn_dim": 64, "rope_max_seq_len": 64}  # fmt: skip
    return SkyReelsV2Transformer3DModel(**size | config).eval()


def with_history(transformer: Any) -> dict[str, Any]:
    """Two frames of history, with a little noise, before three new ones; the stock model takes one frame rate."""
    frames = torch.tensor([20, 20, 500, 500, 500]).expand(2, -1)
    return wan.inputs(transformer) | {"timestep": frames, "enable_diffusion_forcing": True, "fps": [1]}


def pipeline(kind: Any = SkyReelsV2Pipeline, **parts: Any) -> Any:
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=8.0)
    pipe = kind(**wan.parts(tiny.tiny_wan()) | {"transformer": build(), "scheduler": scheduler} | parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def image_to_video() -> Any:
    vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "patch_size": 16,
              "num_attention_heads": 2, "image_size": 32, "projection_dim": 32}  # fmt: skip
    torch.manual_seed(1)
    return pipeline(
        SkyReelsV2ImageToVideoPipeline, transformer=build(in_channels=36, **wan.IMAGES),
        image_encoder=CLIPVisionModelWithProjection(CLIPVisionConfig(**vision)).eval(),
        image_processor=tiny.tiny_wan(image=True, clip=True).image_processor,
    )  # fmt: skip


def forcing() -> Any:
    return pipeline(SkyReelsV2DiffusionForcingPipeline)


MODELS: dict[str, Model] = {
    "SkyReelsV2Transformer3DModel": Model(build, wan.inputs, wan.LAYOUT, pipeline=pipeline, call=wan.CALL),
    "SkyReelsV2Transformer3DModel, image tokens": Model(
        lambda: build(in_channels=36, **wan.IMAGES), wan.inputs, wan.LAYOUT, pipeline=image_to_video,
        call=wan.IMAGE_CALL | {"image": tiny.tiny_image()},
    ),
    "SkyReelsV2Transformer3DModel, diffusion forcing": Model(
        lambda: build(inject_sample_info=True), with_history, wan.LAYOUT, pipeline=forcing, call=wan.CALL
    ),
}  # fmt: skip

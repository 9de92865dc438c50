"""Wan: text to video, image tokens and channels, a timestep for each token, and a run that starts late."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import WanVideoToVideoPipeline
from torch import nn

from tests import tiny
from tests.pipelines.models.model import Model
from vidaccel.layout import TokenLayout

GRID = (5, 8, 12)
"""Of latents: frames, height, width."""
LAYOUT = TokenLayout(5, 4, 6)
CALL: dict[str, Any] = {"prompt": "a red circle moves left", "negative_prompt": "blurry", "num_frames": 17,
                        "height": 64, "width": 96, "num_inference_steps": 4, "guidance_scale": 3.0,
                        "max_sequence_length": 16, "output_type": "latent"}  # fmt: skip
"""Of a pipeline, also of those that were made from Wan's."""
TEXT_WITH_IMAGES = 512
"""Text tokens where image tokens stand before them: the stock processor counts on so many."""
IMAGES = {"image_dim": 32, "added_kv_proj_dim": 128}
IMAGE_CALL = CALL | {"max_sequence_length": TEXT_WITH_IMAGES}


def build(**config: Any) -> nn.Module:
    torch.manual_seed(1)
    return tiny.tiny_wan_transformer(**config)


def inputs(transformer: Any) -> dict[str, Any]:
    """Of a class that was made from Wan's, too; image tokens where its configuration has them."""
    torch.manual_seed(2)
    images = transformer.config.image_dim is not None
    call = {"hidden_states": torch.randn(2, transformer.config.in_channels, *GRID),
            "timestep": torch.full((2,), 500.0),
            "encoder_hidden_states": torch.randn(2, TEXT_WITH_IMAGES if images else 16, tiny.TEXT_DIM)}  # fmt: skip
    return call | {"encoder_hidden_states_image": torch.randn(2, 5, 32)} if images else call


def image_first(transformer: Any) -> dict[str, Any]:
    """The first frame is an image without noise."""
    tokens = torch.full((2, LAYOUT.tokens), 500.0)
    tokens[:, : LAYOUT.frame_tokens] = 0
    return inputs(transformer) | {"timestep": tokens}


def clip(frames: int = 17) -> list[Any]:
    return [tiny.tiny_image(index) for index in range(frames)]


def video_to_video() -> Any:
    return WanVideoToVideoPipeline(**parts(tiny.tiny_wan()))


def parts(pipe: Any) -> dict[str, Any]:
    """What pipelines that were made from Wan's share with it; no progress bars."""
    names = ("tokenizer", "text_encoder", "vae", "scheduler", "transformer")
    return {name: getattr(pipe, name) for name in names}


# Of five timesteps the first is left out.
LATE = CALL | {"video": clip(), "timesteps": [1000.0, 900.0, 750.0, 500.0, 250.0], "strength": 0.8}
LATE.pop("num_frames")

MODELS: dict[str, Model] = {
    "WanTransformer3DModel": Model(build, inputs, LAYOUT, pipeline=tiny.tiny_wan, call=CALL),
    "WanTransformer3DModel, video to video": Model(build, inputs, LAYOUT, pipeline=video_to_video, call=LATE),
    "WanTransformer3DModel, image tokens": Model(
        lambda: build(in_channels=36, **IMAGES), inputs, LAYOUT,
        pipeline=lambda: tiny.tiny_wan(image=True, clip=True), call=IMAGE_CALL | {"image": tiny.tiny_image()},
    ),
    "WanTransformer3DModel, a timestep per token": Model(
        build, image_first, LAYOUT, pipeline=lambda: tiny.tiny_wan(image=True, expand_timesteps=True),
        call=CALL | {"image": tiny.tiny_image()},
    ),
}  # fmt: skip

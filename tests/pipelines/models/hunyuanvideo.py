"""HunyuanVideo: the variants of its transformer, and pipelines from text and from an image."""

from __future__ import annotations

import functools
from typing import Any

import torch
from diffusers import (
    AutoencoderKLHunyuanVideo,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoImageToVideoPipeline,
)
from transformers import CLIPImageProcessor

from tests import tiny
from tests.pipelines.cases import CALL
from tests.pipelines.models.model import Model
from tests.pipelines.test_hunyuanvideo import TEMPLATE, VARIANTS, build, inputs
from vidaccel.layout import TokenLayout

GRIDS = {"patches of two frames": (10, 8, 12)}
PIXELS = {name: CALL[name] for name in ("num_frames", "height", "width", "num_inference_steps")}
FROM_IMAGE = "image as the first frame"


def tiny_vae() -> AutoencoderKLHunyuanVideo:
    """A VAE with four latent channels."""
    return AutoencoderKLHunyuanVideo(
        latent_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=2,
        mid_block_add_attention=False,
    )  # fmt: skip


def tiny_image_to_video() -> HunyuanVideoImageToVideoPipeline:
    """From an image; text comes as embeddings, so that it needs no text encoder."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipe = HunyuanVideoImageToVideoPipeline(
            text_encoder=None, tokenizer=None, text_encoder_2=None, tokenizer_2=None, vae=tiny_vae().eval(),
            transformer=build(**VARIANTS[FROM_IMAGE]), scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
            image_processor=CLIPImageProcessor(),
        )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def embeddings(valid: int, seed: int, tokens: int = 16) -> dict[str, Any]:
    """Text embeddings of one prompt, padded to `tokens`, as pipelines take them."""
    drawn = torch.Generator().manual_seed(seed)
    return {"prompt_embeds": torch.randn(1, tokens, tiny.TEXT_DIM, generator=drawn),
            "pooled_prompt_embeds": torch.randn(1, tiny.TEXT_DIM, generator=drawn),
            "prompt_attention_mask": (torch.arange(tokens)[None] < valid).float()}  # fmt: skip


def negative(given: dict[str, Any]) -> dict[str, Any]:
    """The same as what guidance goes away from."""
    return {f"negative_{name}": each for name, each in given.items()}


def guided() -> dict[str, Any]:
    """Arguments of a call from an image with both guidance passes, whose prompts have different lengths."""
    both = embeddings(9, 1) | negative(embeddings(4, 2))
    return {**PIXELS, **both, "image": tiny.tiny_image(), "true_cfg_scale": 3.0, "output_type": "np"}


def _model(variant: str) -> Model:
    size = GRIDS.get(variant, (6, 8, 12))
    return Model(
        build=functools.partial(build, **VARIANTS[variant]), inputs=functools.partial(inputs, grid=size),
        layout=TokenLayout(size[0] // VARIANTS[variant].get("patch_size_t", 1), 4, 6, text_after=16),
        pipeline={"text": tiny.tiny_hunyuanvideo, FROM_IMAGE: tiny_image_to_video}.get(variant),
        call={"text": {**CALL, **TEMPLATE}, FROM_IMAGE: guided()}.get(variant, {}),
    )  # fmt: skip


MODELS = {f"HunyuanVideoTransformer3DModel, {variant}": _model(variant) for variant in VARIANTS}

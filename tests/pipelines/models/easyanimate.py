"""EasyAnimate, tiny: for text, and with the channels of inpainting and of control."""

from __future__ import annotations

import functools
from typing import Any

import torch
from diffusers import (
    AutoencoderKLMagvit,
    EasyAnimateInpaintPipeline,
    EasyAnimatePipeline,
    EasyAnimateTransformer3DModel,
    FlowMatchEulerDiscreteScheduler,
)
from torch import nn

from tests import tiny
from tests.pipelines.models.model import Model
from vidaccel.layout import TokenLayout

TEXT, SECOND_TEXT, CHANNELS = 12, 4, 4
INPAINTED, CONTROLLED = 2 * CHANNELS + 1, 3 * CHANNELS


def build(in_channels: int = CHANNELS, **config: Any) -> nn.Module:
    """Two blocks with weights of their own for the text and one without."""
    torch.manual_seed(1)
    size = {"num_attention_heads": 2, "attention_head_dim": 64, "in_channels": in_channels, "out_channels": CHANNELS,
            "patch_size": 2, "num_layers": 3, "mmdit_layers": 2, "time_embed_dim": 16,
            "text_embed_dim": tiny.TEXT_DIM}  # fmt: skip
    return EasyAnimateTransformer3DModel(**size | config).eval()


def inputs(transformer: nn.Module) -> dict[str, Any]:
    """One forward of two rows, with whatever the channels and text encoders of the transformer ask for."""
    torch.manual_seed(2)
    config: Any = transformer.config
    call: dict[str, Any] = {
        "hidden_states": torch.randn(2, CHANNELS, 5, 8, 12),
        "timestep": torch.full((2,), 500.0),
        "encoder_hidden_states": torch.randn(2, TEXT, tiny.TEXT_DIM),
    }
    if config.text_embed_dim_t5 is not None:
        call["encoder_hidden_states_t5"] = torch.randn(2, SECOND_TEXT, tiny.TEXT_DIM)
    if config.in_channels > CHANNELS:
        name = "inpaint_latents" if config.in_channels == INPAINTED else "control_latents"
        call[name] = torch.randn(2, config.in_channels - CHANNELS, 5, 8, 12)
    return call


def pipeline(kind: type = EasyAnimatePipeline, in_channels: int = CHANNELS) -> Any:
    """Of real classes, to be called with embeddings of prompts."""
    torch.manual_seed(0)
    vae = AutoencoderKLMagvit(latent_channels=CHANNELS, block_out_channels=(8, 8, 8, 8), layers_per_block=1,
                              norm_num_groups=2)  # fmt: skip
    pipe = kind(vae=vae.eval(), text_encoder=None, tokenizer=None, transformer=build(in_channels),
                scheduler=FlowMatchEulerDiscreteScheduler())  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def embeddings() -> dict[str, Any]:
    """Of a prompt and a negative prompt."""
    found = torch.randn(2, 1, TEXT, tiny.TEXT_DIM, generator=torch.Generator().manual_seed(3))
    mask = torch.ones(1, TEXT, dtype=torch.long)
    return {"prompt_embeds": found[0], "prompt_attention_mask": mask, "negative_prompt_embeds": found[1],
            "negative_prompt_attention_mask": mask}  # fmt: skip


CALL = {"num_frames": 17, "height": 64, "width": 96, "num_inference_steps": 4, "output_type": "latent", **embeddings()}
LAYOUT = TokenLayout(5, 4, 6, text_before=TEXT)
NAME = "EasyAnimateTransformer3DModel"
LORA: tuple[str, ...] = ()
"""diffusers gives the class no adapters."""
MODELS: dict[str, Model] = {
    NAME: Model(build, inputs, LAYOUT, pipeline=pipeline, call=CALL, lora=LORA),
    f"{NAME}, inpainting": Model(
        functools.partial(build, INPAINTED), inputs, LAYOUT, call=CALL, lora=LORA,
        pipeline=functools.partial(pipeline, EasyAnimateInpaintPipeline, INPAINTED),
    ),
    f"{NAME}, control": Model(functools.partial(build, CONTROLLED), inputs, LAYOUT, lora=LORA),
    f"{NAME}, two text encoders": Model(
        functools.partial(build, text_embed_dim_t5=tiny.TEXT_DIM), inputs,
        TokenLayout(5, 4, 6, text_before=TEXT + SECOND_TEXT), lora=LORA,
    ),
}  # fmt: skip

"""Motif-Video: from text and from an image, with a decoder and without; and a pipeline with a guider.

These have no cross-attention, with which diffusers' own ``fuse_qkv_projections`` fails; `test_motif` has it.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from diffusers import (
    AutoencoderKLWan,
    ClassifierFreeGuidance,
    FlowMatchEulerDiscreteScheduler,
    MotifVideoPipeline,
    MotifVideoTransformer3DModel,
)

from tests import tiny
from tests.pipelines.models.hunyuanvideo import PIXELS, embeddings, negative
from tests.pipelines.models.model import Model
from vidaccel.layout import TokenLayout

NAME = "MotifVideoTransformer3DModel"
IMAGE, TEXT = 4, 16
CROSS = {"enable_text_cross_attention_dual": True, "enable_text_cross_attention_single": True}


def build(**config: Any) -> MotifVideoTransformer3DModel:
    """A tiny transformer on its own: two dual-stream and two single-stream blocks, and two of the decoder."""
    torch.manual_seed(1)
    size = {"in_channels": 9, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 64, "num_layers": 2,
            "num_single_layers": 4, "num_decoder_layers": 2, "mlp_ratio": 1.0, "text_embed_dim": tiny.TEXT_DIM,
            "image_embed_dim": tiny.TEXT_DIM, "rope_axes_dim": (24, 20, 20)}  # fmt: skip
    return MotifVideoTransformer3DModel(**size | config).eval()


def inputs(
    transformer: Any, *, lengths: tuple[int, ...] = (16, 5), left: bool = False, image: bool = False,
    grid: tuple[int, int, int] = (5, 8, 12),
) -> dict[str, Any]:  # fmt: skip
    """Arguments of one pass: a row for each text length, padded at its end or, if `left`, before it."""
    torch.manual_seed(2)
    rows, mask = len(lengths), torch.arange(TEXT)[None] < torch.tensor(lengths)[:, None]
    call = {"hidden_states": torch.randn(rows, transformer.config.in_channels, *grid),
            "timestep": torch.full((rows,), 500.0), "encoder_hidden_states": torch.randn(rows, TEXT, tiny.TEXT_DIM),
            "encoder_attention_mask": mask.flip(1) if left else mask}  # fmt: skip
    if image:
        call["image_embeds"] = torch.randn(rows, IMAGE, tiny.TEXT_DIM)
    return call


def tiny_motif() -> MotifVideoPipeline:
    """A pipeline with random weights; text comes as embeddings, so that it needs no text encoder."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipe = MotifVideoPipeline(
            text_encoder=None, tokenizer=None, transformer=build(in_channels=33, out_channels=16),
            vae=AutoencoderKLWan(base_dim=4, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1).eval(),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0), guider=ClassifierFreeGuidance(guidance_scale=6.0),
        )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def guided() -> dict[str, Any]:
    """Arguments of a call with both guidance passes, whose prompts have different lengths."""
    first, second = embeddings(9, 1), embeddings(4, 2)
    for each in (first, second):
        del each["pooled_prompt_embeds"]
    return {**PIXELS, **first, **negative(second), "output_type": "np"}


MODELS = {
    f"{NAME}, text": Model(
        build=build, inputs=inputs, layout=TokenLayout(5, 4, 6, text_after=TEXT), pipeline=tiny_motif, call=guided(),
    ),
    f"{NAME}, image": Model(
        build=functools.partial(build, num_decoder_layers=0), inputs=functools.partial(inputs, image=True),
        layout=TokenLayout(5, 4, 6, text_after=IMAGE + TEXT),
    ),
}  # fmt: skip

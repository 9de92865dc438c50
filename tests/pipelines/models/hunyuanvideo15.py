"""HunyuanVideo 1.5: from text, where the image tokens are hidden, and from an image; and a pipeline with a guider."""

from __future__ import annotations

import functools
from typing import Any

import torch
from diffusers import (
    AutoencoderKLHunyuanVideo15,
    ClassifierFreeGuidance,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideo15Pipeline,
    HunyuanVideo15Transformer3DModel,
)

from tests import tiny
from tests.pipelines.models.hunyuanvideo import PIXELS, negative
from tests.pipelines.models.model import Model
from vidaccel.layout import TokenLayout

NAME = "HunyuanVideo15Transformer3DModel"
IMAGE, GLYPHS, TEXT = 6, 8, 16
"""Tokens after the video, padding included; real models have 729, 256 and 1000."""
LAYOUT = TokenLayout(5, 4, 6, text_after=IMAGE + GLYPHS + TEXT)


def build(**config: Any) -> HunyuanVideo15Transformer3DModel:
    """A tiny transformer on its own: three blocks."""
    torch.manual_seed(1)
    size = {"in_channels": 9, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 64, "num_layers": 3,
            "num_refiner_layers": 1, "mlp_ratio": 1.0, "text_embed_dim": tiny.TEXT_DIM, "text_embed_2_dim": 24,
            "image_embed_dim": tiny.TEXT_DIM, "rope_axes_dim": (24, 20, 20), "task_type": "t2v"}  # fmt: skip
    return HunyuanVideo15Transformer3DModel(**size | config).eval()


def text_inputs(lengths: tuple[tuple[int, int], ...], seed: int = 2) -> dict[str, torch.Tensor]:
    """Text and glyph embeddings of one pass, a row for each pair of their lengths, with their masks."""
    drawn, rows = torch.Generator().manual_seed(seed), len(lengths)
    text, glyphs = (torch.tensor(each)[:, None] for each in zip(*lengths, strict=True))
    return {"encoder_hidden_states": torch.randn(rows, TEXT, tiny.TEXT_DIM, generator=drawn),
            "encoder_attention_mask": (torch.arange(TEXT)[None] < text).long(),
            "encoder_hidden_states_2": torch.randn(rows, GLYPHS, 24, generator=drawn),
            "encoder_attention_mask_2": (torch.arange(GLYPHS)[None] < glyphs).long()}  # fmt: skip


def inputs(
    transformer: Any, *, lengths: tuple[tuple[int, int], ...] = ((16, 8), (5, 0)), image: bool = False,
    grid: tuple[int, int, int] = (5, 4, 6),
) -> dict[str, Any]:  # fmt: skip
    """Arguments of one pass, the timestep in the model's type; no image is embeddings of zeros, which are hidden."""
    torch.manual_seed(2)
    rows = len(lengths)
    embeds = torch.randn(rows, IMAGE, tiny.TEXT_DIM) if image else torch.zeros(rows, IMAGE, tiny.TEXT_DIM)
    return {"hidden_states": torch.randn(rows, transformer.config.in_channels, *grid),
            "timestep": torch.full((rows,), 500.0, dtype=transformer.dtype), **text_inputs(lengths),
            "image_embeds": embeds}  # fmt: skip


def tiny_hunyuanvideo15() -> HunyuanVideo15Pipeline:
    """A pipeline with random weights; text comes as embeddings, so that it needs no text encoder."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipe = HunyuanVideo15Pipeline(
            text_encoder=None, tokenizer=None, text_encoder_2=None, tokenizer_2=None, transformer=build(),
            vae=AutoencoderKLHunyuanVideo15(latent_channels=4, block_out_channels=(8, 8, 8, 8, 8),
                                            layers_per_block=1).eval(),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0), guider=ClassifierFreeGuidance(guidance_scale=6.0),
        )  # fmt: skip
    # Fewer than real ones, all hidden.
    pipe.vision_num_semantic_tokens = IMAGE
    pipe.set_progress_bar_config(disable=True)
    return pipe


def guided() -> dict[str, Any]:
    """Arguments of a call with both guidance passes, whose prompts have different lengths."""
    names = {"encoder_hidden_states": "prompt_embeds", "encoder_attention_mask": "prompt_embeds_mask",
             "encoder_hidden_states_2": "prompt_embeds_2", "encoder_attention_mask_2": "prompt_embeds_mask_2"}
    first, second = ({names[name]: each for name, each in text_inputs(lengths, seed).items()}
                     for lengths, seed in ((((9, 3),), 3), (((4, 0),), 4)))  # fmt: skip
    return {**PIXELS, **first, **negative(second), "output_type": "np"}


MODELS = {
    f"{NAME}, text": Model(
        build=build, inputs=inputs, layout=LAYOUT, pipeline=tiny_hunyuanvideo15, call=guided(),
    ),
    f"{NAME}, image": Model(
        build=functools.partial(build, task_type="i2v"), inputs=functools.partial(inputs, image=True), layout=LAYOUT,
    ),
    f"{NAME}, one row": Model(build=build, inputs=functools.partial(inputs, lengths=((7, 2),)), layout=LAYOUT),
}  # fmt: skip

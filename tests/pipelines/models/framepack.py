"""FramePack: one row, whose text loses its padding, and two rows, whose text keeps it; and a pipeline."""

from __future__ import annotations

import functools
from typing import Any

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoFramepackPipeline,
    HunyuanVideoFramepackTransformer3DModel,
)
from transformers import SiglipImageProcessor, SiglipVisionConfig, SiglipVisionModel

from tests import tiny
from tests.pipelines.models.hunyuanvideo import PIXELS, embeddings, negative, tiny_vae
from tests.pipelines.models.model import Model
from tests.pipelines.test_hunyuanvideo import SIZE
from vidaccel.layout import TokenLayout

NAME = "HunyuanVideoFramepackTransformer3DModel"
IMAGE = 4
HISTORY = {"clean": 2, "history_2x": 2, "history_4x": 16}
"""Frames of history, as the pipeline has them."""
BEFORE = 2 * 4 * 6 + 1 * 2 * 3 + 4 * 1 * 2
"""Tokens that they make of latents of 8 x 12."""


def build() -> HunyuanVideoFramepackTransformer3DModel:
    """A tiny transformer on its own: two dual-stream and two single-stream blocks."""
    torch.manual_seed(1)
    return HunyuanVideoFramepackTransformer3DModel(
        **SIZE, has_image_proj=True, image_proj_dim=tiny.TEXT_DIM, has_clean_x_embedder=True
    ).eval()


def inputs(
    transformer: Any, *, lengths: tuple[int, ...] = (9,), grid: tuple[int, int, int] = (5, 8, 12), text: int = 16
) -> dict[str, Any]:
    """Arguments of one pass of a window: a row for each text length, padded to `text`."""
    torch.manual_seed(2)
    rows, (frames, *size) = len(lengths), grid
    call = {"hidden_states": torch.randn(rows, 4, *grid), "timestep": torch.full((rows,), 500.0),
            "encoder_hidden_states": torch.randn(rows, text, tiny.TEXT_DIM),
            "encoder_attention_mask": (torch.arange(text)[None] < torch.tensor(lengths)[:, None]).float(),
            "pooled_projections": torch.randn(rows, tiny.TEXT_DIM),
            "image_embeds": torch.randn(rows, IMAGE, tiny.TEXT_DIM), "indices_latents": torch.arange(1, 1 + frames),
            "guidance": torch.full((rows,), 6000.0)}  # fmt: skip
    first = 1 + frames
    for name, count in HISTORY.items():
        call[f"latents_{name}"] = torch.randn(rows, 4, count, *size)
        call[f"indices_latents_{name}"] = torch.arange(first, first + count)
        first += count
    return call


def tiny_framepack() -> HunyuanVideoFramepackPipeline:
    """A pipeline with random weights; text comes as embeddings, so that it needs no text encoder."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        eyes = SiglipVisionConfig(hidden_size=tiny.TEXT_DIM, intermediate_size=32, num_hidden_layers=1, patch_size=16,
                                  num_attention_heads=2, image_size=32)  # fmt: skip
        pipe = HunyuanVideoFramepackPipeline(
            text_encoder=None, tokenizer=None, text_encoder_2=None, tokenizer_2=None, vae=tiny_vae().eval(),
            transformer=build(), scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
            image_encoder=SiglipVisionModel(eyes).eval(),
            feature_extractor=SiglipImageProcessor(size={"height": 32, "width": 32}),
        )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def guided(windows: int = 1) -> dict[str, Any]:
    """Arguments of a call with both guidance passes, whose prompts have different lengths."""
    both = embeddings(9, 1) | negative(embeddings(4, 2))
    return {**PIXELS, **both, "image": tiny.tiny_image(), "true_cfg_scale": 3.0, "latent_window_size": 5,
            "num_frames": 17 * windows, "output_type": "np"}  # fmt: skip


MODELS = {
    f"{NAME}, one row": Model(
        build=build, inputs=inputs, layout=TokenLayout(5, 4, 6, text_before=BEFORE, text_after=IMAGE + 9),
        pipeline=tiny_framepack, call=guided(),
    ),
    f"{NAME}, two rows": Model(
        build=build, inputs=functools.partial(inputs, lengths=(16, 5)),
        layout=TokenLayout(5, 4, 6, text_before=BEFORE, text_after=IMAGE + 16),
    ),
}  # fmt: skip

"""Mochi, tiny."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKLMochi,
    FlowMatchEulerDiscreteScheduler,
    MochiPipeline,
    MochiTransformer3DModel,
)
from torch import nn

from tests import tiny
from tests.pipelines.models.model import Model
from vidaccel.layout import TokenLayout

TEXT = 16


def build() -> nn.Module:
    """Three blocks, the last of which leaves the text alone; frequencies that tell heads apart."""
    torch.manual_seed(1)
    transformer = MochiTransformer3DModel(
        num_attention_heads=2, attention_head_dim=64, num_layers=3, pooled_projection_dim=64, in_channels=12,
        text_embed_dim=tiny.TEXT_DIM, time_embed_dim=16, max_sequence_length=TEXT,
    ).eval()  # fmt: skip
    nn.init.normal_(transformer.pos_frequencies, std=0.1)
    return transformer


def inputs(transformer: nn.Module, lengths: tuple[int, ...] = (TEXT, 5)) -> dict[str, Any]:
    """One forward with a row for each text length."""
    torch.manual_seed(2)
    rows = len(lengths)
    return {
        "hidden_states": torch.randn(rows, 12, 5, 8, 12),
        "encoder_hidden_states": torch.randn(rows, TEXT, tiny.TEXT_DIM),
        "timestep": torch.full((rows,), 500.0),
        "encoder_attention_mask": torch.arange(TEXT)[None] < torch.tensor(lengths)[:, None],
    }


def pipeline() -> Any:
    """Of real classes, with a text encoder like T5."""
    torch.manual_seed(0)
    vae = AutoencoderKLMochi(
        encoder_block_out_channels=(32, 32, 32, 32), decoder_block_out_channels=(32, 32, 32, 32),
        layers_per_block=(1, 1, 1, 1, 1), add_attention_block=(False, False, False, False, False),
    )  # fmt: skip
    parts = {"tokenizer": tiny.tiny_tokenizer(), "text_encoder": tiny.tiny_text_encoder().eval(), "vae": vae.eval()}
    pipe = MochiPipeline(**parts, scheduler=FlowMatchEulerDiscreteScheduler(invert_sigmas=True), transformer=build())
    pipe.set_progress_bar_config(disable=True)
    return pipe


CALL = {"prompt": "a red circle moves left", "negative_prompt": "blurry", "num_frames": 25, "height": 64, "width": 96,
        "num_inference_steps": 4, "max_sequence_length": TEXT, "output_type": "latent"}  # fmt: skip
MODELS: dict[str, Model] = {
    "MochiTransformer3DModel": Model(
        build, inputs, TokenLayout(5, 4, 6, text_after=TEXT), pipeline=pipeline, call=CALL,
        lora=("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj"),
    )
}  # fmt: skip

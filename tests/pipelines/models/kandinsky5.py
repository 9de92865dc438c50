"""Kandinsky 5 in tiny."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKLHunyuanVideo,
    FlowMatchEulerDiscreteScheduler,
    Kandinsky5T2VPipeline,
    Kandinsky5Transformer3DModel,
)

from tests import tiny
from tests.pipelines.models.model import Model
from vidaccel.layout import TokenLayout

TEXT, POOLED = 16, 24


def build(**config: Any) -> Kandinsky5Transformer3DModel:
    """A transformer with a text block and two video blocks, whose gates are not zero as they are made."""
    torch.manual_seed(1)
    size = {"in_visual_dim": 4, "out_visual_dim": 4, "in_text_dim": tiny.TEXT_DIM, "in_text_dim2": POOLED,
            "time_dim": 16, "model_dim": 128, "ff_dim": 64, "num_text_blocks": 1, "num_visual_blocks": 2,
            "axes_dims": (16, 24, 24)}  # fmt: skip
    transformer = Kandinsky5Transformer3DModel(**size | config).eval()
    for name, module in transformer.named_modules():
        if name.endswith("modulation.out_layer"):
            torch.nn.init.normal_(module.weight, std=0.2)
            torch.nn.init.normal_(module.bias, std=0.2)
    return transformer


def inputs(transformer: Any) -> dict[str, Any]:
    """Of text to video."""
    torch.manual_seed(2)
    channels = transformer.visual_embeddings.in_layer.in_features // 4
    return {"hidden_states": torch.randn(2, 5, 8, 12, channels),
            "encoder_hidden_states": torch.randn(2, TEXT, tiny.TEXT_DIM), "timestep": torch.full((2,), 500.0),
            "pooled_projections": torch.randn(2, POOLED), "text_rope_pos": torch.arange(TEXT),
            "visual_rope_pos": [torch.arange(size) for size in (5, 4, 6)]}  # fmt: skip


def build_conditioned() -> Kandinsky5Transformer3DModel:
    """One that is shown an image and its mask beside the latents."""
    return build(visual_cond=True)


def pipeline() -> Kandinsky5T2VPipeline:
    """Text to video; its text encoders are left out, so that calls give embeddings."""
    torch.manual_seed(0)
    vae = AutoencoderKLHunyuanVideo(latent_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=1,
                                    norm_num_groups=2, mid_block_add_attention=False)  # fmt: skip
    scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0)
    return tiny._ready(Kandinsky5T2VPipeline(build_conditioned(), vae, None, None, None, None, scheduler))


def call() -> dict[str, Any]:
    """Arguments of a generation, with what stands for prompts."""
    torch.manual_seed(3)
    given: dict[str, Any] = {"num_frames": 17, "height": 64, "width": 96, "num_inference_steps": 4,
                             "guidance_scale": 3.0, "output_type": "np"}  # fmt: skip
    for name in ("", "negative_"):
        given[f"{name}prompt_embeds_qwen"] = torch.randn(1, TEXT, tiny.TEXT_DIM)
        given[f"{name}prompt_embeds_clip"] = torch.randn(1, POOLED)
        given[f"{name}prompt_cu_seqlens"] = torch.tensor([0, TEXT], dtype=torch.int32)
    return given


LORA = ("to_query", "to_key", "to_value")
MODELS = {
    "Kandinsky5Transformer3DModel": Model(build, inputs, TokenLayout(5, 4, 6), lora=LORA),
    "Kandinsky5Transformer3DModel, image": Model(
        build_conditioned, inputs, TokenLayout(5, 4, 6), pipeline=pipeline, call=call(), lora=LORA
    ),
}

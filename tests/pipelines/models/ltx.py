"""LTX-Video in tiny."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKLLTXVideo, FlowMatchEulerDiscreteScheduler, LTXPipeline, LTXVideoTransformer3DModel

from tests import tiny
from tests.pipelines.models.model import Model
from vidaccel.layout import TokenLayout

TEXT = 16
GRID = (5, 4, 6)
CALL = {"prompt": "a red circle moves left", "negative_prompt": "blurry", "num_frames": 17, "height": 64, "width": 96,
        "num_inference_steps": 4, "guidance_scale": 3.0, "max_sequence_length": TEXT, "output_type": "np"}  # fmt: skip
"""Of a pipeline with `vae`: 5x4x6 tokens."""


def build(**config: Any) -> LTXVideoTransformer3DModel:
    """A transformer with two blocks."""
    torch.manual_seed(1)
    size = {"in_channels": 8, "out_channels": 8, "num_attention_heads": 2, "attention_head_dim": 64,
            "cross_attention_dim": 128, "num_layers": 2, "caption_channels": tiny.TEXT_DIM}  # fmt: skip
    return LTXVideoTransformer3DModel(**size | config).eval()


def inputs(transformer: Any, tokens: int = 120) -> dict[str, Any]:
    """Of text to video: a grid, and padded text."""
    torch.manual_seed(2)
    mask = torch.arange(TEXT)[None] < torch.tensor([16, 5])[:, None]
    return {"hidden_states": torch.randn(2, tokens, transformer.config.in_channels),
            "encoder_hidden_states": torch.randn(2, TEXT, tiny.TEXT_DIM), "timestep": torch.full((2,), 500.0),
            "encoder_attention_mask": mask, "num_frames": GRID[0], "height": GRID[1], "width": GRID[2],
            "rope_interpolation_scale": (8 / 25, 32, 32)}  # fmt: skip


def coordinates(times: list[float], height: int = 4, width: int = 6, size: float = 32.0) -> torch.Tensor:
    """Time, row and column of each token of frames at `times`: ``[3, tokens]``."""
    axes = torch.tensor(times, dtype=torch.float32), torch.arange(height) * size, torch.arange(width) * size
    return torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1)


def conditioned(transformer: Any) -> dict[str, Any]:
    """Of conditions to video: two keyframes before the clip, coordinates instead of a grid, a timestep per token."""
    call = inputs(transformer, 168)
    for name in ("num_frames", "height", "width", "rope_interpolation_scale"):
        del call[name]
    places = coordinates([16 / 25, 24 / 25, *(each / 25 for each in (0, 1, 9, 17, 25))])
    timestep = torch.full((2, 168), 500.0)
    timestep[:, :48] = 50.0
    return call | {"video_coords": places[None].repeat(2, 1, 1), "timestep": timestep}


def vae() -> AutoencoderKLLTXVideo:
    """One that makes a token of 4 x 16 x 16 pixels."""
    return AutoencoderKLLTXVideo(
        latent_channels=8, block_out_channels=(8, 8, 8, 8), decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1), decoder_layers_per_block=(1, 1, 1, 1, 1), patch_size=4, patch_size_t=1,
        spatio_temporal_scaling=(True, True, False, False), decoder_spatio_temporal_scaling=(True, True, False, False),
    )  # fmt: skip


def pipeline() -> LTXPipeline:
    """Text to video."""
    torch.manual_seed(0)
    pipe = LTXPipeline(
        FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), vae(), tiny.tiny_text_encoder(),
        tiny.tiny_tokenizer(), build(),
    )  # fmt: skip
    return tiny._ready(pipe)


MODELS = {
    "LTXVideoTransformer3DModel": Model(build, inputs, TokenLayout(*GRID), pipeline=pipeline, call=CALL),
    "LTXVideoTransformer3DModel, conditions": Model(build, conditioned, TokenLayout(*GRID, text_before=48)),
}

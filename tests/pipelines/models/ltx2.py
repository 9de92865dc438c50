"""LTX-2 in tiny."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import LTX2VideoTransformer3DModel

from tests import tiny
from tests.pipelines.models.model import Model
from vidaccel.layout import TokenLayout

TEXT, SOUND = 16, 10
LATER: dict[str, Any] = {"rope_type": "split", "gated_attn": True, "audio_gated_attn": True, "cross_attn_mod": True,
                         "audio_cross_attn_mod": True, "perturbed_attn": True}  # fmt: skip
"""What LTX-2.3 has of its own."""


def build(**config: Any) -> LTX2VideoTransformer3DModel:
    """A transformer with two blocks: two heads of 64 for video, two of 32 for sound."""
    torch.manual_seed(1)
    size = {"in_channels": 8, "out_channels": 8, "num_attention_heads": 2, "attention_head_dim": 64,
            "cross_attention_dim": 128, "audio_in_channels": 6, "audio_out_channels": 6,
            "audio_num_attention_heads": 2, "audio_attention_head_dim": 32, "audio_cross_attention_dim": 64,
            "num_layers": 2, "caption_channels": tiny.TEXT_DIM}  # fmt: skip
    return LTX2VideoTransformer3DModel(**size | config).eval()


def build_later() -> LTX2VideoTransformer3DModel:
    return build(**LATER)


def inputs(transformer: Any, tokens: int = 120) -> dict[str, Any]:
    """Of text to video with sound."""
    torch.manual_seed(2)
    mask = torch.arange(TEXT)[None] < torch.tensor([16, 5])[:, None]
    return {"hidden_states": torch.randn(2, tokens, 8), "audio_hidden_states": torch.randn(2, SOUND, 6),
            "encoder_hidden_states": torch.randn(2, TEXT, tiny.TEXT_DIM),
            "audio_encoder_hidden_states": torch.randn(2, TEXT, tiny.TEXT_DIM), "timestep": torch.full((2,), 500.0),
            "sigma": torch.full((2,), 500.0), "encoder_attention_mask": mask, "audio_encoder_attention_mask": mask,
            "num_frames": 5, "height": 4, "width": 6, "audio_num_frames": SOUND}  # fmt: skip


def conditioned(transformer: Any) -> dict[str, Any]:
    """With a keyframe after the clip, and a timestep per token."""
    call = inputs(transformer, 144)
    places = transformer.rope.prepare_video_coords(2, 5, 4, 6, torch.device("cpu"))
    key = transformer.rope.prepare_video_coords(2, 1, 4, 6, torch.device("cpu"))
    key[:, 0] += 11 / 24
    timestep = torch.full((2, 144), 500.0)
    timestep[:, 120:] = 50.0
    return call | {"video_coords": torch.cat([places, key], dim=2), "timestep": timestep,
                   "audio_timestep": torch.full((2,), 500.0)}  # fmt: skip


MODELS = {
    "LTX2VideoTransformer3DModel": Model(build, inputs, TokenLayout(5, 4, 6)),
    "LTX2VideoTransformer3DModel, 2.3": Model(build_later, conditioned, TokenLayout(5, 4, 6, text_after=24)),
}

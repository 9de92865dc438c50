"""AnyFlow: source and target timesteps for each frame, and frames before channels."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AnyFlowPipeline, AnyFlowTransformer3DModel, FlowMapEulerDiscreteScheduler
from torch import nn

from tests import tiny
from tests.pipelines.models import wan
from tests.pipelines.models.model import Model


def build() -> nn.Module:
    torch.manual_seed(1)
    return AnyFlowTransformer3DModel(
        num_layers=2, num_attention_heads=2, attention_head_dim=64, in_channels=16, out_channels=16,
        text_dim=tiny.TEXT_DIM, freq_dim=32, ffn_dim=64, rope_max_seq_len=64,
    ).eval()  # fmt: skip


def inputs(transformer: Any) -> dict[str, Any]:
    """One guided call of a clip that goes on after a frame."""
    torch.manual_seed(2)
    frames, height, width = wan.GRID
    at = torch.full((2, frames), 500.0)
    at[:, 0] = 0
    return {"hidden_states": torch.randn(1, frames, 16, height, width).repeat(2, 1, 1, 1, 1), "timestep": at,
            "r_timestep": torch.full((2, frames), 250.0),
            "encoder_hidden_states": torch.randn(2, 16, tiny.TEXT_DIM)}  # fmt: skip


def pipeline() -> Any:
    scheduler = FlowMapEulerDiscreteScheduler(shift=5.0)
    pipe = AnyFlowPipeline(**wan.parts(tiny.tiny_wan()) | {"transformer": build(), "scheduler": scheduler})
    pipe.set_progress_bar_config(disable=True)
    return pipe


MODELS: dict[str, Model] = {
    "AnyFlowTransformer3DModel": Model(build, inputs, wan.LAYOUT, pipeline=pipeline, call=wan.CALL),
}

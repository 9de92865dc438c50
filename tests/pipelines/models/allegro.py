"""Allegro, tiny."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AllegroPipeline, AllegroTransformer3DModel, AutoencoderKLAllegro, EulerAncestralDiscreteScheduler
from diffusers.models.embeddings import get_3d_rotary_pos_embed_allegro
from torch import Tensor, nn

from tests import tiny
from tests.pipelines.models.model import Model
from vidaccel.layout import TokenLayout

HEAD_DIM, GRID, TEXT = 96, (5, 4, 6), 16


def build(**config: Any) -> nn.Module:
    """Three blocks."""
    torch.manual_seed(1)
    size = {"num_attention_heads": 2, "attention_head_dim": HEAD_DIM, "num_layers": 3, "sample_height": 8,
            "sample_width": 12, "sample_frames": 5, "cross_attention_dim": 2 * HEAD_DIM,
            "caption_channels": tiny.TEXT_DIM}  # fmt: skip
    return AllegroTransformer3DModel(**size | config).eval()


def rotary() -> tuple[Any, Any]:
    """Positions as the pipeline gives them."""
    frames, height, width = GRID
    found = get_3d_rotary_pos_embed_allegro(HEAD_DIM, ((0, 0), (height, width)), (height, width), frames,
                                            interpolation_scale=(2.2, 2.0, 2.0))  # fmt: skip
    places: Tensor = torch.cartesian_prod(*(axis.long() for axis in found[3:]))
    return found[:3], places.T.reshape(3, 1, -1).contiguous().unbind()


def inputs(transformer: nn.Module) -> dict[str, Any]:
    """One forward of two rows, one of them with padded text."""
    torch.manual_seed(2)
    frames, height, width = GRID
    return {
        "hidden_states": torch.randn(2, 4, frames, 2 * height, 2 * width),
        "encoder_hidden_states": torch.randn(2, 1, TEXT, tiny.TEXT_DIM),
        "timestep": torch.full((2,), 500),
        "encoder_attention_mask": torch.arange(TEXT)[None] < torch.tensor([TEXT, 5])[:, None],
        "image_rotary_emb": rotary(),
    }


def pipeline() -> Any:
    """Of real classes, with a text encoder like T5."""
    torch.manual_seed(0)
    vae = AutoencoderKLAllegro(block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=2)
    parts = {"tokenizer": tiny.tiny_tokenizer(), "text_encoder": tiny.tiny_text_encoder().eval(), "vae": vae.eval()}
    pipe = AllegroPipeline(**parts, scheduler=EulerAncestralDiscreteScheduler(), transformer=build())
    pipe.set_progress_bar_config(disable=True)
    return pipe


CALL = {"prompt": "a red circle moves left", "negative_prompt": "blurry", "num_frames": 20, "height": 64, "width": 96,
        "num_inference_steps": 4, "max_sequence_length": TEXT, "clean_caption": False,
        "output_type": "latent"}  # fmt: skip
MODELS: dict[str, Model] = {
    # diffusers gives the class no adapters.
    "AllegroTransformer3DModel": Model(build, inputs, TokenLayout(*GRID), pipeline=pipeline, call=CALL, lora=())
}

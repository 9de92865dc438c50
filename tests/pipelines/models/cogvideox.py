"""CogVideoX 1.0 and 1.5 and ConsisID, tiny, with the pipelines that share their parts."""

from __future__ import annotations

import functools
from typing import Any

import torch
from diffusers import (
    CogVideoXFunControlPipeline,
    CogVideoXImageToVideoPipeline,
    CogVideoXTransformer3DModel,
    CogVideoXVideoToVideoPipeline,
    ConsisIDTransformer3DModel,
)
from diffusers.models.embeddings import get_3d_rotary_pos_embed

# diffusers itself shows it only where OpenCV is, which a face that is given does not need.
from diffusers.pipelines.consisid.pipeline_consisid import ConsisIDPipeline
from torch import nn

from tests import tiny
from tests.pipelines.models.model import Model
from vidaccel.layout import TokenLayout

TEXT, CHANNELS, FACE = 16, 4, 32
SIZE = {"num_attention_heads": 2, "attention_head_dim": 64, "in_channels": CHANNELS, "out_channels": CHANNELS,
        "time_embed_dim": 8, "text_embed_dim": tiny.TEXT_DIM, "num_layers": 3, "sample_height": 8, "sample_width": 12,
        "sample_frames": 17, "max_text_seq_length": TEXT, "use_rotary_positional_embeddings": True}  # fmt: skip
FROM_IMAGE = {"in_channels": 2 * CHANNELS}


def build(**config: Any) -> nn.Module:
    """Three blocks."""
    torch.manual_seed(1)
    return CogVideoXTransformer3DModel(**SIZE | config).eval()


def build_consisid() -> nn.Module:
    """Three blocks, after the first and third of which the video sees the face."""
    torch.manual_seed(1)
    face = {"is_train_face": True, "cross_attn_dim_head": 16, "cross_attn_num_heads": 2, "LFE_id_dim": FACE,
            "LFE_vit_dim": FACE, "LFE_depth": 5, "LFE_dim_head": 16, "LFE_num_heads": 2, "LFE_num_querie": 4,
            "LFE_output_dim": 85, "cross_attn_interval": 1, "use_learned_positional_embeddings": True}  # fmt: skip
    return ConsisIDTransformer3DModel(**SIZE | FROM_IMAGE | face).eval()


def inputs(transformer: nn.Module, frames: int = 5) -> dict[str, Any]:
    """One forward of two rows."""
    torch.manual_seed(2)
    config: Any = transformer.config
    size = frames // (getattr(config, "patch_size_t", None) or 1), 4, 6
    rotary = get_3d_rotary_pos_embed(64, ((0, 0), size[1:]), size[1:], size[0])
    call: dict[str, Any] = {
        "hidden_states": torch.randn(2, frames, config.in_channels, 8, 12),
        "encoder_hidden_states": torch.randn(2, TEXT, tiny.TEXT_DIM),
        "timestep": torch.full((2,), 500),
        "image_rotary_emb": rotary if config.use_rotary_positional_embeddings else None,
    }
    if getattr(config, "ofs_embed_dim", None):
        call["ofs"] = torch.full((1,), 2.0)
    return call


def face(rows: int = 1) -> dict[str, Any]:
    """What ConsisID is told of a face."""
    draw = torch.Generator().manual_seed(3)
    return {"id_cond": torch.randn(rows, FACE, generator=draw),
            "id_vit_hidden": [torch.randn(rows, 6, FACE, generator=draw) for _ in range(5)]}  # fmt: skip


def consisid_inputs(transformer: nn.Module) -> dict[str, Any]:
    """One forward of two rows with a face."""
    return inputs(transformer) | face(2)


def pipeline(kind: type, transformer: Any) -> Any:
    """Of the parts of a CogVideoX pipeline."""
    parts = tiny.tiny_cogvideox().components | {"transformer": transformer()}
    pipe = kind(**parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


CALL = {"prompt": "a red circle moves left", "negative_prompt": "blurry", "height": 64, "width": 96,
        "num_inference_steps": 4, "max_sequence_length": TEXT, "output_type": "latent"}  # fmt: skip
TEXT_CALL = {**CALL, "num_frames": 17}
IMAGE_CALL = {**TEXT_CALL, "image": tiny.tiny_image(0)}
CLIP = [tiny.tiny_image(seed) for seed in range(17)]
LAYOUT = TokenLayout(5, 4, 6, text_before=TEXT)
DEEP = {"patch_size_t": 2, "patch_bias": False}
NAME = "CogVideoXTransformer3DModel"
rotary_from_image = functools.partial(build, **FROM_IMAGE, use_learned_positional_embeddings=True)
deep_from_image = functools.partial(build, **FROM_IMAGE, **DEEP, ofs_embed_dim=8)
controlled = functools.partial(build, **FROM_IMAGE)
MODELS: dict[str, Model] = {
    NAME: Model(build, inputs, LAYOUT, pipeline=tiny.tiny_cogvideox, call=TEXT_CALL),
    f"{NAME}, no rotary embedding": Model(
        functools.partial(build, use_rotary_positional_embeddings=False), inputs, LAYOUT
    ),
    f"{NAME}, from a video": Model(
        build, inputs, LAYOUT, pipeline=functools.partial(pipeline, CogVideoXVideoToVideoPipeline, build),
        call={**CALL, "video": CLIP, "strength": 1.0},
    ),
    f"{NAME}, from an image": Model(
        rotary_from_image, inputs, LAYOUT, call=IMAGE_CALL,
        pipeline=functools.partial(pipeline, CogVideoXImageToVideoPipeline, rotary_from_image),
    ),
    f"{NAME}, control": Model(
        controlled, inputs, LAYOUT, pipeline=functools.partial(pipeline, CogVideoXFunControlPipeline, controlled),
        call={**CALL, "control_video": CLIP},
    ),
    f"{NAME}, 1.5": Model(
        functools.partial(build, **DEEP), functools.partial(inputs, frames=10), LAYOUT
    ),
    f"{NAME}, 1.5 from an image": Model(deep_from_image, functools.partial(inputs, frames=10), LAYOUT),
    "ConsisIDTransformer3DModel": Model(
        build_consisid, consisid_inputs, LAYOUT, call={**IMAGE_CALL, **face()},
        pipeline=functools.partial(pipeline, ConsisIDPipeline, build_consisid),
    ),
}  # fmt: skip

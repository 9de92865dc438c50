"""Cosmos in tiny. All without the mask of padding, which takes torchvision to resize."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKLCosmos,
    AutoencoderKLWan,
    Cosmos2_5_PredictBasePipeline,
    Cosmos2VideoToWorldPipeline,
    CosmosTextToWorldPipeline,
    CosmosTransformer3DModel,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)

from tests import tiny
from tests.pipelines.models.model import Model
from vidaccel.layout import TokenLayout

LAYOUT = TokenLayout(5, 4, 6)
CALL: dict[str, Any] = {"num_frames": 17, "height": 64, "width": 96, "num_inference_steps": 4, "guidance_scale": 3.0,
                        "output_type": "np"}  # fmt: skip
PROMPTS = {"prompt": "a red circle moves left", "negative_prompt": "blurry", "max_sequence_length": 16}


class Safe:
    """Stands for NVIDIA's safety checker, which the pipelines insist on: lets everything pass."""

    def to(self, device: Any) -> None:
        """Nowhere to go."""

    def check_text_safety(self, text: str) -> bool:
        return True

    def check_video_safety(self, video: Any) -> Any:
        return video


def build(**config: Any) -> CosmosTransformer3DModel:
    """A transformer with two blocks, and learned places that are not all the same."""
    torch.manual_seed(1)
    size = {"in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 64, "num_layers": 2,
            "mlp_ratio": 1.0, "text_embed_dim": tiny.TEXT_DIM, "adaln_lora_dim": 8, "max_size": (16, 32, 32),
            "concat_padding_mask": False}  # fmt: skip
    transformer = CosmosTransformer3DModel(**size | config).eval()
    for name, places in transformer.named_parameters():
        if "pos_emb_" in name:
            torch.nn.init.normal_(places)
    return transformer


def build_conditioned() -> CosmosTransformer3DModel:
    """Of Predict 2: a further channel, no learned places."""
    return build(in_channels=5, extra_pos_embed_type=None)


def inputs(transformer: Any) -> dict[str, Any]:
    """Of text to video, and Cosmos 1: one timestep for all frames, of a scale from about -1.5 to 1.1."""
    torch.manual_seed(2)
    return {"hidden_states": torch.randn(2, 4, 5, 8, 12), "timestep": torch.full((2,), 0.5),
            "encoder_hidden_states": torch.randn(2, 16, tiny.TEXT_DIM), "fps": 24}  # fmt: skip


def conditioned(transformer: Any) -> dict[str, Any]:
    """Of a picture to video, and Predict 2: the first frame has a timestep of its own."""
    call = inputs(transformer)
    mask = torch.zeros(2, 1, 5, 8, 12)
    mask[:, :, 0] = 1.0
    timestep = torch.full((2, 1, 5, 1, 1), 0.5)
    timestep[:, :, 0] = 1e-4
    return call | {"condition_mask": mask, "timestep": timestep}


def text_to_world() -> CosmosTextToWorldPipeline:
    """Cosmos 1."""
    torch.manual_seed(0)
    vae = AutoencoderKLCosmos(
        latent_channels=4, encoder_block_out_channels=(8, 8, 8, 8), decode_block_out_channels=(8, 8, 8, 8),
        attention_resolutions=(8,), resolution=64, num_layers=1, patch_size=4, spatial_compression_ratio=8,
        temporal_compression_ratio=4, latents_mean=None, latents_std=None,
    )  # fmt: skip
    return tiny._ready(CosmosTextToWorldPipeline(
        tiny.tiny_text_encoder(), tiny.tiny_tokenizer(), build(), vae,
        EDMEulerScheduler(sigma_min=0.002, sigma_max=80, sigma_data=0.5, final_sigmas_type="sigma_min"), Safe(),
    ))  # fmt: skip


def _wan_vae() -> AutoencoderKLWan:
    return AutoencoderKLWan(base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, latents_mean=[0.0] * 4,
                            latents_std=[1.0] * 4)  # fmt: skip


def video_to_world() -> Cosmos2VideoToWorldPipeline:
    """Predict 2."""
    torch.manual_seed(0)
    scheduler = FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True)
    return tiny._ready(Cosmos2VideoToWorldPipeline(
        tiny.tiny_text_encoder(), tiny.tiny_tokenizer(), build_conditioned(), _wan_vae(), scheduler, Safe(),
    ))  # fmt: skip


def predict() -> Cosmos2_5_PredictBasePipeline:
    """Predict 2.5; its text encoder is left out, so that calls give embeddings."""
    torch.manual_seed(0)
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0)
    return tiny._ready(Cosmos2_5_PredictBasePipeline(None, None, build_conditioned(), _wan_vae(), scheduler, Safe()))


def embeddings() -> dict[str, Any]:
    """What stands for prompts where there is no text encoder."""
    torch.manual_seed(3)
    return {name: torch.randn(1, 16, tiny.TEXT_DIM) for name in ("prompt_embeds", "negative_prompt_embeds")}


MODELS = {
    "CosmosTransformer3DModel": Model(build, inputs, LAYOUT, pipeline=text_to_world, call=CALL | PROMPTS),
    "CosmosTransformer3DModel, Predict 2": Model(
        build_conditioned, conditioned, LAYOUT, pipeline=video_to_world,
        call=CALL | PROMPTS | {"image": tiny.tiny_image()},
    ),
    "CosmosTransformer3DModel, Predict 2.5": Model(
        build_conditioned, conditioned, LAYOUT, pipeline=predict,
        call=CALL | embeddings() | {"video": [tiny.tiny_image()] * 5, "conditional_frame_timestep": 0.9},
    ),
}  # fmt: skip

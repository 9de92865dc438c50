"""HunyuanVideo in miniature: text joined to the video, padded and masked; guidance as an input, in one pass."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLHunyuanVideo, HunyuanVideoPipeline, HunyuanVideoTransformer3DModel
from diffusers.models.autoencoders.autoencoder_kl_hunyuan_video import (
    HunyuanVideoCausalConv3d,
    HunyuanVideoResnetBlockCausal3D,
)
from text import WIDTH, build_tokenizer, frozen, tokens
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, LlamaConfig, LlamaModel

from vidaccel_miniatures.captions import MAX_TOKENS

from . import flow
from .base import LATENT_CHANNELS, Family, Text

CLIP_TOKENS = 77
"""Tokens that the pipeline gives its second encoder."""
SKIPPED = 2
"""Last layers of the language model that the pipeline does not use."""


class HunyuanVideo(Family):
    """See the module."""

    name = "hunyuanvideo"
    vae_pieces = True
    distilled = True
    text = {"text_after": MAX_TOKENS}
    # The pipeline's own template would be cut off by a count of another tokenizer's tokens.
    call = {"prompt_template": {"template": "{}", "crop_start": 0}}

    def build_vae(self) -> AutoencoderKLHunyuanVideo:
        vae = AutoencoderKLHunyuanVideo(
            latent_channels=LATENT_CHANNELS, block_out_channels=(16, 24, 48, 64), layers_per_block=1,
            # One group: with few channels a group, the norm would take the clip's brightness out of them.
            norm_num_groups=1, mid_block_add_attention=False, scaling_factor=1.0,
        )  # fmt: skip
        for module in vae.modules():
            if isinstance(module, HunyuanVideoCausalConv3d):
                _steady(module.conv)
        for module in vae.modules():
            if isinstance(module, HunyuanVideoResnetBlockCausal3D):
                # Blocks that start as the identity: the rest is shallow and learns at once.
                torch.nn.init.zeros_(module.conv2.conv.weight)
                torch.nn.init.zeros_(module.conv2.conv.bias)
        return vae

    def load_vae(self, folder: Path) -> AutoencoderKLHunyuanVideo:
        return AutoencoderKLHunyuanVideo.from_pretrained(folder, torch_dtype=torch.float32)

    def build_transformer(self) -> HunyuanVideoTransformer3DModel:
        model = HunyuanVideoTransformer3DModel(
            in_channels=LATENT_CHANNELS, out_channels=LATENT_CHANNELS, num_attention_heads=4, attention_head_dim=64,
            num_layers=1, num_single_layers=4, num_refiner_layers=1, mlp_ratio=2.0, patch_size=2, patch_size_t=1,
            guidance_embeds=True, text_embed_dim=WIDTH, pooled_projection_dim=WIDTH, rope_axes_dim=(24, 20, 20),
        )  # fmt: skip
        for parameter in model.proj_out.parameters():
            torch.nn.init.zeros_(parameter)
        return model

    def embed(self, texts: list[str]) -> Text:
        ids, mask = tokens(build_tokenizer(), texts)
        clip_ids, _ = tokens(build_tokenizer(CLIP_TOKENS), texts)
        with torch.no_grad():
            states = _language_model()(ids, mask, output_hidden_states=True).hidden_states[-SKIPPED - 1]
            return {"states": states, "mask": mask.float(), "pooled": _clip()(clip_ids).pooler_output}

    def predict(self, model: Any, noisy: Tensor, timestep: Tensor, text: Text, guidance: Tensor) -> Tensor:
        prediction: Tensor = model(
            noisy, timestep, text["states"], text["mask"], text["pooled"], guidance * 1000, return_dict=False
        )[0]
        return prediction

    def noised(self, latents: Tensor, noise: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        return flow.noised(latents, noise, generator)

    def pipeline(self, vae: Any, transformer: Any) -> HunyuanVideoPipeline:
        return HunyuanVideoPipeline(
            tokenizer=build_tokenizer(), text_encoder=_language_model(), tokenizer_2=build_tokenizer(CLIP_TOKENS),
            text_encoder_2=_clip(), vae=vae, transformer=transformer, scheduler=flow.scheduler(),
        )  # fmt: skip


def _steady(convolution: torch.nn.Conv3d) -> None:
    """Make two channels constant and strong, so that a norm over all of them hardly depends on what a clip shows."""
    channels = convolution.out_channels
    if channels > 2 * LATENT_CHANNELS - 1:
        with torch.no_grad():
            convolution.bias[:2] = torch.tensor([1.0, -1.0]) * channels**0.5
            convolution.weight[:2] = 0.0


@cache
def _language_model() -> LlamaModel:
    def build(size: int) -> LlamaModel:
        return LlamaModel(LlamaConfig(
            vocab_size=size, hidden_size=WIDTH, intermediate_size=128, num_hidden_layers=SKIPPED + 1,
            num_attention_heads=4, pad_token_id=0, bos_token_id=1, eos_token_id=1, initializer_range=0.1,
        ))  # fmt: skip

    model: LlamaModel = frozen(build)
    return model


@cache
def _clip() -> CLIPTextModel:
    def build(size: int) -> CLIPTextModel:
        return CLIPTextModel(CLIPTextConfig(
            vocab_size=size, hidden_size=WIDTH, intermediate_size=128, num_hidden_layers=1, num_attention_heads=4,
            max_position_embeddings=CLIP_TOKENS, pad_token_id=0, bos_token_id=1, eos_token_id=1, projection_dim=WIDTH,
        ))  # fmt: skip

    model: CLIPTextModel = frozen(build)
    return model

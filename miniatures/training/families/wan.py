"""Wan 2.1 in miniature: text by cross attention, guidance in two passes."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, WanPipeline, WanTransformer3DModel
from text import WIDTH, build_tokenizer, frozen, tokens
from torch import Tensor
from transformers import UMT5Config, UMT5EncoderModel

from . import flow
from .base import LATENT_CHANNELS, Family, Text


class Wan(Family):
    """See the module."""

    name = "wan"

    def build_vae(self) -> AutoencoderKLWan:
        return AutoencoderKLWan(
            base_dim=16, z_dim=LATENT_CHANNELS, dim_mult=[1, 2, 2], num_res_blocks=1, is_residual=True,
            temperal_downsample=[True, True], in_channels=12, out_channels=12, patch_size=2,
            scale_factor_temporal=4, scale_factor_spatial=8,
            latents_mean=[0.0] * LATENT_CHANNELS, latents_std=[1.0] * LATENT_CHANNELS,
        )  # fmt: skip

    def load_vae(self, folder: Path) -> AutoencoderKLWan:
        return AutoencoderKLWan.from_pretrained(folder, torch_dtype=torch.float32)

    def build_transformer(self) -> WanTransformer3DModel:
        model = WanTransformer3DModel(
            patch_size=(1, 2, 2), num_attention_heads=4, attention_head_dim=64, in_channels=LATENT_CHANNELS,
            out_channels=LATENT_CHANNELS, text_dim=WIDTH, freq_dim=128, ffn_dim=768, num_layers=4,
            rope_max_seq_len=64,
        )  # fmt: skip
        torch.nn.init.zeros_(model.proj_out.weight)
        return model

    def embed(self, texts: list[str]) -> Text:
        ids, mask = tokens(build_tokenizer(), texts)
        with torch.no_grad():
            # The pipeline puts zeros beyond each text's end.
            return {"states": _encoder()(ids, mask).last_hidden_state * mask[..., None]}

    def predict(self, model: Any, noisy: Tensor, timestep: Tensor, text: Text, guidance: Tensor) -> Tensor:
        prediction: Tensor = model(noisy, timestep, text["states"], return_dict=False)[0]
        return prediction

    def noised(self, latents: Tensor, noise: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        return flow.noised(latents, noise, generator)

    def pipeline(self, vae: Any, transformer: Any) -> WanPipeline:
        return WanPipeline(tokenizer=build_tokenizer(), text_encoder=_encoder(), vae=vae, transformer=transformer,
                           scheduler=flow.scheduler())  # fmt: skip


@cache
def _encoder() -> UMT5EncoderModel:
    def build(size: int) -> UMT5EncoderModel:
        return UMT5EncoderModel(UMT5Config(
            vocab_size=size, d_model=WIDTH, d_kv=16, d_ff=128, num_layers=1, num_heads=4,
            pad_token_id=0, eos_token_id=1, decoder_start_token_id=0, dropout_rate=0.0,
        ))  # fmt: skip

    encoder: UMT5EncoderModel = frozen(build)
    return encoder

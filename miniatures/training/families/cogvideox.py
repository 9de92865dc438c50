"""CogVideoX in miniature: text before the video in one sequence, guidance in one batched pass, v-prediction."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
)
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from diffusers.pipelines.cogvideo.pipeline_cogvideox import get_resize_crop_region_for_grid
from text import WIDTH, build_tokenizer, frozen, tokens
from torch import Tensor
from transformers import T5Config, T5EncoderModel

from vidaccel_miniatures.captions import MAX_TOKENS

from .base import FRAMES, LARGE, LATENT_CHANNELS, Family, Text

PATCH = 2


class CogVideoX(Family):
    """See the module."""

    name = "cogvideox"
    text = {"text_before": MAX_TOKENS}

    def build_vae(self) -> AutoencoderKLCogVideoX:
        return AutoencoderKLCogVideoX(
            latent_channels=LATENT_CHANNELS, block_out_channels=(16, 24, 48, 64), layers_per_block=1,
            norm_num_groups=8, sample_height=LARGE[0], sample_width=LARGE[1], scaling_factor=1.0,
        )  # fmt: skip

    def load_vae(self, folder: Path) -> AutoencoderKLCogVideoX:
        return AutoencoderKLCogVideoX.from_pretrained(folder, torch_dtype=torch.float32)

    def build_transformer(self) -> CogVideoXTransformer3DModel:
        model = CogVideoXTransformer3DModel(
            num_attention_heads=4, attention_head_dim=64, in_channels=LATENT_CHANNELS, out_channels=LATENT_CHANNELS,
            time_embed_dim=WIDTH, text_embed_dim=WIDTH, num_layers=4, patch_size=PATCH, sample_height=LARGE[0] // 8,
            sample_width=LARGE[1] // 8, sample_frames=FRAMES, max_text_seq_length=MAX_TOKENS,
            use_rotary_positional_embeddings=True,
        )  # fmt: skip
        for parameter in model.proj_out.parameters():
            torch.nn.init.zeros_(parameter)
        return model

    def embed(self, texts: list[str]) -> Text:
        ids, _ = tokens(build_tokenizer(), texts)
        with torch.no_grad():
            return {"states": _encoder()(ids)[0]}  # the pipeline masks no padding

    def predict(self, model: Any, noisy: Tensor, timestep: Tensor, text: Text, guidance: Tensor) -> Tensor:
        rotary = tuple(table.to(noisy.device) for table in _rotary(*noisy.shape[2:]))
        # This family keeps frames before channels.
        prediction: Tensor = model(noisy.transpose(1, 2), text["states"], timestep, image_rotary_emb=rotary,
                                   return_dict=False)[0]  # fmt: skip
        return prediction.transpose(1, 2)

    def noised(self, latents: Tensor, noise: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """DDIM's noisy latents at uniform timesteps, and the velocity of arXiv 2202.00512."""
        kept = _scheduler().alphas_cumprod.float()
        timestep = torch.randint(0, len(kept), (len(latents),), generator=generator)
        share = kept[timestep].to(latents.device).view(-1, 1, 1, 1, 1)
        signal, spread = share.sqrt(), (1 - share).sqrt()
        return signal * latents + spread * noise, timestep.to(latents.device), signal * noise - spread * latents

    def pipeline(self, vae: Any, transformer: Any) -> CogVideoXPipeline:
        return CogVideoXPipeline(tokenizer=build_tokenizer(), text_encoder=_encoder(), vae=vae,
                                 transformer=transformer, scheduler=_scheduler())  # fmt: skip


@cache
def _scheduler() -> CogVideoXDDIMScheduler:
    return CogVideoXDDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type="v_prediction",
        rescale_betas_zero_snr=True, timestep_spacing="trailing", snr_shift_scale=3.0, clip_sample=False,
    )  # fmt: skip


@cache
def _rotary(frames: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """The rotary table that the pipeline makes for latents of this size."""
    grid, base = (height // PATCH, width // PATCH), (LARGE[1] // 8 // PATCH, LARGE[0] // 8 // PATCH)
    table: tuple[Tensor, Tensor] = get_3d_rotary_pos_embed(
        embed_dim=64, crops_coords=get_resize_crop_region_for_grid(grid, *base), grid_size=grid, temporal_size=frames,
    )  # fmt: skip
    return table


@cache
def _encoder() -> T5EncoderModel:
    def build(size: int) -> T5EncoderModel:
        return T5EncoderModel(T5Config(
            vocab_size=size, d_model=WIDTH, d_kv=16, d_ff=128, num_layers=1, num_heads=4, pad_token_id=0,
            eos_token_id=1, decoder_start_token_id=0, dropout_rate=0.0,
        ))  # fmt: skip

    encoder: T5EncoderModel = frozen(build)
    return encoder

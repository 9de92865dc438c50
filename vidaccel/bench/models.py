"""Real video transformers with random weights, made on the device: their speed does not need trained ones.

Configurations are those of the published checkpoints, which diffusers' classes have as defaults; only what differs from
the 14B or HunyuanVideo default, or matters for speed, is written out.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vidaccel.bench.shapes import named
from vidaccel.layout import TokenLayout
from vidaccel.pipelines import families

Inputs = dict[str, Tensor]


@dataclass(frozen=True)
class Model:
    """A transformer at one resolution.

    Args:
        name: as on the command line.
        transformer: class in diffusers.
        config: its arguments.
        source: of the configuration.
        latents: ``(channels, frames, height, width)`` of a clip.
        inputs: makes the forward's other arguments: by latents, device and dtype.
        passes: transformer passes of one denoising step, for classifier-free guidance.
    """

    name: str
    transformer: str
    config: dict[str, Any]
    source: str
    latents: tuple[int, int, int, int]
    inputs: Callable[[dict[str, Any], torch.device, torch.dtype], Inputs]
    passes: int

    @property
    def layout(self) -> TokenLayout:
        """Video tokens of a pass; the patch is 1 x 2 x 2 in all of these."""
        _, frames, height, width = self.latents
        return TokenLayout(frames, height // 2, width // 2)

    def why_not(self) -> str | None:
        """Why it cannot be run with sparse attention here, or None."""
        import diffusers

        if not hasattr(diffusers, self.transformer):
            return f"diffusers {importlib.metadata.version('diffusers')} has no {self.transformer}"
        if not any(self.transformer in family.transformers for family in families().values()):
            return f"vidaccel has no sparse attention for {self.transformer} yet"
        return None

    def build(self, device: torch.device, dtype: torch.dtype) -> nn.Module:
        """The transformer with random weights, made on the device in `dtype`; nothing passes through the CPU."""
        import diffusers

        cls = getattr(diffusers, self.transformer)
        usual = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            with torch.device(device):
                model: nn.Module = cls(**self.config)
        finally:
            torch.set_default_dtype(usual)
        # As from_pretrained does it.
        wide = set(getattr(cls, "_keep_in_fp32_modules", None) or ())
        for name, parameter in model.named_parameters():
            if wide & set(name.split(".")):
                parameter.data = parameter.data.float()
        return model.eval().requires_grad_(False)

    def call(self, device: torch.device, dtype: torch.dtype, seed: int, frames: int | None = None) -> Inputs:
        """Arguments of one forward, random; `frames` latent frames instead of the model's own."""
        channels, own, height, width = self.latents
        generator = torch.Generator(device).manual_seed(seed)
        size = (1, channels, frames or own, height, width)
        latents = torch.randn(size, generator=generator, device=device, dtype=dtype)
        return {"hidden_states": latents, **self.inputs(self.config, device, dtype)}


def _wan_inputs(config: dict[str, Any], device: torch.device, dtype: torch.dtype) -> Inputs:
    text = torch.randn(1, 512, config["text_dim"], device=device, dtype=dtype)
    return {"timestep": torch.tensor([500], device=device), "encoder_hidden_states": text}


def _hunyuan_inputs(config: dict[str, Any], device: torch.device, dtype: torch.dtype) -> Inputs:
    """A prompt of 60 tokens, padded to 256."""
    return {
        "timestep": torch.tensor([500], device=device),
        "encoder_hidden_states": torch.randn(1, 256, config["text_embed_dim"], device=device, dtype=dtype),
        "encoder_attention_mask": (torch.arange(256, device=device) < 60)[None],
        "pooled_projections": torch.randn(1, config["pooled_projection_dim"], device=device, dtype=dtype),
        "guidance": torch.tensor([6000.0], device=device, dtype=dtype),
    }


WAN = {"patch_size": (1, 2, 2), "num_attention_heads": 40, "attention_head_dim": 128, "in_channels": 16,
       "out_channels": 16, "text_dim": 4096, "freq_dim": 256, "ffn_dim": 13824, "num_layers": 40}  # fmt: skip
HUNYUAN = {"in_channels": 16, "out_channels": 16, "num_attention_heads": 24, "attention_head_dim": 128,
           "num_layers": 20, "num_single_layers": 40, "num_refiner_layers": 2, "mlp_ratio": 4.0, "patch_size": 2,
           "patch_size_t": 1, "guidance_embeds": True, "text_embed_dim": 4096,
           "pooled_projection_dim": 768}  # fmt: skip

MODELS = (
    Model("wan-14b-720p", "WanTransformer3DModel", WAN, "Wan-AI/Wan2.1-T2V-14B-Diffusers, transformer/config.json",
          (16, 21, 90, 160), _wan_inputs, 2),
    Model("wan-1.3b-480p", "WanTransformer3DModel",
          {**WAN, "num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30},
          "Wan-AI/Wan2.1-T2V-1.3B-Diffusers, transformer/config.json", (16, 21, 60, 104), _wan_inputs, 2),
    Model("hunyuanvideo-720p", "HunyuanVideoTransformer3DModel", HUNYUAN,
          "hunyuanvideo-community/HunyuanVideo, transformer/config.json", (16, 33, 90, 160), _hunyuan_inputs, 1),
)  # fmt: skip
"""81, 81 and 129 frames; most important first."""

SMOKE = (
    Model("smoke-wan", "WanTransformer3DModel",
          {**WAN, "num_attention_heads": 2, "attention_head_dim": 64, "text_dim": 32, "freq_dim": 32, "ffn_dim": 64,
           "num_layers": 2}, "tiny, of the same class", (16, 6, 18, 22), _wan_inputs, 2),
    Model("smoke-hunyuanvideo", "HunyuanVideoTransformer3DModel",
          {**HUNYUAN, "num_attention_heads": 2, "attention_head_dim": 64, "num_layers": 1, "num_single_layers": 1,
           "num_refiner_layers": 1, "text_embed_dim": 32, "pooled_projection_dim": 16, "rope_axes_dim": (16, 24, 24)},
          "tiny, of the same class", (16, 6, 18, 22), _hunyuan_inputs, 1),
)  # fmt: skip


def chosen(names: list[str] | None, smoke: bool) -> tuple[Model, ...]:
    """The models of a run, in their own order.

    Raises:
        ValueError: an unknown name.
    """
    return named("model", {model.name: model for model in (SMOKE if smoke else MODELS)}, names)

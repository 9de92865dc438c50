"""CogVideoX 1.0 and 1.5: text, image and video to video; text tokens first, never masked, then video.

The processor computes what diffusers' ``CogVideoXAttnProcessor2_0`` and ``FusedCogVideoXAttnProcessor2_0`` (Apache-2.0)
compute, with the attention itself replaced. Both guidance branches are rows of one batch, so a step is one pass.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vidaccel.layout import TokenLayout
from vidaccel.pipelines.base import VIDEO_AND_TEXT, Call, Family
from vidaccel.pipelines.processor import Processor, SdpaProcessor, left_to_stock
from vidaccel.pipelines.projections import normalised
from vidaccel.pipelines.rotary import Rotary, rotate_after
from vidaccel.pipelines.split import cut, whole

FUSED = "FusedCogVideoXAttnProcessor2_0"


class CogVideoXProcessor(SdpaProcessor):
    """Joint self-attention of a CogVideoX block through the session; masked or training calls go to the stock one."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Rotary | None = None,
    ) -> tuple[Tensor, Tensor]:
        # Only attention_kwargs can bring a mask.
        if left_to_stock(hidden_states, attention_mask):
            stock: tuple[Tensor, Tensor] = self.stock(
                attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb
            )
            return stock
        text = encoder_hidden_states.shape[1]
        # The module stays marked as fused after unfuse_qkv_projections(), which only brings the old processors back.
        fused = type(self.inner).__name__ == FUSED
        query, key, value = _project(attn, torch.cat([encoder_hidden_states, hidden_states], dim=1), fused)
        if image_rotary_emb is not None:
            query = rotate_after(query, text, image_rotary_emb)
            key = rotate_after(key, text, image_rotary_emb)
        out = self.attend(query, key, value).flatten(2, 3)
        out = attn.to_out[1](attn.to_out[0](out))
        return out[:, text:], out[:, :text]


def _project(attn: Any, states: Tensor, fused: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key, value ``[batch, tokens, heads, head_dim]``, normalised; calls modules, for LoRA and offloading."""
    if fused:
        query, key, value = attn.to_qkv(states).chunk(3, dim=-1)
    else:
        query, key, value = attn.to_q(states), attn.to_k(states), attn.to_v(states)
    query, key, value = (each.unflatten(2, (attn.heads, -1)) for each in (query, key, value))
    query = normalised(attn.norm_q, query)
    key = normalised(attn.norm_k, key)
    return query, key, value


class CogVideoX(Family):
    """CogVideoX 1.0 and 1.5 with ``CogVideoXTransformer3DModel``."""

    name: ClassVar[str] = "cogvideox"
    transformers: ClassVar[tuple[str, ...]] = ("CogVideoXTransformer3DModel",)
    processor: ClassVar[type[Processor]] = CogVideoXProcessor
    stock_processors: ClassVar[tuple[str, ...]] = ("CogVideoXAttnProcessor2_0", FUSED)
    timestep_position: ClassVar[int] = 2
    branches: ClassVar[tuple[str, ...]] = ("cond_uncond",)
    streams: ClassVar[tuple[tuple[str, int], ...]] = VIDEO_AND_TEXT
    channel_axis: ClassVar[int] = 2
    batched_guidance: ClassVar[bool] = True

    def parallel_plan(self, transformer: nn.Module) -> dict[str, Any]:
        config: Any = transformer.config
        plan = {"transformer_blocks.0": {"hidden_states": cut(1, 3)}, "proj_out": whole(1, 3)}
        if config.use_rotary_positional_embeddings:
            plan[""] = {"image_rotary_emb": [cut(0, 2), cut(0, 2)]}
        return plan

    def layout(self, transformer: nn.Module, call: Call) -> TokenLayout:
        # Frames stand before channels, and 1.5 has patches of several frames.
        _, frames, _, height, width = call.get("hidden_states", 0).shape
        text = call.get("encoder_hidden_states", 1).shape[1]
        config: Any = transformer.config
        # ConsisID's config has no depth.
        size, depth = config.patch_size, getattr(config, "patch_size_t", None) or 1
        return TokenLayout(frames // depth, height // size, width // size, text_before=text)

    def time_embedding(self, transformer: nn.Module, timesteps: Tensor) -> Tensor:
        model: Any = transformer
        out: Tensor = model.time_embedding(model.time_proj(timesteps).to(model.dtype))
        return out

    def distance_unit(self, transformer: nn.Module) -> str:
        # 1.0 stretches its rotary grid over the frame size that it was trained at; 1.5 counts tokens.
        config: Any = transformer.config
        return "tokens" if config.patch_size_t else "frame"

    def conditioned(self, pipeline: Any, transformer: nn.Module) -> bool:
        config: Any = transformer.config
        return config.in_channels > config.out_channels or super().conditioned(pipeline, transformer)


FAMILY = CogVideoX()

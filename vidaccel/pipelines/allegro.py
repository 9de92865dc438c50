"""Allegro: text to video; video tokens alone in the self-attention, with positions looked up for each axis.

The processor computes what diffusers' ``AllegroAttnProcessor2_0`` (Apache-2.0) computes in a self-attention, with the
attention itself replaced. Both guidance branches are rows of one batch, so a step is one pass.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vidaccel.layout import TokenLayout
from vidaccel.pipelines.base import Call, Family
from vidaccel.pipelines.processor import Processor, SdpaProcessor, left_to_stock
from vidaccel.pipelines.projections import in_heads
from vidaccel.pipelines.rotary import Rotary

Axes = tuple[tuple[Rotary, Rotary, Rotary], tuple[Tensor, Tensor, Tensor]]
"""Of frame, row and column: cosine and sine ``[places, head_dim / 3]``, and each token's place, int ``[1, tokens]``."""


class AllegroProcessor(SdpaProcessor):
    """Self-attention of an Allegro block through the session; anything else goes to the stock processor."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        image_rotary_emb: Axes | None = None,
    ) -> Tensor:
        if left_to_stock(hidden_states, encoder_hidden_states, attention_mask):
            stock: Tensor = self.stock(
                attn, hidden_states, encoder_hidden_states, attention_mask, temb, image_rotary_emb
            )
            return stock
        query, key, value = in_heads(attn, hidden_states, attn.to_q, attn.to_k, attn.to_v)
        if image_rotary_emb is not None:
            query = _rotate(query, *image_rotary_emb)
            key = _rotate(key, *image_rotary_emb)
        out: Tensor = attn.to_out[1](attn.to_out[0](self.attend(query, key, value).flatten(2, 3)))
        return out


def _rotate(
    states: Tensor, tables: tuple[Rotary, Rotary, Rotary], places: tuple[Tensor, Tensor, Tensor]
) -> Tensor:
    """Rotary embedding, a third of each head for each axis; see `Axes`.

    Args:
        states: ``[batch, tokens, heads, head_dim]``.
    """
    parts = zip(states.chunk(3, dim=-1), tables, places, strict=True)
    return torch.cat([_turn(part, *(each[place][:, :, None] for each in table)) for part, table, place in parts], -1)


def _turn(states: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotary embedding of the first half of the last axis with its second half, in fp32."""
    first, second = states.chunk(2, dim=-1)
    turned = torch.cat([-second, first], dim=-1)
    return (states.float() * cosine + turned.float() * sine).to(states.dtype)


class Allegro(Family):
    """Allegro with ``AllegroTransformer3DModel``."""

    name: ClassVar[str] = "allegro"
    transformers: ClassVar[tuple[str, ...]] = ("AllegroTransformer3DModel",)
    processor: ClassVar[type[Processor]] = AllegroProcessor
    stock_processors: ClassVar[tuple[str, ...]] = ("AllegroAttnProcessor2_0",)
    timestep_position: ClassVar[int] = 2
    branches: ClassVar[tuple[str, ...]] = ("cond_uncond",)
    batched_guidance: ClassVar[bool] = True
    unsplit: ClassVar[str] = "its rotary embeddings come in a form that diffusers' hooks cannot split"

    def layout(self, transformer: nn.Module, call: Call) -> TokenLayout:
        # Patches lie in one frame each, whatever `patch_size_t` says.
        frames, height, width = call.get("hidden_states", 0).shape[-3:]
        config: Any = transformer.config
        return TokenLayout(frames, height // config.patch_size, width // config.patch_size)

    def time_embedding(self, transformer: nn.Module, timesteps: Tensor) -> Tensor:
        model: Any = transformer
        embedder = model.adaln_single.emb
        out: Tensor = embedder.timestep_embedder(embedder.time_proj(timesteps).to(model.dtype))
        return out

    def modulated(self, block: nn.Module, call: Call) -> Tensor:
        layer: Any = block
        video, embedded = call.get("hidden_states", 0), call.get("temb", 2)
        shift, scale = (layer.scale_shift_table[None] + embedded.unflatten(1, (6, -1)))[:, :2].split(1, dim=1)
        out: Tensor = layer.norm1(video) * (1 + scale) + shift
        return out


FAMILY = Allegro()

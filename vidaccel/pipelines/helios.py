"""Helios: video of any length in chunks; tokens of the clip so far first, in three resolutions, then the chunk's video.

The processor computes what diffusers' ``HeliosAttnProcessor`` (Apache-2.0) computes in a self-attention, with the
attention itself replaced. Tokens of the past are attended to and attend like any other; models may weigh them up. No
mask leaves them out. Each chunk, and in the pyramid pipeline each resolution of a chunk, sets its timesteps anew and
counts as a run of its own: so it starts with dense steps, and what methods and caches remember of the last one, which
had another past or another grid, is dropped.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vidaccel.layout import TokenLayout
from vidaccel.pipelines.base import Call, Family
from vidaccel.pipelines.processor import Processor, left_to_stock
from vidaccel.pipelines.projections import project
from vidaccel.pipelines.rotary import rotate_promoted

HISTORIES = (("short", 4, 7, (1, 1, 1)), ("mid", 5, 8, (2, 4, 4)), ("long", 6, 9, (4, 8, 8)))
"""Parts of the past: name, where their indices and their latents stand among the arguments, and what frames, rows and
columns of latents are filled up to multiples of. Patches are as many times those of the video as the first of these."""


class HeliosProcessor(Processor):
    """Self-attention of a Helios block through the session; anything else goes to the stock processor."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: Tensor | None = None,
        original_context_length: int | None = None,
    ) -> Tensor:
        if left_to_stock(hidden_states, encoder_hidden_states, attention_mask):
            stock: Tensor = self.stock(
                attn, hidden_states, encoder_hidden_states, attention_mask, rotary_emb, original_context_length
            )
            return stock
        query, key, value = project(attn, hidden_states)
        if rotary_emb is not None:
            # Cosines, then sines.
            rotary = rotary_emb[:, :, None].chunk(2, dim=-1)
            query = rotate_promoted(query, *rotary)
            key = rotate_promoted(key, *rotary)
        if attn.is_amplify_history:
            assert original_context_length is not None
            key = _amplified(attn, key, hidden_states.shape[1] - original_context_length)
        out = self.attend(query, key, value).flatten(2, 3).type_as(query)
        return attn.to_out[1](attn.to_out[0](out))  # type: ignore[no-any-return]


def _amplified(attn: Any, key: Tensor, past: int) -> Tensor:
    """Keys with those of the first `past` tokens scaled by what the layer learned, for all heads or each."""
    if past == 0:
        return key
    scale = 1.0 + torch.sigmoid(attn.history_key_scale) * (attn.max_scale - 1.0)
    scale = scale.view(1, 1, -1, 1) if attn.history_scale_mode == "per_head" else scale
    return torch.cat([key[:, :past] * scale, key[:, past:]], dim=1)


class Helios(Family):
    """Helios with ``HeliosTransformer3DModel``, chunk by chunk or in a pyramid of resolutions."""

    name: ClassVar[str] = "helios"
    transformers: ClassVar[tuple[str, ...]] = ("HeliosTransformer3DModel",)
    separate_guidance: ClassVar[bool] = True
    processor: ClassVar[type[Processor]] = HeliosProcessor
    stock_processors: ClassVar[tuple[str, ...]] = ("HeliosAttnProcessor",)
    stacks: ClassVar[tuple[str, ...]] = ("blocks",)
    unsplit: ClassVar[str] = "its blocks hold the past and the video as one stream, of which only the video is a grid"

    def layout(self, transformer: nn.Module, call: Call) -> TokenLayout:
        config: Any = transformer.config
        past = sum(_history_tokens(call, config.patch_size, *each) for each in HISTORIES)
        return TokenLayout.patched(call.get("hidden_states", 0).shape[-3:], config.patch_size, text_before=past)

    def time_embedding(self, transformer: nn.Module, timesteps: Tensor) -> Tensor:
        embedder: Any = transformer.condition_embedder
        projected = embedder.timesteps_proj(timesteps)
        out: Tensor = embedder.time_embedder(projected.to(next(embedder.time_embedder.parameters()).dtype))
        return out

    def modulated(self, block: nn.Module, call: Call) -> Tensor:
        layer: Any = block
        video = call.get("original_context_length", 4)
        states, embedded = call.get("hidden_states", 0)[:, -video:], call.get("temb", 2)[:, -video:]
        shift, scale = (layer.scale_shift_table[:, None] + embedded.float())[:, :, :2].unbind(2)
        out: Tensor = (layer.norm1(states.float()) * (1 + scale) + shift).type_as(states)
        return out

    def conditioned(self, pipeline: Any, transformer: nn.Module) -> bool:
        # Every chunk continues a clip.
        return True


def _history_tokens(
    call: Call, patch: tuple[int, int, int], name: str, at: int, latents_at: int, filled: tuple[int, int, int]
) -> int:
    """Tokens of one of `HISTORIES`: none where the call leaves out its indices or its latents."""
    indices = call.optional(f"indices_latents_history_{name}", at)
    latents = call.optional(f"latents_history_{name}", latents_at)
    if indices is None or latents is None:
        return 0
    sizes = zip(latents.shape[-3:], filled, patch, strict=True)
    return math.prod(-(-size // whole) * whole // (filled[0] * each) for size, whole, each in sizes)


FAMILY = Helios()

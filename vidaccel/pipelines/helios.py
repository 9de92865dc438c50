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
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import Tensor, nn

from vidaccel.layout import TokenLayout
from vidaccel.pipelines.base import Call, Family, Processor
from vidaccel.schedule import Schedule

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
        # The op has no gradient, and a mask or other keys are not ours to handle.
        training = torch.is_grad_enabled() and hidden_states.requires_grad
        if encoder_hidden_states is not None or attention_mask is not None or training:
            stock: Tensor = self.inner(
                attn, hidden_states, encoder_hidden_states, attention_mask, rotary_emb, original_context_length
            )
            return stock
        query, key, value = _project(attn, hidden_states)
        if rotary_emb is not None:
            query = _rotate(query, rotary_emb)
            key = _rotate(key, rotary_emb)
        if attn.is_amplify_history:
            assert original_context_length is not None
            key = _amplified(attn, key, hidden_states.shape[1] - original_context_length)
        out = self.attend(query, key, value).flatten(2, 3).type_as(query)
        return attn.to_out[1](attn.to_out[0](out))  # type: ignore[no-any-return]

    def dense(self, query: Tensor, key: Tensor, value: Tensor, key_lengths: Tensor | None = None) -> Tensor:
        out: Tensor = dispatch_attention_fn(query, key, value, backend=self._attention_backend)
        return out


def _project(attn: Any, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key, value ``[batch, tokens, heads, head_dim]``, normalised; calls modules, for LoRA and offloading."""
    if attn.fused_projections:
        query, key, value = attn.to_qkv(states).chunk(3, dim=-1)
    else:
        query, key, value = attn.to_q(states), attn.to_k(states), attn.to_v(states)
    query, key, value = (each.unflatten(2, (attn.heads, -1)) for each in (attn.norm_q(query), attn.norm_k(key), value))
    return query, key, value


def _rotate(states: Tensor, rotary: Tensor) -> Tensor:
    """Rotary embedding over interleaved pairs.

    Args:
        states: ``[batch, tokens, heads, head_dim]``.
        rotary: ``[batch, tokens, 2 * head_dim]``: cosines, then sines, each frequency twice in a row.
    """
    cosine, sine = rotary[:, :, None].chunk(2, dim=-1)
    cosine, sine = cosine[..., 0::2], sine[..., 1::2]
    even, odd = states.unflatten(-1, (-1, 2)).unbind(-1)
    out = torch.empty_like(states)
    out[..., 0::2] = even * cosine - odd * sine
    out[..., 1::2] = even * sine + odd * cosine
    return out


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
    processor: ClassVar[type[Processor]] = HeliosProcessor
    stacks: ClassVar[tuple[str, ...]] = ("blocks",)

    def sites(self, transformer: nn.Module) -> list[nn.Module]:
        blocks: Any = transformer.blocks
        return [block.attn1 for block in blocks]

    def stock(self, processor: Any) -> bool:
        return type(processor).__name__ == "HeliosAttnProcessor"

    def layout(self, transformer: nn.Module, call: Call) -> TokenLayout:
        config: Any = transformer.config
        patch, (frames, height, width) = config.patch_size, call.get("hidden_states", 0).shape[-3:]
        past = sum(_history_tokens(call, patch, *each) for each in HISTORIES)
        return TokenLayout(frames // patch[0], height // patch[1], width // patch[2], text_before=past)

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

    def schedule(self, pipeline: Any, transformer: nn.Module) -> Schedule:
        # Every chunk continues a clip, as a run from an image does; see Wan's.
        return Schedule(dense_first_steps=0.35)


def _history_tokens(
    call: Call, patch: tuple[int, int, int], name: str, at: int, latents_at: int, filled: tuple[int, int, int]
) -> int:
    """Tokens of one of `HISTORIES`: none where the call leaves out its indices or its latents."""
    indices = _given(call, f"indices_latents_history_{name}", at)
    latents = _given(call, f"latents_history_{name}", latents_at)
    if indices is None or latents is None:
        return 0
    sizes = zip(latents.shape[-3:], filled, patch, strict=True)
    return math.prod(-(-size // whole) * whole // (filled[0] * each) for size, whole, each in sizes)


def _given(call: Call, name: str, position: int) -> Any:
    """An argument that a call may leave out, else None."""
    return call.get(name, position) if name in call.kwargs or position < len(call.args) else None


FAMILY = Helios()

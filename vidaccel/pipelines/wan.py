"""Wan 2.1 and 2.2: text, image, first-last-frame and video to video, two experts, and per-token timesteps.

The processor computes what diffusers' ``WanAttnProcessor`` (Apache-2.0) computes, with the attention itself replaced.
Classes that were made from Wan have copies of that processor, and families of their own that share what is here.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import Tensor, nn

from vidaccel.layout import TokenLayout
from vidaccel.pipelines.base import Call, Family, Processor
from vidaccel.schedule import Schedule

CONDITIONED = Schedule(dense_first_steps=0.35)
"""Published image-to-video settings keep more steps dense: in Sparse VideoGen's scripts 0.35 of the run."""


class WanProcessor(Processor):
    """Self-attention of a Wan block through the session; anything else goes to the stock processor."""

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        # The op has no gradient, and a mask or other keys are not ours to handle.
        training = torch.is_grad_enabled() and hidden_states.requires_grad
        if encoder_hidden_states is not None or attention_mask is not None or training:
            out: Tensor = self.inner(attn, hidden_states, encoder_hidden_states, attention_mask, rotary_emb)
            return out
        query, key, value = project(attn, hidden_states)
        if rotary_emb is not None:
            query = _rotate(query, *rotary_emb)
            key = _rotate(key, *rotary_emb)
        out = self.attend(query, key, value).flatten(2, 3).type_as(query)
        return attn.to_out[1](attn.to_out[0](out))  # type: ignore[index,operator,no-any-return]

    def dense(self, query: Tensor, key: Tensor, value: Tensor, key_lengths: Tensor | None = None) -> Tensor:
        out: Tensor = dispatch_attention_fn(query, key, value, backend=self._attention_backend)
        return out


def project(attn: Any, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key, value ``[batch, tokens, heads, head_dim]``, normalised; calls modules, for LoRA and offloading."""
    if getattr(attn, "fused_projections", False):
        query, key, value = attn.to_qkv(hidden_states).chunk(3, dim=-1)
    else:
        query, key, value = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
    # One after the other, so that no more than one is there twice: 0.8 GB less of Wan 14B at 720p.
    query = attn.norm_q(query)
    key = attn.norm_k(key)
    query, key, value = (each.unflatten(2, (attn.heads, -1)) for each in (query, key, value))
    return query, key, value


def _rotate(states: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotary embedding over interleaved pairs; `cosine` and `sine` repeat each frequency twice."""
    even, odd = states.unflatten(-1, (-1, 2)).unbind(-1)
    cosine, sine = cosine[..., 0::2], sine[..., 1::2]
    out = torch.empty_like(states)
    out[..., 0::2] = even * cosine - odd * sine
    out[..., 1::2] = even * sine + odd * cosine
    return out.type_as(states)


class Wan(Family):
    """Wan 2.1 and 2.2 with ``WanTransformer3DModel``."""

    name: ClassVar[str] = "wan"
    transformers: ClassVar[tuple[str, ...]] = ("WanTransformer3DModel",)
    processor: ClassVar[type[Processor]] = WanProcessor
    stacks: ClassVar[tuple[str, ...]] = ("blocks",)

    def sites(self, transformer: nn.Module) -> list[nn.Module]:
        blocks: Any = transformer.blocks
        return [block.attn1 for block in blocks]

    def stock(self, processor: Any) -> bool:
        return type(processor).__name__ == "WanAttnProcessor"

    def layout(self, transformer: nn.Module, call: Call) -> TokenLayout:
        frames, height, width = call.get("hidden_states", 0).shape[-3:]
        config: Any = transformer.config
        patch = config.patch_size
        return TokenLayout(frames // patch[0], height // patch[1], width // patch[2])

    def time_embedding(self, transformer: nn.Module, timesteps: Tensor) -> Tensor:
        embedder: Any = transformer.condition_embedder
        projected = embedder.timesteps_proj(timesteps)
        out: Tensor = embedder.time_embedder(projected.to(next(embedder.time_embedder.parameters()).dtype))
        return out

    def schedule(self, pipeline: Any, transformer: nn.Module) -> Schedule:
        return CONDITIONED if self.conditioned(pipeline, transformer) else Schedule()

    def conditioned(self, pipeline: Any, transformer: nn.Module) -> bool:
        """Whether runs start from a picture or a clip that the model is shown beside the latents."""
        config: Any = transformer.config
        return config.in_channels > config.out_channels or "ImageToVideo" in type(pipeline).__name__


FAMILY = Wan()

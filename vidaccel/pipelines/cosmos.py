"""Cosmos 1, Predict 2 and 2.5, and Transfer 2.5: text, image and clip to video, with a timestep per frame or one.

The processor computes what diffusers' ``CosmosAttnProcessor2_0`` (Apache-2.0) computes, with the attention itself
replaced. It names no attention backend, so that only the one set for all models counts, and so it is here. Condition
frames come first and have a timestep of their own, which may be above the others' towards the end. What Transfer's
control network adds is an argument of the blocks, so that reusing them reuses what they did with it, too.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import Tensor, nn

from vidaccel.layout import TokenLayout
from vidaccel.pipelines.base import Call, Family
from vidaccel.pipelines.processor import Processor, left_to_stock
from vidaccel.pipelines.projections import in_heads
from vidaccel.pipelines.rotary import Rotary
from vidaccel.pipelines.split import cut, rotary, whole


class CosmosProcessor(Processor):
    """Self-attention of a Cosmos block through the session; anything else goes to the stock processor."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Rotary | None = None,
    ) -> Tensor:
        if left_to_stock(hidden_states, encoder_hidden_states, attention_mask):
            out: Tensor = self.stock(attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb)
            return out
        query, key, value = in_heads(attn, hidden_states, attn.to_q, attn.to_k, attn.to_v)
        query = attn.norm_q(query)
        key = attn.norm_k(key)
        if image_rotary_emb is not None:
            query = _rotate(query, *image_rotary_emb)
            key = _rotate(key, *image_rotary_emb)
        out = self.attend(query, key, value).flatten(2, 3).type_as(query)
        return attn.to_out[1](attn.to_out[0](out))  # type: ignore[no-any-return]

    def dense(self, query: Tensor, key: Tensor, value: Tensor, key_lengths: Tensor | None = None) -> Tensor:
        out: Tensor = dispatch_attention_fn(query, key, value)
        return out


def _rotate(states: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotary embedding in fp32 over pairs of a head's first and second half.

    Args:
        states: ``[batch, tokens, heads, head_dim]``.
        cosine, sine: ``[tokens, head_dim]``, the same in both halves.
    """
    first, second = states.float().chunk(2, dim=-1)
    cosine, sine = (each.to(states.device)[:, None].chunk(2, dim=-1)[0] for each in (cosine, sine))
    out = first * cosine - second * sine, second * cosine + first * sine
    return torch.cat(out, dim=-1).to(states.dtype)


class Cosmos(Family):
    """Cosmos with ``CosmosTransformer3DModel``."""

    name: ClassVar[str] = "cosmos"
    transformers: ClassVar[tuple[str, ...]] = ("CosmosTransformer3DModel",)
    separate_guidance: ClassVar[bool] = True
    early_guidance: ClassVar[tuple[str, ...]] = ("Cosmos2",)
    processor: ClassVar[type[Processor]] = CosmosProcessor
    conditioned_pipelines: ClassVar[tuple[str, ...]] = ("VideoToWorld", "Predict", "Transfer")
    stock_processors: ClassVar[tuple[str, ...]] = ("CosmosAttnProcessor2_0",)

    def parallel_plan(self, transformer: nn.Module) -> dict[str, Any]:
        # Timesteps may be those of frames, and then have an embedding for each token.
        embedded = {"embedded_timestep": cut(1, 3), "temb": cut(1, 3)}
        plan = {"rope": rotary(0, 2), "transformer_blocks.0": {"hidden_states": cut(1, 3)},
                "transformer_blocks.*": {**embedded, "controlnet_residual": cut(1, 3)}, "norm_out": embedded,
                "proj_out": whole(1, 3)}  # fmt: skip
        config: Any = transformer.config
        if config.extra_pos_embed_type:
            plan["learnable_pos_embed"] = {0: cut(1, 3, after=True)}
        return plan

    def layout(self, transformer: nn.Module, call: Call) -> TokenLayout:
        config: Any = transformer.config
        return TokenLayout.patched(call.get("hidden_states", 0).shape[-3:], config.patch_size)

    def timestep(self, call: Call) -> Tensor:
        # ``[batch, 1, frames, 1, 1]`` where frames differ: the last one is never a condition.
        step = super().timestep(call)
        return step[:, :, -1] if step.ndim == 5 else step

    def scheduled(self, scheduler: Any) -> Tensor | None:
        """A run's timesteps as the transformer gets them, in order; None without a scheduler.

        Cosmos 1 has those of its EDM scheduler. Predict 2 and 2.5 make them from its noise levels: 2, whose levels go
        far above 1, the share of noise at each; 2.5 the level, which in its flow is that share.
        """
        timesteps: Tensor | None = getattr(scheduler, "timesteps", None)
        if timesteps is None or "EDM" in type(scheduler).__name__:
            return timesteps
        sigmas: Tensor = scheduler.sigmas[: len(timesteps)]
        return sigmas / (sigmas + 1) if sigmas.max() > 1 else sigmas

    def time_embedding(self, transformer: nn.Module, timesteps: Tensor) -> Tensor:
        model: Any = transformer
        like = torch.empty(0, dtype=model.dtype, device=timesteps.device)
        out: Tensor = model.time_embed(like, timesteps)[1]
        return out

    def modulated(self, block: nn.Module, call: Call) -> Tensor:
        norm: Any = block.norm1
        states, places = call.get("hidden_states", 0), call.get("extra_pos_emb", 5)
        states = states if places is None else states + places
        out: Tensor = norm(states, call.get("embedded_timestep", 2), call.get("temb", 3))[0]
        return out


FAMILY = Cosmos()

"""Wan 2.1 and 2.2: text, image, first-last-frame and video to video, two experts, and per-token timesteps.

The processor computes what diffusers' ``WanAttnProcessor`` (Apache-2.0) computes, with the attention itself replaced.
Classes that were made from Wan have copies of that processor, and families of their own that share what is here.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from vidaccel.layout import TokenLayout
from vidaccel.pipelines.base import Call, Family
from vidaccel.pipelines.processor import Processor, left_to_stock
from vidaccel.pipelines.projections import project
from vidaccel.pipelines.rotary import rotate_promoted
from vidaccel.pipelines.split import shipped


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
        if left_to_stock(hidden_states, encoder_hidden_states, attention_mask):
            out: Tensor = self.stock(attn, hidden_states, encoder_hidden_states, attention_mask, rotary_emb)
            return out
        query, key, value = project(attn, hidden_states)
        if rotary_emb is not None:
            query = rotate_promoted(query, *rotary_emb)
            key = rotate_promoted(key, *rotary_emb)
        out = self.attend(query, key, value).flatten(2, 3).type_as(query)
        return attn.to_out[1](attn.to_out[0](out))  # type: ignore[index,operator,no-any-return]


class Wan(Family):
    """Wan 2.1 and 2.2 with ``WanTransformer3DModel``."""

    name: ClassVar[str] = "wan"
    transformers: ClassVar[tuple[str, ...]] = ("WanTransformer3DModel",)
    separate_guidance: ClassVar[bool] = True
    processor: ClassVar[type[Processor]] = WanProcessor
    stock_processors: ClassVar[tuple[str, ...]] = ("WanAttnProcessor",)
    stacks: ClassVar[tuple[str, ...]] = ("blocks",)
    stock_splits: ClassVar[bool] = True

    def parallel_plan(self, transformer: nn.Module) -> dict[str, Any]:
        return shipped(transformer)

    def layout(self, transformer: nn.Module, call: Call) -> TokenLayout:
        config: Any = transformer.config
        return TokenLayout.patched(call.get("hidden_states", 0).shape[-3:], config.patch_size)

    def time_embedding(self, transformer: nn.Module, timesteps: Tensor) -> Tensor:
        embedder: Any = transformer.condition_embedder
        projected = embedder.timesteps_proj(timesteps)
        out: Tensor = embedder.time_embedder(projected.to(next(embedder.time_embedder.parameters()).dtype))
        return out

    def conditioned(self, pipeline: Any, transformer: nn.Module) -> bool:
        # Where a model is shown a picture beside the latents, it has channels for it.
        config: Any = transformer.config
        return config.in_channels > config.out_channels or super().conditioned(pipeline, transformer)


FAMILY = Wan()

"""AnyFlow: few-step text and video to video, both guidance passes in one call; the bidirectional class alone.

The processor computes what diffusers' ``AnyFlowAttnProcessor`` (Apache-2.0) computes, with the attention itself
replaced. The class for causal generation masks pairs and keeps keys of earlier chunks: it is not supported.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vidaccel.layout import TokenLayout
from vidaccel.pipelines.base import Call, Family
from vidaccel.pipelines.processor import Processor, left_to_stock
from vidaccel.pipelines.projections import project


class AnyFlowProcessor(Processor):
    """Self-attention of an AnyFlow block through the session; anything else goes to the stock processor."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Any = None,
        rotary_emb: dict[str, Tensor] | None = None,
    ) -> Tensor:
        if left_to_stock(hidden_states, encoder_hidden_states, attention_mask):
            stock: Tensor = self.stock(attn, hidden_states, encoder_hidden_states, attention_mask, rotary_emb)
            return stock
        query, key, value = project(attn, hidden_states)
        if rotary_emb is not None:
            query = _rotate(query, rotary_emb["query"])
            key = _rotate(key, rotary_emb["key"])
        out = self.attend(query, key, value).flatten(2, 3).type_as(query)
        projected: Tensor = attn.to_out[1](attn.to_out[0](out))
        return projected


def _rotate(states: Tensor, turns: Tensor) -> Tensor:
    """Rotary embedding by complex numbers of unit length.

    Args:
        states: ``[batch, tokens, heads, head_dim]``, interleaved pairs.
        turns: ``[1, 1, tokens, head_dim / 2]``, complex; their precision is that of the product.
    """
    pairs = torch.view_as_complex(states.to(turns.real.dtype).unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * turns.transpose(1, 2)).flatten(-2).type_as(states)


class AnyFlow(Family):
    """AnyFlow with ``AnyFlowTransformer3DModel``."""

    name: ClassVar[str] = "anyflow"
    transformers: ClassVar[tuple[str, ...]] = ("AnyFlowTransformer3DModel",)
    like: ClassVar[str | None] = "wan"
    processor: ClassVar[type[Processor]] = AnyFlowProcessor
    stock_processors: ClassVar[tuple[str, ...]] = ("AnyFlowAttnProcessor",)
    stacks: ClassVar[tuple[str, ...]] = ("blocks",)
    channel_axis: ClassVar[int] = 2
    batched_guidance: ClassVar[bool] = True
    unsplit: ClassVar[str] = "its rotary embeddings come in a form that diffusers' hooks cannot split"

    def layout(self, transformer: nn.Module, call: Call) -> TokenLayout:
        # Frames stand before channels.
        _, frames, _, height, width = call.get("hidden_states", 0).shape
        config: Any = transformer.config
        return TokenLayout.patched((frames, height, width), config.patch_size)


FAMILY = AnyFlow()

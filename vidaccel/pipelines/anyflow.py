"""AnyFlow: few-step text and video to video, both guidance passes in one call; the bidirectional class alone.

The processor computes what diffusers' ``AnyFlowAttnProcessor`` (Apache-2.0) computes, with the attention itself
replaced. The class for causal generation masks pairs and keeps keys of earlier chunks: it is not supported.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import Tensor, nn

from vidaccel.layout import TokenLayout
from vidaccel.pipelines.base import Call, Family, Processor
from vidaccel.pipelines.wan import project


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
        # The op has no gradient, and a mask or other keys are not ours to handle.
        training = torch.is_grad_enabled() and hidden_states.requires_grad
        if encoder_hidden_states is not None or attention_mask is not None or training:
            stock: Tensor = self.inner(attn, hidden_states, encoder_hidden_states, attention_mask, rotary_emb)
            return stock
        query, key, value = project(attn, hidden_states)
        if rotary_emb is not None:
            query = _rotate(query, rotary_emb["query"])
            key = _rotate(key, rotary_emb["key"])
        out = self.attend(query, key, value).flatten(2, 3).type_as(query)
        projected: Tensor = attn.to_out[1](attn.to_out[0](out))
        return projected

    def dense(self, query: Tensor, key: Tensor, value: Tensor, key_lengths: Tensor | None = None) -> Tensor:
        out: Tensor = dispatch_attention_fn(query, key, value, backend=self._attention_backend)
        return out


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
    stacks: ClassVar[tuple[str, ...]] = ("blocks",)
    channel_axis: ClassVar[int] = 2
    batched_guidance: ClassVar[bool] = True

    def sites(self, transformer: nn.Module) -> list[nn.Module]:
        blocks: Any = transformer.blocks
        return [block.attn1 for block in blocks]

    def stock(self, processor: Any) -> bool:
        return type(processor).__name__ == "AnyFlowAttnProcessor"

    def layout(self, transformer: nn.Module, call: Call) -> TokenLayout:
        states: Tensor = call.get("hidden_states", 0)
        config: Any = transformer.config
        patch = config.patch_size
        return TokenLayout(states.shape[1] // patch[0], states.shape[3] // patch[1], states.shape[4] // patch[2])


FAMILY = AnyFlow()

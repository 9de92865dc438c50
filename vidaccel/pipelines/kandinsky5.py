"""Kandinsky 5: text and image to video, channels last, with a stack of text blocks before the video's.

The processor computes what diffusers' ``Kandinsky5AttnProcessor`` (Apache-2.0) computes, with the attention itself
replaced, down to rotated queries and keys that are rounded to bfloat16 in every type. The model's own sparse attention,
NABLA, is refused: it orders tokens by squares of 8 by 8, and its blocks would be chosen twice.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vidaccel.layout import TokenLayout
from vidaccel.pipelines.base import Call, Family
from vidaccel.pipelines.processor import Processor, left_to_stock


class Kandinsky5Processor(Processor):
    """Self-attention of a video block through the session; anything else goes to the stock processor."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        rotary_emb: Tensor | None = None,
        sparse_params: dict[str, Any] | None = None,
    ) -> Tensor:
        # `sparse_params` are the model's own sparse attention.
        if left_to_stock(hidden_states, encoder_hidden_states, sparse_params):
            out: Tensor = self.stock(attn, hidden_states, encoder_hidden_states, rotary_emb, sparse_params)
            return out
        query, key, value = (
            layer(hidden_states).unflatten(-1, (attn.num_heads, -1))
            for layer in (attn.to_query, attn.to_key, attn.to_value)
        )
        query = attn.query_norm(query.float()).type_as(query)
        key = attn.key_norm(key.float()).type_as(key)
        if rotary_emb is not None:
            query = _rotate(query, rotary_emb)
            key = _rotate(key, rotary_emb)
        return attn.out_layer(self.attend(query, key, value).flatten(-2, -1))  # type: ignore[no-any-return]


def _rotate(states: Tensor, rotations: Tensor) -> Tensor:
    """Rotary embedding over interleaved pairs in fp32, rounded to bfloat16 as the model is in training.

    Args:
        states: ``[batch, tokens, heads, head_dim]``.
        rotations: ``[batch, tokens, 1, head_dim / 2, 2, 2]``, a matrix for each pair.
    """
    even, odd = states.float().unflatten(-1, (-1, 2)).unbind(-1)
    pairs = [even * row[..., 0] + odd * row[..., 1] for row in rotations.unbind(-2)]
    return torch.stack(pairs, dim=-1).flatten(-2).to(torch.bfloat16).type_as(states)


class Kandinsky5(Family):
    """Kandinsky 5 with ``Kandinsky5Transformer3DModel``."""

    name: ClassVar[str] = "kandinsky5"
    transformers: ClassVar[tuple[str, ...]] = ("Kandinsky5Transformer3DModel",)
    separate_guidance: ClassVar[bool] = True
    processor: ClassVar[type[Processor]] = Kandinsky5Processor
    conditioned_pipelines: ClassVar[tuple[str, ...]] = ("I2V",)
    stock_processors: ClassVar[tuple[str, ...]] = ("Kandinsky5AttnProcessor",)
    timestep_position: ClassVar[int] = 2
    attention: ClassVar[str] = "self_attention"
    stacks: ClassVar[tuple[str, ...]] = ("visual_transformer_blocks",)
    streams: ClassVar[tuple[tuple[str, int], ...]] = (("visual_embed", 0),)
    unsplit: ClassVar[str] = "its blocks hold the video as frames, rows and columns, which are put in order inside them"

    def heads(self, transformer: nn.Module) -> tuple[int, int]:
        config: Any = transformer.config
        head_dim = sum(config.axes_dims)
        return config.model_dim // head_dim, head_dim

    def output_projection(self, transformer: nn.Module, index: int) -> Tensor | None:
        site: Any = self.sites(transformer)[index]
        return self._plain_weight(transformer, site.out_layer)

    def layout(self, transformer: nn.Module, call: Call) -> TokenLayout:
        self._check_nabla(transformer, call)
        config: Any = transformer.config
        return TokenLayout.patched(call.get("hidden_states", 0).shape[1:4], config.patch_size)

    def _check_nabla(self, transformer: nn.Module, call: Call) -> None:
        own = call.optional("sparse_params", 7)
        site: Any = self.sites(transformer)[0]
        if own is not None and isinstance(site.processor, Kandinsky5Processor):
            raise ValueError(
                "Kandinsky 5 was called with sparse_params, its own sparse attention: switch that off by "
                "pipe.transformer.register_to_config(attention_type='regular'), or disable vidaccel's"
            )

    def latents(self, transformer: nn.Module, call: Call) -> Tensor:
        # Channels last; those of an image to start from, and its mask, come after.
        states: Tensor = call.get("hidden_states", 0)
        config: Any = transformer.config
        return states[..., : config.out_visual_dim]

    def modulated(self, block: nn.Module, call: Call) -> Tensor:
        part: Any = block
        states, embedded = call.get("visual_embed", 0), call.get("time_embed", 2)
        shift, scale = part.visual_modulation(embedded)[:, None].float().chunk(9, dim=-1)[:2]
        out: Tensor = part.self_attention_norm(states.float()) * (scale + 1.0) + shift
        return out.type_as(states)


FAMILY = Kandinsky5()

"""Mochi 1: text to video; video tokens first, then padded text, in one joint self-attention with a rotation per head.

The processor computes what diffusers' ``MochiAttnProcessor2_0`` (Apache-2.0) computes, with the attention itself
replaced. Both guidance branches are rows of one batch, whose prompts differ in length: diffusers attends row by row to
the video and the row's valid text alone, moves the outputs of valid text to the front and leaves zeros behind them.
Here valid text moves to the front before the attention, and what follows it is padding at the end of the sequence.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from vidaccel.layout import TokenLayout
from vidaccel.pipelines.base import VIDEO_AND_TEXT, Call, Family
from vidaccel.pipelines.processor import Processor, left_to_stock
from vidaccel.pipelines.projections import in_heads
from vidaccel.pipelines.rotary import Rotary
from vidaccel.pipelines.split import cut, rotary, whole
from vidaccel.schedule import Schedule


class MochiProcessor(Processor):
    """Joint self-attention of a Mochi block through the session; calls with gradients go to the stock processor."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor,
        image_rotary_emb: Rotary | None = None,
    ) -> tuple[Tensor, Tensor]:
        if left_to_stock(hidden_states):
            stock: tuple[Tensor, Tensor] = self.stock(
                attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb
            )
            return stock
        video, valid = hidden_states.shape[1], attention_mask != 0
        order = torch.argsort(valid.logical_not().to(torch.uint8), dim=1, stable=True)[:, :, None, None]
        query, key, value = (
            torch.cat([states, text.take_along_dim(order, dim=1)], dim=1)
            for states, text in zip(
                _project_video(attn, hidden_states, image_rotary_emb),
                _project_text(attn, encoder_hidden_states),
                strict=True,
            )
        )
        words = valid.sum(dim=1, dtype=torch.int32)
        lengths = words + video
        out = self.attend(query, key, value, words + self.whole(video)).flatten(2, 3)
        # Text and video in one tensor, as in diffusers: copied apart they would be rounded otherwise below.
        padding = torch.arange(out.shape[1], device=out.device) >= lengths[:, None]
        out = out.masked_fill(padding[:, :, None], 0)
        text = attn.to_add_out(out[:, video:]) if hasattr(attn, "to_add_out") else out[:, video:]
        return attn.to_out[1](attn.to_out[0](out[:, :video])), text

    def dense(self, query: Tensor, key: Tensor, value: Tensor, key_lengths: Tensor | None = None) -> Tensor:
        if key_lengths is None:
            key_lengths = torch.full((len(key),), key.shape[1], dtype=torch.int32, device=key.device)
        out: Tensor = _by_rows(query, key, value, key_lengths)
        return out


@torch.library.custom_op("vidaccel::by_rows", mutates_args=())
def _by_rows(query: Tensor, key: Tensor, value: Tensor, lengths: Tensor) -> Tensor:
    """Attention of each row's first `lengths` tokens among themselves, zeros elsewhere; an op, for one compiled graph.

    Args:
        query, key, value: ``[batch, tokens, heads, head_dim]``.
        lengths: int ``[batch]``.
    """
    out = torch.zeros(query.shape, dtype=query.dtype, device=query.device)
    for row, length in enumerate(lengths.tolist()):
        mine, keys, values = (each[row : row + 1, :length].transpose(1, 2) for each in (query, key, value))
        out[row, :length] = functional.scaled_dot_product_attention(mine, keys, values)[0].transpose(0, 1)
    return out


@_by_rows.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, lengths: Tensor) -> Tensor:
    return query.new_empty(query.shape)


def _project_video(attn: Any, states: Tensor, rotary: Rotary | None) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key, value of the video, ``[batch, tokens, heads, head_dim]``; calls modules, for LoRA and offloading."""
    query, key, value = in_heads(attn, states, attn.to_q, attn.to_k, attn.to_v)
    query = attn.norm_q(query)
    key = attn.norm_k(key)
    if rotary is not None:
        query = _rotate(query, *rotary)
        key = _rotate(key, *rotary)
    return query, key, value


def _project_text(attn: Any, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same of the text, which is not rotated."""
    query, key, value = in_heads(attn, states, attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
    return attn.norm_added_q(query), attn.norm_added_k(key), value


def _rotate(states: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotary embedding over interleaved pairs in fp32.

    Args:
        states: ``[batch, tokens, heads, head_dim]``.
        cosine, sine: ``[tokens, heads, head_dim / 2]``: heads learned frequencies of their own.
    """
    even, odd = states[..., 0::2].float(), states[..., 1::2].float()
    out = torch.empty_like(states)
    out[..., 0::2] = even * cosine - odd * sine
    out[..., 1::2] = even * sine + odd * cosine
    return out


class Mochi(Family):
    """Mochi 1 with ``MochiTransformer3DModel``."""

    name: ClassVar[str] = "mochi"
    transformers: ClassVar[tuple[str, ...]] = ("MochiTransformer3DModel",)
    processor: ClassVar[type[Processor]] = MochiProcessor
    stock_processors: ClassVar[tuple[str, ...]] = ("MochiAttnProcessor2_0",)
    timestep_position: ClassVar[int] = 2
    # Zero is all noise here, so that timesteps rise over a run.
    timesteps_rise: ClassVar[bool] = True
    branches: ClassVar[tuple[str, ...]] = ("cond_uncond",)
    streams: ClassVar[tuple[tuple[str, int], ...]] = VIDEO_AND_TEXT
    batched_guidance: ClassVar[bool] = True

    def parallel_plan(self, transformer: nn.Module) -> dict[str, Any]:
        return {"rope": rotary(0, 3), "transformer_blocks.0": {"hidden_states": cut(1, 3)}, "proj_out": whole(1, 3)}

    def layout(self, transformer: nn.Module, call: Call) -> TokenLayout:
        frames, height, width = call.get("hidden_states", 0).shape[-3:]
        text = call.get("encoder_hidden_states", 1).shape[1]
        config: Any = transformer.config
        return TokenLayout(frames, height // config.patch_size, width // config.patch_size, text_after=text)

    def modulated(self, block: nn.Module, call: Call) -> Tensor:
        norm: Any = block.norm1
        out: Tensor = norm(call.get("hidden_states", 0), call.get("temb", 2))[0]
        return out

    def distance_unit(self, transformer: nn.Module) -> str:
        # Rows and columns are scaled to a frame of one area.
        return "frame"

    def schedule(self, pipeline: Any, transformer: nn.Module) -> Schedule:
        # The first half of Mochi's steps crosses 2.5 % of the noise. After 0.6 of them 93 % is left, as in Wan's runs
        # after a quarter; nothing is published for this model.
        return Schedule(dense_first_steps=0.6)


FAMILY = Mochi()

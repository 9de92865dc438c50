"""EasyAnimate 5.1: text, inpainting and control to video; text tokens first, never masked, then video.

The processor computes what diffusers' ``EasyAnimateAttnProcessor2_0`` (Apache-2.0) computes, with the attention itself
replaced. Both guidance branches are rows of one batch, so a step is one pass. Latents to inpaint or to control by are
further channels of the video's tokens.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vidaccel.layout import TokenLayout
from vidaccel.pipelines.base import VIDEO_AND_TEXT, Call, Family
from vidaccel.pipelines.processor import Processor, SdpaProcessor, left_to_stock
from vidaccel.pipelines.projections import in_heads, normalised
from vidaccel.pipelines.rotary import Rotary, rotate_after
from vidaccel.pipelines.split import cut, rotary, whole


class EasyAnimateProcessor(SdpaProcessor):
    """Joint self-attention of an EasyAnimate block through the session; anything else goes to the stock processor."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Rotary | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        if encoder_hidden_states is None or left_to_stock(hidden_states, attention_mask):
            stock: tuple[Tensor, Tensor | None] = self.stock(
                attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb
            )
            return stock
        tokens = encoder_hidden_states.shape[1]
        project = _project_single if attn.add_q_proj is None else _project_dual
        query, key, value = project(attn, encoder_hidden_states, hidden_states)
        if image_rotary_emb is not None:
            query = rotate_after(query, tokens, image_rotary_emb)
            key = rotate_after(key, tokens, image_rotary_emb)
        out = self.attend(query, key, value).flatten(2, 3)
        text, video = out[:, :tokens], attn.to_out[1](attn.to_out[0](out[:, tokens:]))
        # Blocks with one set of weights leave the text as it comes out.
        return video, attn.to_add_out(text) if getattr(attn, "to_add_out", None) is not None else text


def _project_dual(attn: Any, text: Tensor, video: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key, value ``[batch, text + video tokens, heads, head_dim]`` of streams with weights of their own."""
    words = in_heads(attn, text, attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
    query, key, value = in_heads(attn, video, attn.to_q, attn.to_k, attn.to_v)
    text_query, text_key = normalised(attn.norm_added_q, words[0]), normalised(attn.norm_added_k, words[1])
    query = normalised(attn.norm_q, query)
    key = normalised(attn.norm_k, key)
    return torch.cat([text_query, query], 1), torch.cat([text_key, key], 1), torch.cat([words[2], value], 1)


def _project_single(attn: Any, text: Tensor, video: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same where one set of weights serves the concatenated streams."""
    query, key, value = in_heads(attn, torch.cat([text, video], dim=1), attn.to_q, attn.to_k, attn.to_v)
    return normalised(attn.norm_q, query), normalised(attn.norm_k, key), value


class EasyAnimate(Family):
    """EasyAnimate with ``EasyAnimateTransformer3DModel``."""

    name: ClassVar[str] = "easyanimate"
    transformers: ClassVar[tuple[str, ...]] = ("EasyAnimateTransformer3DModel",)
    processor: ClassVar[type[Processor]] = EasyAnimateProcessor
    stock_processors: ClassVar[tuple[str, ...]] = ("EasyAnimateAttnProcessor2_0",)
    branches: ClassVar[tuple[str, ...]] = ("cond_uncond",)
    streams: ClassVar[tuple[tuple[str, int], ...]] = VIDEO_AND_TEXT
    batched_guidance: ClassVar[bool] = True

    def parallel_plan(self, transformer: nn.Module) -> dict[str, Any]:
        return {"rope_embedding": rotary(0, 2), "transformer_blocks.0": {"hidden_states": cut(1, 3)},
                "proj_out": whole(1, 3)}  # fmt: skip

    def layout(self, transformer: nn.Module, call: Call) -> TokenLayout:
        frames, height, width = call.get("hidden_states", 0).shape[-3:]
        text = call.get("encoder_hidden_states", 3).shape[1]
        second = call.optional("encoder_hidden_states_t5", 4)
        text += 0 if second is None else second.shape[1]
        size = transformer.config.patch_size  # type: ignore[union-attr]
        return TokenLayout(frames, height // size, width // size, text_before=text)

    def time_embedding(self, transformer: nn.Module, timesteps: Tensor) -> Tensor:
        model: Any = transformer
        out: Tensor = model.time_embedding(model.time_proj(timesteps).to(model.dtype))
        return out

    def modulated(self, block: nn.Module, call: Call) -> Tensor:
        norm: Any = block.norm1
        video, text = call.get("hidden_states", 0), call.get("encoder_hidden_states", 1)
        out: Tensor = norm(video, text, call.get("temb", 2))[0]
        return out

    def distance_unit(self, transformer: nn.Module) -> str:
        # The rotary grid is stretched over the frame size that the model was first trained at.
        return "frame"

    def conditioned(self, pipeline: Any, transformer: nn.Module) -> bool:
        # To inpaint and to control by.
        config: Any = transformer.config
        return bool(config.in_channels > config.out_channels)


FAMILY = EasyAnimate()

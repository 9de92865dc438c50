"""EasyAnimate 5.1: text, inpainting and control to video; text tokens first, never masked, then video.

The processor computes what diffusers' ``EasyAnimateAttnProcessor2_0`` (Apache-2.0) computes, with the attention itself
replaced. Both guidance branches are rows of one batch, so a step is one pass. Latents to inpaint or to control by are
further channels of the video's tokens.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from vidaccel.layout import TokenLayout
from vidaccel.pipelines.base import Call, Family, Processor
from vidaccel.pipelines.rotary import Rotary, rotate
from vidaccel.schedule import Schedule


class EasyAnimateProcessor(Processor):
    """Joint self-attention of an EasyAnimate block through the session; anything else goes to the stock processor."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Rotary | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        # The op has no gradient, and the blocks give no mask.
        training = torch.is_grad_enabled() and hidden_states.requires_grad
        if encoder_hidden_states is None or attention_mask is not None or training:
            stock: tuple[Tensor, Tensor | None] = self.inner(
                attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb
            )
            return stock
        tokens = encoder_hidden_states.shape[1]
        project = _project_single if attn.add_q_proj is None else _project_dual
        query, key, value = project(attn, encoder_hidden_states, hidden_states)
        if image_rotary_emb is not None:
            query = _rotated(query, tokens, image_rotary_emb)
            key = _rotated(key, tokens, image_rotary_emb)
        out = self.attend(query, key, value).flatten(2, 3)
        text, video = out[:, :tokens], attn.to_out[1](attn.to_out[0](out[:, tokens:]))
        # Blocks with one set of weights leave the text as it comes out.
        return video, attn.to_add_out(text) if getattr(attn, "to_add_out", None) is not None else text

    def dense(self, query: Tensor, key: Tensor, value: Tensor, key_lengths: Tensor | None = None) -> Tensor:
        query, key, value = (each.transpose(1, 2) for each in (query, key, value))
        return functional.scaled_dot_product_attention(query, key, value).transpose(1, 2)


def _project_dual(attn: Any, text: Tensor, video: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key, value ``[batch, text + video tokens, heads, head_dim]`` of streams with weights of their own."""
    words = _project(attn, text, attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
    query, key, value = _project(attn, video, attn.to_q, attn.to_k, attn.to_v)
    text_query, text_key = _normalised(attn.norm_added_q, words[0]), _normalised(attn.norm_added_k, words[1])
    query = _normalised(attn.norm_q, query)
    key = _normalised(attn.norm_k, key)
    return torch.cat([text_query, query], 1), torch.cat([text_key, key], 1), torch.cat([words[2], value], 1)


def _project_single(attn: Any, text: Tensor, video: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same where one set of weights serves the concatenated streams."""
    query, key, value = _project(attn, torch.cat([text, video], dim=1), attn.to_q, attn.to_k, attn.to_v)
    return _normalised(attn.norm_q, query), _normalised(attn.norm_k, key), value


def _project(attn: Any, states: Tensor, *layers: Any) -> tuple[Tensor, ...]:
    """What three layers make of one stream, split into heads; calls modules, for LoRA and offloading."""
    return tuple(layer(states).unflatten(2, (attn.heads, -1)) for layer in layers)


def _normalised(norm: Any, states: Tensor) -> Tensor:
    out: Tensor = states if norm is None else norm(states)
    return out


def _rotated(states: Tensor, text: int, rotary: Rotary) -> Tensor:
    """The first `text` tokens as they are, then the video tokens, rotated."""
    return torch.cat([states[:, :text], rotate(states[:, text:], *rotary)], dim=1)


class EasyAnimate(Family):
    """EasyAnimate with ``EasyAnimateTransformer3DModel``."""

    name: ClassVar[str] = "easyanimate"
    transformers: ClassVar[tuple[str, ...]] = ("EasyAnimateTransformer3DModel",)
    processor: ClassVar[type[Processor]] = EasyAnimateProcessor
    branches: ClassVar[tuple[str, ...]] = ("cond_uncond",)
    stacks: ClassVar[tuple[str, ...]] = ("transformer_blocks",)
    streams: ClassVar[tuple[tuple[str, int], ...]] = (("hidden_states", 0), ("encoder_hidden_states", 1))
    batched_guidance: ClassVar[bool] = True

    def sites(self, transformer: nn.Module) -> list[nn.Module]:
        blocks: Any = transformer.transformer_blocks
        return [block.attn1 for block in blocks]

    def stock(self, processor: Any) -> bool:
        return type(processor).__name__ == "EasyAnimateAttnProcessor2_0"

    def layout(self, transformer: nn.Module, call: Call) -> TokenLayout:
        frames, height, width = call.get("hidden_states", 0).shape[-3:]
        text = call.get("encoder_hidden_states", 3).shape[1]
        second = _second_text(call)
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

    def schedule(self, pipeline: Any, transformer: nn.Module) -> Schedule:
        # Nothing is published for inpainting and control; as in Wan from an image, they keep more steps dense.
        config: Any = transformer.config
        return Schedule(dense_first_steps=0.35) if config.in_channels > config.out_channels else Schedule()


def _second_text(call: Call) -> Tensor | None:
    """Embeddings of a second text encoder, which the call may leave out; their tokens follow the first one's."""
    name, position = "encoder_hidden_states_t5", 4
    given = name in call.kwargs or position < len(call.args)
    found: Tensor | None = call.get(name, position) if given else None
    return found


FAMILY = EasyAnimate()

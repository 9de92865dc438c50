"""HunyuanVideo: text and image to video; video tokens first, then padded text, in one joint self-attention.

The processor computes what diffusers' ``HunyuanVideoAttnProcessor2_0`` (Apache-2.0) computes, with the attention itself
replaced. The sequence ends in padding: text is padded to one length, and the model's mask hides the keys past each
prompt's end. Queries there do get an output, which attends to the valid keys as in diffusers; no later layer attends
to it and the model drops it, so that it cannot reach the video.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import Tensor, nn

from vidaccel.layout import TokenLayout
from vidaccel.pipelines.base import VIDEO_AND_TEXT, Call, Family
from vidaccel.pipelines.processor import Processor, left_to_stock
from vidaccel.pipelines.projections import in_heads, normalised
from vidaccel.pipelines.rotary import Rotary, rotate
from vidaccel.pipelines.split import cut, rotary, whole
from vidaccel.schedule import Schedule


class HunyuanVideoProcessor(Processor):
    """Joint self-attention of a dual-stream or single-stream block; anything else goes to the stock processor."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Rotary | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        # Other masks than the model's own are not ours to handle.
        if encoder_hidden_states is None or left_to_stock(hidden_states) or not hides_keys(attention_mask):
            stock: tuple[Tensor, Tensor | None] = self.stock(
                attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb
            )
            return stock
        project = _project_single if attn.add_q_proj is None else _project_dual
        query, key, value = project(attn, hidden_states, encoder_hidden_states, image_rotary_emb)
        # Summed in each layer: tiny on the device, no wait for it, and nothing to remember between layers.
        lengths = None if attention_mask is None else attention_mask.sum(dim=(1, 2, 3), dtype=torch.int32)
        out = self.attend(query, key, value, lengths)
        return _unproject(attn, out.flatten(2, 3).to(query.dtype), hidden_states.shape[1])

    def dense(self, query: Tensor, key: Tensor, value: Tensor, key_lengths: Tensor | None = None) -> Tensor:
        mask = None if key_lengths is None else _padding_mask(key_lengths, key.shape[1])
        out: Tensor = dispatch_attention_fn(query, key, value, attn_mask=mask, backend=self._attention_backend)
        return out


def hides_keys(mask: Tensor | None) -> bool:
    """Whether a mask is None or has the shape of the model's own, which hides keys of a row from all its queries."""
    return mask is None or (mask.dtype == torch.bool and mask.ndim == 4 and mask.shape[1:3] == (1, 1))


def _padding_mask(lengths: Tensor, tokens: int) -> Tensor:
    """The model's own mask, bool ``[batch, 1, 1, tokens]``: True for the first `lengths` keys of each row."""
    return (torch.arange(tokens, device=lengths.device) < lengths[:, None])[:, None, None]


def _project_dual(attn: Any, video: Tensor, text: Tensor, rotary: Rotary | None) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key, value ``[batch, video + text tokens, heads, head_dim]`` of two streams with weights of their own."""
    query, key, value = in_heads(attn, video, attn.to_q, attn.to_k, attn.to_v)
    query = normalised(attn.norm_q, query)
    key = normalised(attn.norm_k, key)
    extra_query, extra_key, extra_value = in_heads(attn, text, attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
    extra_query = normalised(attn.norm_added_q, extra_query)
    extra_key = normalised(attn.norm_added_k, extra_key)
    return (
        _joined(query, extra_query, rotary),
        _joined(key, extra_key, rotary),
        torch.cat([value, extra_value], dim=1),
    )


def _project_single(attn: Any, video: Tensor, text: Tensor, rotary: Rotary | None) -> tuple[Tensor, Tensor, Tensor]:
    """The same where one set of weights serves the concatenated streams."""
    states, tokens = torch.cat([video, text], dim=1), video.shape[1]
    query, key, value = in_heads(attn, states, attn.to_q, attn.to_k, attn.to_v)
    query = normalised(attn.norm_q, query)
    key = normalised(attn.norm_k, key)
    if rotary is not None:
        query = _joined(query[:, :tokens], query[:, tokens:], rotary)
        key = _joined(key[:, :tokens], key[:, tokens:], rotary)
    return query, key, value


def _joined(video: Tensor, text: Tensor, rotary: Rotary | None) -> Tensor:
    """Video tokens, rotated, then text tokens as they are."""
    return torch.cat([video if rotary is None else rotate(video, *rotary), text], dim=1)


def _unproject(attn: Any, out: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
    """Video and text outputs, each through its projection where the block has one."""
    video, text = out[:, :tokens], out[:, tokens:]
    if getattr(attn, "to_out", None) is not None:
        video = attn.to_out[1](attn.to_out[0](video))
    if getattr(attn, "to_add_out", None) is not None:
        text = attn.to_add_out(text)
    return video, text


class HunyuanVideo(Family):
    """HunyuanVideo with ``HunyuanVideoTransformer3DModel``: one pass per step, or two with true guidance."""

    name: ClassVar[str] = "hunyuanvideo"
    transformers: ClassVar[tuple[str, ...]] = ("HunyuanVideoTransformer3DModel",)
    separate_guidance: ClassVar[bool] = True
    processor: ClassVar[type[Processor]] = HunyuanVideoProcessor
    stock_processors: ClassVar[tuple[str, ...]] = ("HunyuanVideoAttnProcessor2_0",)
    attention: ClassVar[str] = "attn"
    stacks: ClassVar[tuple[str, ...]] = ("transformer_blocks", "single_transformer_blocks")
    streams: ClassVar[tuple[tuple[str, int], ...]] = VIDEO_AND_TEXT

    unsplit: ClassVar[str] = "its blocks modulate the tokens of the first frame by their places in the whole video"

    def parallel_plan(self, transformer: nn.Module) -> dict[str, Any]:
        config: Any = transformer.config
        if config.image_condition_type == "token_replace":
            return super().parallel_plan(transformer)
        first = "transformer_blocks.0" if len(transformer.transformer_blocks) else "single_transformer_blocks.0"  # type: ignore[arg-type]
        return {"rope": rotary(0, 2), first: {"hidden_states": cut(1, 3)}, "proj_out": whole(1, 3)}

    def output_projection(self, transformer: nn.Module, index: int) -> Tensor | None:
        model: Any = transformer
        dual = len(model.transformer_blocks)
        if index < dual:
            return super().output_projection(transformer, index)
        # A single-stream block projects attention and feed-forward together, attention first.
        return self._plain_weight(transformer, model.single_transformer_blocks[index - dual].proj_out)

    def layout(self, transformer: nn.Module, call: Call) -> TokenLayout:
        text = call.get("encoder_hidden_states", 2).shape[1]
        config: Any = transformer.config
        patch = config.patch_size_t, config.patch_size, config.patch_size
        return TokenLayout.patched(call.get("hidden_states", 0).shape[-3:], patch, text_after=text)

    def modulated(self, block: nn.Module, call: Call) -> Tensor:
        norm: Any = block.norm1
        video, embedded = call.get("hidden_states", 0), call.get("temb", 2)
        replaced = call.get("token_replace_emb", 5)
        if replaced is None:
            out: Tensor = norm(video, emb=embedded)[0]
        else:
            out = norm(video, embedded, replaced, call.get("num_tokens", 6))[0]
        return out

    def conditioned(self, pipeline: Any, transformer: nn.Module) -> bool:
        config: Any = transformer.config
        return config.image_condition_type is not None or super().conditioned(pipeline, transformer)

    def schedule(self, pipeline: Any, transformer: nn.Module) -> Schedule:
        return radial_setting(self.conditioned(pipeline, transformer))


def radial_setting(conditioned: bool) -> Schedule:
    """Radial Attention's for HunyuanVideo, 12 of 50 steps and no layer; from an image, more steps, as in Wan."""
    return Schedule(dense_first_steps=0.35 if conditioned else 0.25, dense_first_layers=0)


FAMILY = HunyuanVideo()

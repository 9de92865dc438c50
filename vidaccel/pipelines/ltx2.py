"""LTX-2: video with sound, from text, images, keyframes and reference clips; two streams, of which the video's counts.

The processor computes what diffusers' ``LTX2AudioVideoAttnProcessor`` and ``LTX2PerturbedAttnProcessor`` (Apache-2.0)
compute, with the attention itself replaced. Keyframes and reference clips stand after the clip in the sequence and
count as text, which masks keep whole. A step is one call with both guidance branches in its batch; spatio-temporal and
modality guidance add one call each.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vidaccel.layout import TokenLayout
from vidaccel.pipelines.base import Call, Family
from vidaccel.pipelines.ltx import clip, modulated
from vidaccel.pipelines.processor import Processor, left_to_stock
from vidaccel.pipelines.rotary import Rotary, rotate_pairs

STOCK = "LTX2AudioVideoAttnProcessor"
PERTURBED = "LTX2PerturbedAttnProcessor"
MASK = "video_self_attention_mask"


class LTX2Processor(Processor):
    """Self-attention of the video stream through the session; masked, perturbed and training calls go to the stock one.

    A perturbed call is one whose block stands in for its attention with the values, for spatio-temporal guidance.
    """

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        query_rotary_emb: Rotary | None = None,
        key_rotary_emb: Rotary | None = None,
        perturbation_mask: Tensor | None = None,
        all_perturbed: Any = None,
    ) -> Tensor:
        others = encoder_hidden_states, attention_mask, key_rotary_emb, perturbation_mask
        if left_to_stock(hidden_states, *others) or (all_perturbed is not None and all_perturbed):
            more = (perturbation_mask, all_perturbed) if type(self.inner).__name__ == PERTURBED else ()
            stock: Tensor = self.stock(
                attn, hidden_states, encoder_hidden_states, attention_mask, query_rotary_emb, key_rotary_emb, *more
            )
            return stock
        query, key, value = _project(attn, hidden_states, query_rotary_emb)
        out = self.attend(query, key, value).to(query.dtype)
        if attn.to_gate_logits is not None:
            out = out * (2.0 * torch.sigmoid(attn.to_gate_logits(hidden_states)))[..., None]
        return attn.to_out[1](attn.to_out[0](out.flatten(2, 3)))  # type: ignore[no-any-return]


def _project(attn: Any, states: Tensor, rotary: Rotary | None) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key, value ``[batch, tokens, heads, head_dim]``, normalised and rotated."""
    query, key, value = attn.norm_q(attn.to_q(states)), attn.norm_k(attn.to_k(states)), attn.to_v(states)
    if rotary is not None and attn.rope_type == "interleaved":
        query = rotate_pairs(query, *rotary)
        key = rotate_pairs(key, *rotary)
    query, key, value = (each.unflatten(2, (attn.heads, -1)) for each in (query, key, value))
    if rotary is not None and attn.rope_type == "split":
        query = _rotate_halves(query, *rotary)
        key = _rotate_halves(key, *rotary)
    return query, key, value


def _rotate_halves(states: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotary embedding in fp32 over pairs of a head's first and second half.

    Args:
        states: ``[batch, tokens, heads, head_dim]``.
        cosine, sine: ``[batch, heads, tokens, head_dim / 2]``.
    """
    first, second = states.float().chunk(2, dim=-1)
    cosine, sine = cosine.transpose(1, 2), sine.transpose(1, 2)
    # Products are added as diffusers adds them, which may round once for both.
    out = torch.addcmul(first * cosine, -sine, second), torch.addcmul(second * cosine, sine, first)
    return torch.cat(out, dim=-1).to(states.dtype)


class LTX2(Family):
    """LTX-2, 2.3 and 2.5 with ``LTX2VideoTransformer3DModel``."""

    name: ClassVar[str] = "ltx2"
    transformers: ClassVar[tuple[str, ...]] = ("LTX2VideoTransformer3DModel",)
    processor: ClassVar[type[Processor]] = LTX2Processor
    conditioned_pipelines: ClassVar[tuple[str, ...]] = ("ImageToVideo", "Condition", "InContext", "HDR", "DFR")
    stock_processors: ClassVar[tuple[str, ...]] = (STOCK, PERTURBED)
    # Which of the two further guidance passes come after it is the pipeline's affair.
    branches: ClassVar[tuple[str, ...]] = ("cond_uncond",)
    timestep_position: ClassVar[int] = 4
    streams: ClassVar[tuple[tuple[str, int], ...]] = (("hidden_states", 0), ("audio_hidden_states", 1))
    # Without its blocks the model would return the sound of tokens that none has seen.
    predictions: ClassVar[int] = 2
    channel_axis: ClassVar[int] = 2
    batched_guidance: ClassVar[bool] = True
    unsplit: ClassVar[str] = "its sound attends to the video, of which each process has only a part"

    def layout(self, transformer: nn.Module, call: Call) -> TokenLayout:
        self._check_mask(transformer, call)
        config: Any = transformer.config
        patches = (config.patch_size_t, config.patch_size, config.patch_size)
        named = [call.optional(name, 10 + index) for index, name in enumerate(("num_frames", "height", "width"))]
        if None in named:
            # As in the pipelines with keyframes of LTX-2.5.
            return clip(call.get("video_coords", 15)[0, ..., 0])
        frames, height, width = (-(-size // patch) for size, patch in zip(named, patches, strict=True))
        tokens = call.get("hidden_states", 0).shape[1]
        return TokenLayout(frames, height, width, text_after=tokens - frames * height * width)

    def _check_mask(self, transformer: nn.Module, call: Call) -> None:
        site: Any = self.sites(transformer)[0]
        if isinstance(site.processor, LTX2Processor) and call.optional(MASK, 22) is not None:
            raise ValueError(
                f"LTX-2 was called with {MASK}, which sparse attention cannot follow: leave out "
                "conditioning_attention_mask and have conditioning_attention_strength=1, or disable sparse attention"
            )

    def time_embedding(self, transformer: nn.Module, timesteps: Tensor) -> Tensor:
        model: Any = transformer
        out: Tensor = model.time_embed(timesteps, hidden_dtype=model.dtype)[1]
        return out

    def modulated(self, block: nn.Module, call: Call) -> Tensor:
        return modulated(block, call.get("hidden_states", 0), call.get("temb", 4))


FAMILY = LTX2()

"""HunyuanVideo 1.5: text and image to video; video tokens first, then image and text, the valid ones first.

The processor computes what diffusers' ``HunyuanVideo15AttnProcessor2_0`` (Apache-2.0) computes, with the attention
itself replaced, but for its mask of all queries by all keys, which takes 12.9 GB twice in each layer at 720p: here keys
in the padding are hidden by the number of valid ones in each row. So queries in the padding get an output, where
diffusers computes zeros. No later layer attends to it and the model drops it: valid tokens are the same bit for bit.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from vidaccel.layout import TokenLayout
from vidaccel.pipelines.base import VIDEO_AND_TEXT, Call, Family
from vidaccel.pipelines.hunyuanvideo import HunyuanVideoProcessor, radial_setting
from vidaccel.pipelines.processor import left_to_stock
from vidaccel.pipelines.rotary import Rotary
from vidaccel.pipelines.split import cut, rotary, whole
from vidaccel.schedule import Schedule

TOKENS = (("encoder_hidden_states", 2), ("encoder_hidden_states_2", 5), ("image_embeds", 7))
"""Arguments of the forward that come after the video."""


class HunyuanVideo15Processor(HunyuanVideoProcessor):
    """Joint self-attention of a block through the session; anything else goes to the stock processor."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Rotary | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        text = encoder_hidden_states
        if text is None or left_to_stock(hidden_states) or not _hides_text(attention_mask, text):
            stock: tuple[Tensor, Tensor | None] = self.stock(
                attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb
            )
            return stock
        assert attention_mask is not None
        keys = functional.pad(attention_mask, (self.whole(hidden_states.shape[1]), 0), value=True)[:, None, None]
        return super().__call__(attn, hidden_states, encoder_hidden_states, keys, image_rotary_emb)


def _hides_text(mask: Tensor | None, text: Tensor) -> bool:
    """Whether a mask is the model's own: bool ``[batch, text tokens]``, True for the first ones of each row."""
    return mask is not None and mask.dtype == torch.bool and mask.shape == text.shape[:2]


class HunyuanVideo15(Family):
    """HunyuanVideo 1.5 with ``HunyuanVideo15Transformer3DModel``: the guider runs its passes one by one."""

    name: ClassVar[str] = "hunyuanvideo15"
    transformers: ClassVar[tuple[str, ...]] = ("HunyuanVideo15Transformer3DModel",)
    separate_guidance: ClassVar[bool] = True
    like: ClassVar[str | None] = "hunyuanvideo"
    processor: ClassVar[type[HunyuanVideo15Processor]] = HunyuanVideo15Processor
    stock_processors: ClassVar[tuple[str, ...]] = ("HunyuanVideo15AttnProcessor2_0",)
    attention: ClassVar[str] = "attn"
    streams: ClassVar[tuple[tuple[str, int], ...]] = VIDEO_AND_TEXT

    def parallel_plan(self, transformer: nn.Module) -> dict[str, Any]:
        return {"rope": rotary(0, 2), "transformer_blocks.0": {"hidden_states": cut(1, 3)}, "proj_out": whole(1, 3)}

    def layout(self, transformer: nn.Module, call: Call) -> TokenLayout:
        config: Any = transformer.config
        text = sum(_tokens(call, name, position) for name, position in TOKENS)
        patch = config.patch_size_t, config.patch_size, config.patch_size
        return TokenLayout.patched(call.get("hidden_states", 0).shape[-3:], patch, text_after=text)

    def time_embedding(self, transformer: nn.Module, timesteps: Tensor) -> Tensor:
        model: Any = transformer
        if model.config.use_meanflow:
            # A second timestep goes into it.
            return super().time_embedding(transformer, timesteps)
        out: Tensor = model.time_embed(timesteps.to(model.dtype))
        return out

    def modulated(self, block: nn.Module, call: Call) -> Tensor:
        norm: Any = block.norm1
        out: Tensor = norm(call.get("hidden_states", 0), emb=call.get("temb", 2))[0]
        return out

    def conditioned(self, pipeline: Any, transformer: nn.Module) -> bool:
        return transformer.config.task_type == "i2v" or super().conditioned(pipeline, transformer)  # type: ignore[union-attr]

    def schedule(self, pipeline: Any, transformer: nn.Module) -> Schedule:
        return radial_setting(self.conditioned(pipeline, transformer))


def _tokens(call: Call, name: str, position: int) -> int:
    states = call.get(name, position)
    if states is None:
        raise ValueError(f"the transformer was called with {name}=None: HunyuanVideo 1.5 has no sequence without it")
    tokens: int = states.shape[1]
    return tokens


FAMILY = HunyuanVideo15()

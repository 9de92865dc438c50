"""Motif-Video: text and image to video; video tokens first, then image and padded text, in one joint self-attention.

The processor computes what diffusers' ``MotifVideoAttnProcessor2_0`` (Apache-2.0) computes, with the attention itself
replaced. Its text may be padded at either side. Ours moves the valid tokens to the front before a layer and back after
it, as only the end of a sequence can be hidden. Calls that are known to be dense beforehand go to the stock processor;
the few others are dense to rounding if the text is padded before its tokens, and bit for bit else.

The last blocks are a decoder: they attend to the video twice, once as it entered and once as the blocks before left it,
in a sequence with another grid than the forward's. They stay as they are.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vidaccel.layout import TokenLayout
from vidaccel.pipelines.base import Call, Family
from vidaccel.pipelines.hunyuanvideo import HunyuanVideo, HunyuanVideoProcessor, hides_keys
from vidaccel.pipelines.processor import Mode, left_to_stock
from vidaccel.pipelines.rotary import Rotary


class MotifProcessor(HunyuanVideoProcessor):
    """Joint self-attention of a dual-stream or single-stream block; anything else goes to the stock processor."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Rotary | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        text = encoder_hidden_states
        if text is None or attention_mask is None or not hides_keys(attention_mask):
            return super().__call__(attn, hidden_states, text, attention_mask, image_rotary_emb)
        if self.mode is Mode.DENSE or left_to_stock(hidden_states):
            stock: tuple[Tensor, Tensor | None] = self.stock(
                attn, hidden_states, text, attention_mask, image_rotary_emb
            )
            return stock
        order = _valid_first(attention_mask[:, 0, 0, hidden_states.shape[1] :])
        video, out = super().__call__(attn, hidden_states, _taken(text, order), attention_mask, image_rotary_emb)
        assert out is not None
        return video, _taken(out, order.argsort(dim=1))


def _valid_first(mask: Tensor) -> Tensor:
    """Order of text tokens, int64 ``[batch, text]``: those where `mask` is True, then the others, each as they were."""
    return mask.logical_not().to(torch.uint8).argsort(dim=1, stable=True)


def _taken(states: Tensor, order: Tensor) -> Tensor:
    return states.gather(1, order[:, :, None].expand(-1, -1, states.shape[2]))


class Motif(HunyuanVideo):
    """Motif-Video with ``MotifVideoTransformer3DModel``: the guider runs its passes one by one."""

    name: ClassVar[str] = "motif"
    transformers: ClassVar[tuple[str, ...]] = ("MotifVideoTransformer3DModel",)
    like: ClassVar[str | None] = "hunyuanvideo"
    unsplit: ClassVar[str] = "its last blocks attend to the video twice in one sequence"
    parallel_plan = Family.parallel_plan
    processor: ClassVar[type[MotifProcessor]] = MotifProcessor
    stock_processors: ClassVar[tuple[str, ...]] = ("MotifVideoAttnProcessor2_0",)
    # The decoder begins with other streams than the blocks before it leave, in the middle of one ModuleList.
    cacheable: ClassVar[bool] = False

    def sites(self, transformer: nn.Module) -> list[nn.Module]:
        sites, model = super().sites(transformer), transformer
        return sites[: len(sites) - int(model.config.num_decoder_layers)]  # type: ignore[union-attr,arg-type]

    def layout(self, transformer: nn.Module, call: Call) -> TokenLayout:
        config: Any = transformer.config
        image = call.optional("image_embeds", 4)
        text = call.get("encoder_hidden_states", 2).shape[1] + (0 if image is None else image.shape[1])
        patch = config.patch_size_t, config.patch_size, config.patch_size
        return TokenLayout.patched(call.get("hidden_states", 0).shape[-3:], patch, text_after=text)

    def conditioned(self, pipeline: Any, transformer: nn.Module) -> bool:
        # One model does both.
        return "Image2Video" in type(pipeline).__name__


FAMILY = Motif()

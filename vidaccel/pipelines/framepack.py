"""FramePack: image to video by windows, each with its packed history before it in the sequence.

The sequence is history at a quarter of the resolution, at a half and in full, then the window's video, then image and
text tokens. Only the window is a regular grid; the rest counts as text, which masks keep whole. The blocks are those of
HunyuanVideo. A window begins the timesteps anew, so that each is a run of its own.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vidaccel.layout import TokenLayout
from vidaccel.pipelines.base import Call, Family
from vidaccel.pipelines.hunyuanvideo import HunyuanVideo

CLEAN = ("latents_clean", 8)
PACKED = (("latents_history_2x", 10, (2, 4, 4)), ("latents_history_4x", 12, (4, 8, 8)))
"""Arguments of the forward that hold history, and the patches that make one token of it."""


class FramePack(HunyuanVideo):
    """FramePack and FramePack-F1 with ``HunyuanVideoFramepackTransformer3DModel``."""

    name: ClassVar[str] = "framepack"
    transformers: ClassVar[tuple[str, ...]] = ("HunyuanVideoFramepackTransformer3DModel",)
    like: ClassVar[str | None] = "hunyuanvideo"
    unsplit: ClassVar[str] = "its blocks hold history and video as one stream, of which only the video is a grid"
    parallel_plan = Family.parallel_plan

    def layout(self, transformer: nn.Module, call: Call) -> TokenLayout:
        config: Any = transformer.config
        size = call.get("hidden_states", 0).shape[-3:]
        patch = config.patch_size_t, config.patch_size, config.patch_size
        return TokenLayout.patched(size, patch, _history(call), _image_and_text(call))

    def conditioned(self, pipeline: Any, transformer: nn.Module) -> bool:
        return True


def _history(call: Call) -> int:
    """Tokens before the video."""
    tokens, clean = 0, call.optional(*CLEAN)
    if clean is not None:
        frames, height, width = clean.shape[-3:]
        tokens += frames * (height // 2) * (width // 2)
    for name, position, patch in PACKED:
        states = call.optional(name, position)
        if states is not None:
            # Filled up to whole patches.
            sizes = zip(states.shape[-3:], patch, strict=True)
            tokens += math.prod(-(-size // step) for size, step in sizes)
    return tokens


def _image_and_text(call: Call) -> int:
    """Tokens after the video. Of a single row diffusers cuts off the padding, once it has read the length, as here."""
    mask: Tensor = call.get("encoder_attention_mask", 3)
    text = int(mask.sum(dtype=torch.int)) if len(mask) == 1 else mask.shape[1]
    image: int = call.get("image_embeds", 5).shape[1]
    return image + text


FAMILY = FramePack()

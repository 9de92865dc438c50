"""Counted attention work at the sizes of real models: what a plan saves there, without running one."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from vidaccel.layout import TokenLayout
from vidaccel.methods import METHODS, Method, method
from vidaccel.site import Site

BLOCK = 128
"""Tile size in tokens of plans for real models."""


@dataclass(frozen=True)
class ModelSize:
    """A real model at one of its resolutions.

    Args:
        model: name, with resolution and frames.
        family: whose method defaults count.
        layout: tokens of its self-attention, padded text included.
        heads, head_dim, layers: of its self-attention.
        passes: transformer passes per denoising step, for classifier-free guidance.
        hidden: width of the feed-forward; None is four times the heads' together.
        cross_tokens: text tokens of a cross-attention; 0 without one.
        out: numbers per token that the transformer puts out.
        batched: whether the pipeline runs the passes of a step as one batch.
    """

    model: str
    family: str
    layout: TokenLayout
    heads: int
    head_dim: int
    layers: int
    passes: int
    hidden: int | None = None
    cross_tokens: int = 0
    out: int = 64
    batched: bool = False

    @property
    def width(self) -> int:
        """Numbers per token between layers."""
        return self.heads * self.head_dim

    @property
    def dense_pflop(self) -> float:
        """PFLOP of one step's dense self-attention: two products of ``2 * tokens**2 * head_dim`` per head."""
        per_layer = 4 * self.layout.tokens**2 * self.heads * self.head_dim
        return per_layer * self.layers * self.passes / 1e15


# Grids and shapes as diffusers' configurations of these checkpoints give them.
WAN_14B: dict[str, Any] = {"hidden": 13_824, "cross_tokens": 512}
REAL_SIZES = (
    ModelSize("Wan2.1-T2V-14B 480x832x81", "wan", TokenLayout(21, 30, 52), 40, 128, 40, 2, **WAN_14B),
    ModelSize("Wan2.1-T2V-14B 720x1280x81", "wan", TokenLayout(21, 45, 80), 40, 128, 40, 2, **WAN_14B),
    ModelSize("Wan2.2-T2V-A14B 720x1280x121", "wan", TokenLayout(31, 45, 80), 40, 128, 40, 2, **WAN_14B),
    ModelSize("HunyuanVideo 720x1280x129", "hunyuanvideo", TokenLayout(33, 45, 80, text_after=256), 24, 128, 60, 1),
    ModelSize("CogVideoX-5B 480x720x49", "cogvideox", TokenLayout(13, 30, 45, text_before=226), 48, 64, 42, 2,
              batched=True),
    ModelSize("CogVideoX1.5-5B 768x1360x81", "cogvideox", TokenLayout(11, 48, 85, text_before=226), 48, 64, 42, 2,
              out=128, batched=True),
)  # fmt: skip


def typical_heads(family: str) -> int:
    """Heads of the first real model of a family."""
    return next((size.heads for size in REAL_SIZES if size.family == family), REAL_SIZES[0].heads)


def plan_site(layout: TokenLayout, layers: int = 1, layer: int = 0) -> Site:
    """A site that belongs to no run: enough for a static method's plan."""
    return Site(layer, layers, 0, None, "cond", "transformer", layout)


def counted(size: ModelSize, chosen: Method, dense_layers: int) -> dict[str, Any]:
    """Work of one sparse step of a real model, `dense_layers` of its layers staying dense.

    Counted, not timed: from `computed_density`, which includes the padding of tiles.
    """
    density = chosen.plan(None, None, None, plan_site(size.layout, size.layers), {}).density(size.layout)
    share = (dense_layers + (size.layers - dense_layers) * density.computed_density) / size.layers
    return {
        "model": size.model,
        "grid": str(size.layout),
        "tokens": size.layout.tokens,
        "video_density": density.video_density,
        "dense_pflop_per_step": size.dense_pflop,
        "sparse_pflop_per_step": size.dense_pflop * share,
        "counted_attention_gain": 1 / share,
    }


def real_sizes(name: str, dense_layers: int = 1) -> list[dict[str, Any]]:
    """`counted` for each of `REAL_SIZES`, by a method with its family's defaults and 128-token blocks.

    Args:
        name: of the method; nothing is counted for one whose plan depends on the run or on a profile of the model.
        dense_layers: layers that stay dense.
    """
    fields = {item.name for item in dataclasses.fields(METHODS[name])}  # type: ignore[arg-type]
    if "profile" in fields:
        return []
    options = {"block": BLOCK} if "block" in fields else {}
    found = [(size, method(name, size.family, **options)) for size in REAL_SIZES]
    return [counted(size, chosen, min(dense_layers, size.layers)) for size, chosen in found if chosen.static]


def attention_share(transformer: Any, tokens: int, layers: int, heads: int, head_dim: int) -> float:
    """About which part of a transformer's work is self-attention, counted.

    The rest is taken as one multiply-add per parameter and token, which holds for all but embeddings and text layers.
    """
    attention = 4 * tokens**2 * heads * head_dim * layers
    rest = 2 * tokens * sum(parameter.numel() for parameter in transformer.parameters())
    return float(attention / (attention + rest))

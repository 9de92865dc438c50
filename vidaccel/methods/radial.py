"""Radial Attention: a static mask whose width decays with the distance in time (arXiv 2506.19852).

The mask itself is `vidaccel.patterns.radial`; `preset="upstream"` has the numbers of the authors' published code.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from vidaccel.layout import TokenLayout
from vidaccel.methods.base import Method
from vidaccel.methods.checks import check_block, check_density, note_of_density
from vidaccel.patterns.cover import video_density
from vidaccel.patterns.radial import SPLIT, Shape, frame_widths, radial_blocks
from vidaccel.plan import AttentionPlan, BlockMask
from vidaccel.site import Site

DECAYS = {"wan": 0.2, "hunyuanvideo": 0.95, "cogvideox": 0.95}
"""Decay factor per family: the authors' for Wan 2.1 and HunyuanVideo; CogVideoX, without one, is as HunyuanVideo."""
SINK_FAMILIES = ("wan",)
"""Families whose upstream mask keeps all of the first frame's keys."""
UPSTREAM_BLOCK = 128
SOLVER_STEPS = 18

__all__ = ["Radial", "Shape", "frame_widths", "radial_blocks"]


@dataclass(frozen=True)
class Radial(Method):
    """One static mask for all heads, layers and steps; each doubling of the distance in time halves the width.

    Args:
        decay: factor on the width at frame distance 2 and more; None takes the family's, or solves for `density`.
        density: video density to reach, in (0, 1]. Below what the decay alone can reach, the band to adjacent frames
            is narrowed, then that to the first frame, and the plan's notes say so.
        block: tile size in tokens of queries and keys.
        split: tokens under which a frame pair's share of the band is too thin, so that only some distances are kept.
        sink: keep all keys of the first frame.
        preset: "upstream" is the authors' mask exactly (128-token blocks); a density below its floor is an error.

    Raises:
        ValueError: a value out of range, or `decay` and `density` together.
    """

    name: ClassVar[str] = "radial"
    paper: ClassVar[str] = "Radial Attention, arXiv 2506.19852"
    static: ClassVar[bool] = True
    alternatives: ClassVar[tuple[str, ...]] = ("decay", "density")

    decay: float | None = None
    density: float | None = None
    block: int = UPSTREAM_BLOCK
    split: int = SPLIT
    sink: bool = True
    preset: str | None = None

    def __post_init__(self) -> None:
        check_density(self.density)
        if self.decay is not None and not 0 <= self.decay < math.inf:
            raise ValueError(f"decay {self.decay} is not a number of at least 0")
        if self.decay is not None and self.density is not None:
            raise ValueError("radial takes a decay or a density that it solves the decay for, not both")
        check_block(self.block)
        if self.preset not in (None, "upstream"):
            raise ValueError(f"preset {self.preset!r} is not 'upstream', the only one")
        if self.split < 1:
            raise ValueError(f"split {self.split} is not a positive number of tokens")
        if self.preset == "upstream" and (self.block, self.split) != (UPSTREAM_BLOCK, SPLIT):
            raise ValueError(
                f"preset 'upstream' has block={UPSTREAM_BLOCK} and split={SPLIT}, not {self.block} and {self.split}"
            )

    @classmethod
    def family_defaults(cls, family: str) -> dict[str, Any]:
        return {"sink": family in SINK_FAMILIES}

    @classmethod
    def for_family(cls, family: str, **options: Any) -> Method:
        if options.get("decay") is None and options.get("density") is None:
            options["decay"] = DECAYS.get(family, DECAYS["wan"])
        return super().for_family(family, **options)

    def plan(
        self, query: Tensor | None, key: Tensor | None, value: Tensor | None, site: Site, state: dict[str, Any]
    ) -> AttentionPlan:
        layout = site.layout
        shape, notes = self._shape(layout)
        blocks = self._blocks(layout, shape)
        reached = video_density(blocks, layout, self.block)
        if self.density is not None:
            notes += note_of_density("radial", self.density, reached, layout)
        mask = BlockMask.from_blocks(blocks[None], self.block, self.block, layout.tokens, layout.tokens)
        return AttentionPlan(mask, notes=notes)

    def _blocks(self, layout: TokenLayout, shape: Shape) -> Tensor:
        return radial_blocks(layout, shape, self.block, self.split)

    def _shape(self, layout: TokenLayout) -> tuple[Shape, tuple[str, ...]]:
        sink = 1.0 if self.sink else 0.0
        if self.density is None:
            return Shape(DECAYS["wan"] if self.decay is None else self.decay, sink=sink), ()
        target = self.density

        def reached(shape: Shape) -> float:
            return video_density(self._blocks(layout, shape), layout, self.block)

        floor = reached(Shape(0.0, sink=sink))
        if target >= floor:
            widest = 2.0 ** layout.frames.bit_length() * 2
            return Shape(_solve(lambda x: reached(Shape(x, sink=sink)), target, widest), sink=sink), ()
        if self.preset == "upstream":
            raise ValueError(f"density {target} is below {floor:.4f}, the floor of preset 'upstream' on {layout}")
        if target >= reached(Shape(0.0, 0.0, sink)):
            window = _solve(lambda x: reached(Shape(0.0, x, sink)), target, 1.0)
            narrowed = f"adjacent frames to {window:.3f} of a frame"
            return Shape(0.0, window, sink), (_note(target, floor, layout, narrowed),)
        least = reached(Shape(0.0, 0.0, 0.0))
        if target < least:
            raise ValueError(
                f"density {target} is below {least:.4f}, the least of radial with {self.block}-token blocks on {layout}"
            )
        width = _solve(lambda x: reached(Shape(0.0, 0.0, x)), target, sink)
        narrowed = f"adjacent frames to the band and the first frame to {width:.3f} of a frame"
        return Shape(0.0, 0.0, width), (_note(target, floor, layout, narrowed),)


def _note(target: float, floor: float, layout: TokenLayout, what: str) -> str:
    return f"radial: density {target:g} is below the decay's floor of {floor:.4f} on {layout}: narrowed {what}"


def _solve(reached: Callable[[float], float], target: float, high: float) -> float:
    """The argument in [0, high] whose density is nearest to `target`; `reached` rises in steps."""
    low = 0.0
    if reached(high) <= target:
        return high
    for _ in range(SOLVER_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if reached(middle) <= target else (low, middle)
    return min((low, high), key=lambda x: abs(reached(x) - target))

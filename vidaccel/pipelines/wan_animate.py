"""Wan 2.2 Animate: a character moves as poses and a face in a driving clip do, in segments that follow each other.

The processors are copies of Wan's (`vidaccel.pipelines.wan`). The first latent frame is the character's picture, which
has a frame's positions. Each segment is a run of its own: the pipeline sets its timesteps anew.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from vidaccel.pipelines.base import Family
from vidaccel.pipelines.wan import Wan


class WanAnimate(Wan):
    """Wan 2.2 Animate with ``WanAnimateTransformer3DModel``."""

    name: ClassVar[str] = "wan_animate"
    transformers: ClassVar[tuple[str, ...]] = ("WanAnimateTransformer3DModel",)
    like: ClassVar[str | None] = "wan"
    # Cross-attention to the face changes the stream after every few blocks. What a stack adds is measured around all
    # of them, so that it holds the face's share too, and blocks that are passed by hand on what is then replaced.
    cacheable: ClassVar[bool] = True
    unsplit: ClassVar[str] = "its blocks attend to the face frame by frame, and each process has parts of frames"
    stock_splits: ClassVar[bool] = False
    parallel_plan = Family.parallel_plan

    def conditioned(self, pipeline: Any, transformer: nn.Module) -> bool:
        return True


FAMILY = WanAnimate()

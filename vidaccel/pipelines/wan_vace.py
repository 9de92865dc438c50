"""Wan VACE: video, masks and reference images as conditions, by blocks of their own that run before the video's.

Their processors are those of Wan (`vidaccel.pipelines.wan`), and reference images are further frames at the start of
the clip, at the positions of frames.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from vidaccel.pipelines.split import cut, rotary, whole
from vidaccel.pipelines.wan import Wan


class WanVACE(Wan):
    """Wan 2.1 VACE with ``WanVACETransformer3DModel``."""

    name: ClassVar[str] = "wan_vace"
    transformers: ClassVar[tuple[str, ...]] = ("WanVACETransformer3DModel",)
    like: ClassVar[str | None] = "wan"
    stacks: ClassVar[tuple[str, ...]] = ("vace_blocks", "blocks")
    # The condition's blocks take other streams than the video's and give hints that the forward adds between those:
    # passed by, they would return what no stack of blocks returns, and run for nothing if only the others were.
    cacheable: ClassVar[bool] = False
    stock_splits: ClassVar[bool] = True

    def parallel_plan(self, transformer: nn.Module) -> dict[str, Any]:
        # The condition's blocks each get the whole video, and hand their own stream and its hints on.
        return {"rope": rotary(1, 4), "vace_blocks.*": {"hidden_states": cut(1, 3)},
                "vace_blocks.0": {"control_hidden_states": cut(1, 3)}, "blocks.0": {"hidden_states": cut(1, 3)},
                "proj_out": whole(1, 3)}  # fmt: skip

    def conditioned(self, pipeline: Any, transformer: nn.Module) -> bool:
        return True


FAMILY = WanVACE()

"""ConsisID: a person from a picture, on CogVideoX's blocks; attention, tokens and guidance are CogVideoX's."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from vidaccel.pipelines.cogvideox import CogVideoX


class ConsisID(CogVideoX):
    """ConsisID with ``ConsisIDTransformer3DModel``."""

    name: ClassVar[str] = "consisid"
    transformers: ClassVar[tuple[str, ...]] = ("ConsisIDTransformer3DModel",)
    like: ClassVar[str | None] = "cogvideox"
    # Between its blocks the forward adds what the video sees of the face, which what a segment of blocks adds includes:
    # where blocks are passed by, it would be added twice.
    cacheable: ClassVar[bool] = False

    def distance_unit(self, transformer: nn.Module) -> str:
        return "frame"

    def conditioned(self, pipeline: Any, transformer: nn.Module) -> bool:
        return True


FAMILY = ConsisID()

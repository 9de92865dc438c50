"""ConsisID: a person from a picture, on CogVideoX's blocks; attention, tokens and guidance are CogVideoX's."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from vidaccel.pipelines.cogvideox import CogVideoX
from vidaccel.schedule import Schedule


class ConsisID(CogVideoX):
    """ConsisID with ``ConsisIDTransformer3DModel``."""

    name: ClassVar[str] = "consisid"
    transformers: ClassVar[tuple[str, ...]] = ("ConsisIDTransformer3DModel",)
    like: ClassVar[str | None] = "cogvideox"
    # Between its blocks the forward adds what the video sees of the face, which what a segment of blocks adds includes:
    # where blocks are passed by, it would be added twice.
    stacks: ClassVar[tuple[str, ...]] = ()

    def distance_unit(self, transformer: nn.Module) -> str:
        return "frame"

    def schedule(self, pipeline: Any, transformer: nn.Module) -> Schedule:
        # Every run starts from an image; see CogVideoX's.
        return Schedule(dense_first_steps=0.35)


FAMILY = ConsisID()

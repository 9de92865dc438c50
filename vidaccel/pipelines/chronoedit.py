"""ChronoEdit: a picture is edited as a short clip from it to the result.

The processors are copies of Wan's (`vidaccel.pipelines.wan`). With temporal reasoning the pipeline drops all frames but
the first and the last in mid-run, and the rest of the run has that smaller grid.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from vidaccel.pipelines.wan import Wan


class ChronoEdit(Wan):
    """ChronoEdit with ``ChronoEditTransformer3DModel``."""

    name: ClassVar[str] = "chronoedit"
    transformers: ClassVar[tuple[str, ...]] = ("ChronoEditTransformer3DModel",)
    like: ClassVar[str | None] = "wan"

    def conditioned(self, pipeline: Any, transformer: nn.Module) -> bool:
        return True


FAMILY = ChronoEdit()

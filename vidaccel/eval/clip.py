"""A generated clip without loss: frames and latents in one safetensors file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidaccel.eval.runner import Run
from vidaccel.eval.video import to_uint8


@dataclass(frozen=True)
class Clip:
    """What metrics see.

    Args:
        frames: uint8 ``[frames, height, width, 3]``; None of a run that decoded nothing.
        latents: after the last step, as the pipeline holds them; None where it does not hand them out.
    """

    frames: NDArray[np.uint8] | None
    latents: NDArray[np.float32] | None

    @classmethod
    def of(cls, run: Run) -> Clip:
        """The clip of a run, its frames rounded to 8 bits.

        Raises:
            ValueError: frames or latents that are not finite.
        """
        if run.latents is not None and not np.isfinite(run.latents).all():
            raise ValueError("the run's latents are not finite")
        return cls(None if run.frames is None else to_uint8(run.frames), run.latents)

    def save(self, path: Path) -> None:
        """Write it; with the same content, the same bytes."""
        from safetensors.numpy import save_file

        tensors = {"frames": self.frames, "latents": self.latents}
        save_file({name: np.ascontiguousarray(item) for name, item in tensors.items() if item is not None}, path)

    @classmethod
    def load(cls, path: Path) -> Clip:
        """Read it back.

        Raises:
            OSError: it cannot be read.
            ValueError: it is not a clip.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            tensors: dict[str, Any] = load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path.name} is damaged: {error}") from error
        return cls(tensors.get("frames"), tensors.get("latents"))

    def same(self, other: Clip) -> bool:
        """Whether both are equal, bit by bit."""
        pairs = ((self.frames, other.frames), (self.latents, other.latents))
        return all(a is b if a is None or b is None else np.array_equal(a, b) for a, b in pairs)

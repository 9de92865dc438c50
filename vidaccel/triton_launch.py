"""Launches of Triton kernels, of attention and of planning alike. Triton itself is not imported here."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Launch:
    """One launch of a kernel: `grid` programs with `arguments` and, fixed at compile time, `constants`.

    Args:
        kernel: a jitted function.
        options: ``num_warps`` and ``num_stages``.
    """

    kernel: Any
    arguments: dict[str, Any]
    constants: dict[str, Any]
    options: dict[str, int]
    grid: tuple[int, ...]

    def run(self) -> None:
        """Start it on the device of its first tensor; a grid without programs starts nothing."""
        if 0 in self.grid:
            return
        device = next(each.device for each in self.arguments.values() if isinstance(each, Tensor))
        # Triton launches on the current device, which need not be that of the tensors.
        with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
            self.kernel[self.grid](**self.arguments, **self.constants, **self.options)


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter; Triton itself reads this when a kernel is defined."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")

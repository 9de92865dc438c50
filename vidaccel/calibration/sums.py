"""What one prompt's generation measured: sums over steps, branches and rows, of every expert, band, layer and head."""

from __future__ import annotations

import torch
from torch import Tensor


class Sums:
    """Sums by name and place, fp64 on the CPU; each grows in the order of the calls, so that it comes out alike.

    Names are ``EXPERT.KIND``, with the tensors of a kind stacked ``[bands, layers, ...]``.
    """

    def __init__(self) -> None:
        self._parts: dict[str, dict[tuple[int, int], Tensor]] = {}

    def add(self, name: str, band: int, layer: int, value: Tensor) -> None:
        """Add to what is there."""
        parts = self._parts.setdefault(name, {})
        value = value.detach().to("cpu", torch.float64)
        parts[band, layer] = parts[band, layer] + value if (band, layer) in parts else value

    def stacked(self, bands: int, layers: dict[str, int]) -> dict[str, Tensor]:
        """The sums as tensors, maps in fp32, zero where nothing was measured.

        Args:
            layers: attention layers of each expert.
        """
        found = {}
        for name, parts in self._parts.items():
            blank = torch.zeros_like(next(iter(parts.values())))
            places = [[parts.get((band, layer), blank) for layer in range(layers[name.split(".")[0]])]
                      for band in range(bands)]  # fmt: skip
            stacked = torch.stack([torch.stack(row) for row in places])
            # Maps are large, and nobody adds up differences of theirs.
            found[name] = stacked.float() if name.endswith(".mass") else stacked
        return found

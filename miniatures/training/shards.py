"""The encoded clips as training takes them: which sizes when, and random batches."""

from __future__ import annotations

from pathlib import Path

import torch
from common import DEVICE
from safetensors.torch import load_file

BATCHES = {"short": 8, "small": 4, "large": 2}  # clips per worker and step
SHORT = 7  # latent frames; the autoencoder is causal, so a clip's first latent frames are a shorter clip
SCHEDULE = ((0.25, 0.0, 0.6), (0.5, 0.15, 0.25), (0.7, 0.4, 0.0), (1.0, 0.8, 0.0))
"""Until which share of the budget: the shares of steps on large and on short clips; the rest are small."""


class Shards:
    """The encoded clips of both sizes; `refresh` takes in shards written since."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.seen = folder, set[str]()
        self.data: dict[str, list[dict[str, torch.Tensor]]] = {"small": [], "large": []}
        self.refresh()

    def refresh(self) -> None:
        """Load the shards not seen yet."""
        for path in sorted(self.folder.glob("*_*.safetensors")):
            if path.name not in self.seen:
                self.seen.add(path.name)
                self.data[path.name.split("_")[0]].append(load_file(path))

    def batch(self, size: str, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents `[B, z, F, H, W]` and text `[B, L, D]` of random clips."""
        shards = self.data["large" if size == "large" else "small"]
        picks = torch.randint(
            len(shards) * len(shards[0]["text"]), (BATCHES[size],), generator=generator
        ).tolist()
        rows = [(shards[pick % len(shards)], pick // len(shards)) for pick in picks]
        latents, text = (torch.stack([s[key][row] for s, row in rows]).float() for key in ("latents", "text"))
        return latents[:, :, : SHORT if size == "short" else None].to(DEVICE), text.to(DEVICE)


def pick_size(progress: float, shards: Shards, generator: torch.Generator) -> str:
    """Mostly short and small clips at first, mostly large ones at the end."""
    large, short = next(mix for until, *mix in SCHEDULE if progress <= until)
    draw = float(torch.rand((), generator=generator))
    if draw < large and shards.data["large"]:
        return "large"
    return "short" if draw > 1.0 - short else "small"

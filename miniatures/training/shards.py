"""The encoded clips as training takes them: which sizes when, and random batches."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from common import DEVICE
from families import Family
from families.base import Text
from safetensors import safe_open
from torch import Tensor

BATCHES = {"short": 8, "small": 4, "large": 2}
"""Clips per worker and step on a CPU; a GPU takes `GPU_FACTOR` times as many."""
GPU_FACTOR = 16
SHORT = 7
"""Latent frames of a short clip; the autoencoder is causal, so a clip's first latent frames are a shorter clip."""
SCHEDULE = ((0.2, 0.0, 0.6), (0.45, 0.15, 0.25), (0.65, 0.4, 0.0), (1.0, 0.8, 0.0))
"""Until which share of the budget: the shares of steps on large and on short clips; the rest are small."""


class Shards:
    """The encoded clips of both sizes, with their texts as a family's encoders see them."""

    def __init__(self, folder: Path, family: Family) -> None:
        self.folder, self.family, self.seen = folder, family, set[str]()
        self.data: dict[str, list[tuple[Tensor, Text]]] = {"small": [], "large": []}
        self.refresh()
        if not self.data["small"]:
            raise SystemExit(f"no encoded clips in {folder}: run encode.py first")

    def refresh(self) -> None:
        """Load the shards not seen yet."""
        for path in sorted(self.folder.glob("*_*.safetensors")):
            if path.name not in self.seen:
                self.seen.add(path.name)
                with safe_open(path, "pt") as file:
                    texts = json.loads(file.metadata()["facts"])["texts"]
                    self.data[path.name.split("_")[0]].append((file.get_tensor("latents"), self.family.embed(texts)))

    def batch(self, size: str, generator: torch.Generator) -> tuple[Tensor, Text]:
        """Latents `[B, 8, F, H, W]` and texts of random clips."""
        shards = self.data["large" if size == "large" else "small"]
        count = batch_size(size)
        picks = torch.randint(len(shards) * len(shards[0][0]), (count,), generator=generator).tolist()
        rows = [(*shards[pick % len(shards)], pick // len(shards)) for pick in picks]
        latents = torch.stack([latents[row] for latents, _, row in rows]).float()
        text = {key: torch.stack([text[key][row] for _, text, row in rows]).to(DEVICE) for key in rows[0][1]}
        return latents[:, :, : SHORT if size == "short" else None].to(DEVICE), text


def batch_size(size: str) -> int:
    """Clips of this size that a worker takes in one step."""
    return BATCHES[size] * (GPU_FACTOR if DEVICE.type == "cuda" else 1)


def pick_size(progress: float, shards: Shards, generator: torch.Generator) -> str:
    """Mostly short and small clips at first, mostly large ones at the end."""
    large, short = next(mix for until, *mix in SCHEDULE if progress <= until)
    draw = float(torch.rand((), generator=generator))
    if draw < large and shards.data["large"]:
        return "large"
    return "short" if draw > 1.0 - short else "small"

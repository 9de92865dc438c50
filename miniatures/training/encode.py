"""Render clips and encode them to latents once, in shards that training picks up as they appear.

python miniatures/training/encode.py --work RUN --size small --count 1500
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from common import DEVICE, FRAMES, LARGE, SMALL, save_state
from diffusers import AutoencoderKLWan
from text import embed
from train_vae import as_video

from vidaccel_miniatures.clips import dataset

SHARD, BATCH = 100, 4
SIZES = {"small": SMALL, "large": LARGE}
SEEDS = {"small": 2_000_000, "large": 3_000_000}


@torch.no_grad()
def encode(vae: AutoencoderKLWan, frames: list[np.ndarray]) -> torch.Tensor:
    """Latents `[B, z, F', H/8, W/8]` of clips `[F, H, W, 3]`, normalised as the transformer sees them."""
    shape = (1, -1, 1, 1, 1)
    mean = torch.tensor(vae.config.latents_mean, device=DEVICE).view(shape)
    std = torch.tensor(vae.config.latents_std, device=DEVICE).view(shape)
    with torch.autocast(DEVICE.type, torch.bfloat16):
        latents = vae.encode(as_video(np.stack(frames)).to(DEVICE)).latent_dist.mode()
    return (latents.float() - mean) / std


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="the folder train_vae.py wrote to")
    parser.add_argument("--size", choices=sorted(SIZES), required=True)
    parser.add_argument("--count", type=int, default=1500, help=f"clips, a multiple of {SHARD}")
    options = parser.parse_args()
    vae = AutoencoderKLWan.from_pretrained(options.work / "vae").to(DEVICE).eval()
    for shard in range(options.count // SHARD):
        name = f"{options.size}_{shard:04d}"
        if (options.work / "latents" / f"{name}.safetensors").exists():
            continue
        clips = list(dataset(SEEDS[options.size] + shard * SHARD, SHARD, FRAMES, *SIZES[options.size]))
        parts = [encode(vae, [f for f, _ in clips[i : i + BATCH]]) for i in range(0, SHARD, BATCH)]
        texts = [text for _, text in clips]
        tensors = {"latents": torch.cat(parts).half(), "text": embed(texts).half()}
        save_state(options.work / "latents", name, tensors, {"texts": texts})
        print(name, flush=True)


if __name__ == "__main__":
    main()

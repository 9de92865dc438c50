"""Render clips and encode them to latents once, for all families, in shards that training picks up as they appear.

python miniatures/training/encode.py --work RUN --size small --count 1500
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from common import DEVICE, WEIGHTS, as_video, save_state
from diffusers import AutoencoderKLWan
from families import FAMILIES
from families.base import FRAMES, LARGE, SMALL

from vidaccel_miniatures.clips import dataset

BATCH = 4
SIZES = {"small": SMALL, "large": LARGE}
SEEDS = {"small": 20_000_000, "large": 30_000_000}


@torch.no_grad()
def encode(vae: AutoencoderKLWan, video: torch.Tensor) -> torch.Tensor:
    """Latents `[B, z, F', H/8, W/8]` of clips `[B, 3, F, H, W]` in -1..1, normalised as the transformers see them."""
    shape = (1, -1, 1, 1, 1)
    mean = torch.tensor(vae.config.latents_mean, device=DEVICE).view(shape)
    std = torch.tensor(vae.config.latents_std, device=DEVICE).view(shape)
    with torch.autocast(DEVICE.type, torch.bfloat16):
        latents = vae.encode(video).latent_dist.mode()
    return (latents.float() - mean) / std


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="the folder to write to")
    parser.add_argument("--size", choices=sorted(SIZES), required=True)
    parser.add_argument("--count", type=int, default=1500, help="clips")
    parser.add_argument("--shard", type=int, default=100, help="clips a shard")
    options = parser.parse_args()
    vae = FAMILIES["wan"].load_vae(WEIGHTS / "wan" / "vae").to(DEVICE).eval()
    for shard in range(options.count // options.shard):
        name = f"{options.size}_{shard:04d}"
        if (options.work / "latents" / f"{name}.safetensors").exists():
            continue
        seed = SEEDS[options.size] + shard * options.shard
        clips = list(dataset(seed, options.shard, FRAMES, *SIZES[options.size]))
        batches = [np.stack([frames for frames, _ in clips[i : i + BATCH]]) for i in range(0, len(clips), BATCH)]
        latents = torch.cat([encode(vae, as_video(batch).to(DEVICE)) for batch in batches])
        save_state(options.work / "latents", name, {"latents": latents.half()}, {"texts": [text for _, text in clips]})
        print(name, flush=True)


if __name__ == "__main__":
    main()

"""Train the Wan miniature's video autoencoder, whose latent space all miniatures share, on short crops of clips.

    python miniatures/training/train_vae.py --work RUN --minutes 10
    torchrun --nproc-per-node 2 miniatures/training/train_vae.py --work RUN --minutes 10

Running it again continues from the last checkpoint in RUN. At the end the latents' mean and standard
deviation are measured and the autoencoder lies in RUN/wan/vae.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from common import DEVICE, as_video, join_workers, optimizer_tensors, restore_optimizer
from diffusers import AutoencoderKLWan
from families import FAMILIES
from families.base import LARGE, SMALL
from vae_run import VaeRun

from vidaccel_miniatures.clips import render, sample_clip

BATCH, CLIP_FRAMES, LR = 4, 9, 3e-3
CROPS = ((0.65, (48, 48)), (1.0, (80, 112)))
"""Until which share of the budget: the crops' height and width. Small ones first: more steps in the time."""


def crops(
    seed: int, crop: tuple[int, int], num_frames: int = CLIP_FRAMES, count: int = BATCH
) -> torch.Tensor:
    """A batch of random crops, `[count, 3, num_frames, *crop]` in -1..1."""
    rng = np.random.default_rng(seed)
    out = np.empty((count, num_frames, *crop, 3), np.uint8)
    for slot in range(count):
        size = LARGE if rng.random() < 0.6 else SMALL
        # Clips of fewer frames move faster than 49-frame ones: a margin.
        length = int(rng.choice([max(17, num_frames), 33, 49]))
        t, y, x = (
            int(rng.integers(n - m + 1)) for n, m in zip((length, *size), (num_frames, *crop), strict=True)
        )
        frames = render(sample_clip(int(rng.integers(2**31))), length, *size, span=(t, t + num_frames))
        out[slot] = frames[:, y : y + crop[0], x : x + crop[1]]
    return as_video(out)


def build() -> AutoencoderKLWan:
    """A new autoencoder whose latents start nearly free of noise; at unit variance it would learn slowly."""
    vae: AutoencoderKLWan = FAMILIES["wan"].build_vae()
    torch.nn.init.zeros_(vae.quant_conv.weight.data[vae.z_dim :])
    torch.nn.init.constant_(vae.quant_conv.bias.data[vae.z_dim :], -5.0)
    return vae.to(DEVICE)


def loss_of(vae: AutoencoderKLWan, video: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Training loss and mean squared error of one batch."""
    with torch.autocast(DEVICE.type, torch.bfloat16):
        posterior = vae.encode(video).latent_dist
        restored = vae.decode(posterior.sample()).sample.float()
    error = F.mse_loss(restored, video)
    edges = sum(F.l1_loss(restored.diff(dim=d), video.diff(dim=d)) for d in (-1, -2))
    kl = posterior.kl().mean() / posterior.mean[0].numel()
    return F.l1_loss(restored, video) + 2 * error + edges + 1e-3 * kl, error.detach()


class Adam:
    """AdamW over all weights."""

    def __init__(self, vae: torch.nn.Module) -> None:
        self.adam = torch.optim.AdamW(vae.parameters(), lr=LR, betas=(0.9, 0.98), weight_decay=1e-3)

    def step(self, factor: float) -> None:
        """One step with the learning rate times `factor`; gradients are cleared."""
        self.adam.param_groups[0]["lr"] = LR * factor
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)

    def tensors(self) -> dict[str, torch.Tensor]:
        """The state, flat."""
        return optimizer_tensors(self.adam, "opt")

    def restore(self, tensors: dict[str, torch.Tensor]) -> None:
        """Undo `tensors`."""
        restore_optimizer(self.adam, "opt", tensors)


class Run(VaeRun):
    """A training of Wan's autoencoder from nothing."""

    def __init__(self, work: Path, minutes: float, seed: int, rank: int) -> None:
        torch.manual_seed(seed)
        vae = build()
        super().__init__(work / "wan", vae, Adam(vae), minutes, seed, rank)

    def update(self, video: torch.Tensor) -> float:
        """One optimizer step on this worker's batch; returns the batch's PSNR in dB."""
        loss, error = loss_of(self.vae, video)
        self.apply(loss)
        return float(-10 * error.div(4).log10())


def train(run: Run, workers: int) -> AutoencoderKLWan:
    """Train until the budget is spent, saving every minute."""
    saved, mean = time.monotonic(), 0.0
    while run.progress < 1.0:
        crop = next(size for until, size in CROPS if run.progress <= until)
        psnr = run.update(crops(run.seed + run.step * workers + run.rank, crop).to(DEVICE))
        mean += 0.05 * (psnr - mean)
        if run.step % 50 == 0 and run.rank == 0:
            print(f"{run.step} {run.clock.spent:.0f}s psnr {mean:.1f}", flush=True)
        if time.monotonic() - saved > 60 or run.progress >= 1.0:
            saved = time.monotonic()
            run.save()
    return run.vae.eval()


@torch.no_grad()
def measure(vae: AutoencoderKLWan, seed: int, count: int = 12) -> dict[str, object]:
    """Latent statistics per channel, and the PSNR in dB of `count` large clips put through it."""
    latents, errors = [], []
    for index in range(count):
        video = as_video(render(sample_clip(seed + index), 25, *LARGE)[None]).to(DEVICE)
        with torch.autocast(DEVICE.type, torch.bfloat16):
            latents.append(vae.encode(video).latent_dist.mode().float())
            errors.append(F.mse_loss(vae.decode(latents[-1]).sample.float(), video))
    stacked = torch.cat(latents)
    mean, std = stacked.mean((0, 2, 3, 4)), stacked.std((0, 2, 3, 4))
    psnr = float(-10 * torch.stack(errors).div(4).log10().mean())
    return {"latents_mean": mean.tolist(), "latents_std": std.tolist(), "psnr": psnr}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints and results")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=1_000_000)
    options = parser.parse_args()
    rank, workers = join_workers()
    run = Run(options.work, options.minutes, options.seed, rank)
    vae = train(run, workers)
    if rank != 0:
        return
    facts = measure(vae, options.seed - 1000) | {
        "steps": run.step,
        "minutes": options.minutes,
        "seed": options.seed,
    }
    print(facts)
    (run.work / "vae_facts.json").write_text(json.dumps(facts))
    vae.register_to_config(latents_mean=facts["latents_mean"], latents_std=facts["latents_std"])
    vae.save_pretrained(run.work / "vae")


if __name__ == "__main__":
    main()
